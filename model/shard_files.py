"""Shards of a mixture on disk, a safetensors file each; read back whole, or by another number of processes."""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.devices import ALONE, Devices
from model.errors import CheckpointError
from model.mixture import GaussianMixture

NAME = re.compile(r"mixture-(\d+)-of-(\d+)\.safetensors")
SAME = ("num_classes", "num_features", "variance", "prior", "variance_floor", "step")


def save_shard(mixture: GaussianMixture, folder: Path, *, step: int) -> Path:
    """Write this process's shard beside the others', atomically; step tells the shards of one time from another's."""
    described = {
        "num_classes": mixture.num_classes,
        "num_features": mixture.num_features,
        "variance": mixture.variance,
        "prior": mixture.prior,
        "variance_floor": mixture.variance_floor,
        "step": step,
        "first": mixture.part.first,
        "last": mixture.part.last,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard_name(mixture.peers.rank, mixture.peers.size)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: values.detach().cpu().contiguous() for name, values in mixture.state_dict().items()}
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
    return load_shard(folder, ALONE)


def load_shard(folder: Path, peers: Devices) -> GaussianMixture:
    """This process's share, whatever number of processes saved.

    Raises CheckpointError naming the file that is missing, damaged, or of another mixture or step than the first.
    """
    described = _described(folder)
    mixture = _fresh(described[0][1], peers)
    part, rows = mixture.part, {name: list[Tensor]() for name in mixture.state_dict()}
    for path, own in described:
        start, stop = max(part.first, int(own["first"])), min(part.last, int(own["last"]))
        if start < stop:
            with safe_open(path, "pt") as file:
                for name, pieces in rows.items():
                    pieces.append(file.get_slice(name)[start - int(own["first"]) : stop - int(own["first"])])
    mixture.load_state_dict({name: torch.cat(pieces) for name, pieces in rows.items()})
    return mixture


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


def _fresh(described: dict[str, str], peers: Devices) -> GaussianMixture:
    return GaussianMixture(
        int(described["num_classes"]),
        int(described["num_features"]),
        variance=described["variance"],
        prior=described["prior"],
        variance_floor=float(described["variance_floor"]),
        peers=peers,
    )
