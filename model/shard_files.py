"""Shards of a mixture on disk, a safetensors file each; read back whole, or by another number of processes."""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import CheckpointError
from model.mixture import GaussianMixture
from model.part import Part
from model.sharded import Group, MixtureShard

NAME = re.compile(r"mixture-(\d+)-of-(\d+)\.safetensors")
SAME = ("num_classes", "num_features", "variance", "prior", "variance_floor", "step")


def save_shard(shard: MixtureShard, folder: Path, *, step: int) -> Path:
    """Write this process's shard beside the others', atomically; step tells the shards of one time from another's."""
    gaussians, part, group = shard.gaussians, shard.part, shard.group
    described = {
        "num_classes": part.total,
        "num_features": gaussians.num_features,
        "variance": gaussians.variance,
        "prior": gaussians.prior,
        "variance_floor": gaussians.variance_floor,
        "step": step,
        "first": part.first,
        "last": part.last,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard_name(group.rank, group.size)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: values.detach().cpu().contiguous() for name, values in gaussians.state_dict().items()}
    save_file(tensors, temporary, {name: str(value) for name, value in described.items()})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def shard_name(rank: int, size: int) -> str:
    """The file of one process."""
    return f"mixture-{rank + 1:05d}-of-{size:05d}.safetensors"


def load_mixture(folder: Path) -> GaussianMixture:
    """The whole mixture, put together from its shards. Raises CheckpointError as `load_shard` does."""
    return _read(_described(folder), None)


def load_shard(folder: Path, group: Group) -> MixtureShard:
    """This process's share, whatever number of processes saved.

    Raises CheckpointError naming the file that is missing, damaged, or of another mixture or step than the first.
    """
    described = _described(folder)
    part = Part.of(int(described[0][1]["num_classes"]), rank=group.rank, size=group.size)
    return MixtureShard(_read(described, part), part, group)


_Described = list[tuple[Path, dict[str, str]]]


def _described(folder: Path) -> _Described:
    """Every shard's file with what it says of itself, in order of classes."""
    sizes = {int(match[2]) for path in folder.glob("mixture-*") if (match := NAME.fullmatch(path.name))}
    if len(sizes) != 1:
        said = f"shards of {' and of '.join(map(str, sorted(sizes)))} processes" if sizes else "no shard of a mixture"
        raise CheckpointError(f"{folder} holds {said}; it must be one whole set")
    size = sizes.pop()
    found = [(path := folder / shard_name(rank, size), _metadata(path)) for rank in range(size)]
    for path, values in found:
        for name in SAME:
            if values.get(name) != found[0][1].get(name):
                raise CheckpointError(
                    f"{path}: its {name} is {values.get(name)}, but {found[0][1].get(name)} in the first"
                )
    return found


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a shard of the mixture is not there")
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a shard: {error}") from None


def _read(described: _Described, part: Part | None) -> GaussianMixture:
    values = described[0][1]
    part = part or Part.whole(int(values["num_classes"]))
    mixture = GaussianMixture(
        part.last - part.first,
        int(values["num_features"]),
        variance=values["variance"],
        prior=values["prior"],
        variance_floor=float(values["variance_floor"]),
    )
    rows: dict[str, list[Tensor]] = {name: [] for name in mixture.state_dict()}
    for path, own in described:
        start, stop = max(part.first, int(own["first"])), min(part.last, int(own["last"]))
        if start < stop:
            with safe_open(path, "pt") as file:
                for name, pieces in rows.items():
                    pieces.append(file.get_slice(name)[start - int(own["first"]) : stop - int(own["first"])])
    mixture.load_state_dict({name: torch.cat(pieces) for name, pieces in rows.items()})
    return mixture
