"""Shards of a mixture on disk, a safetensors file each; read back whole, or by another number of processes."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.devices import ALONE, Devices
from model.errors import CheckpointError
from model.mixture import GaussianMixture
from model.part import Part

NAME = re.compile(r"mixture-(\d+)-of-(\d+)\.safetensors")
SAME: dict[str, Callable[[str], Any]] = {
    "num_classes": int,
    "num_features": int,
    "variance": str,
    "prior": str,
    "variance_floor": float,
    "step": int,
}
SAID = SAME | {"first": int, "last": int}
DIGESTED_ROWS = 2**14  # at a time, so that a shard of any size is checked in little memory


def save_shard(mixture: GaussianMixture, folder: Path, *, step: int) -> Path:
    """Write this process's shard beside the others', atomically; step tells the shards of one time from another's.

    Raises CheckpointError where it cannot be written.
    """
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
    path = folder / shard_name(mixture.peers.rank, mixture.peers.size)
    tensors = {name: values.detach().cpu().contiguous() for name, values in mixture.state_dict().items()}
    told = described | {"digest": _digest(described, tensors)}
    _write_whole(path, tensors, {name: str(value) for name, value in told.items()})
    return path


def _write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def shard_name(rank: int, size: int) -> str:
    """The file of one process."""
    return f"mixture-{rank + 1:05d}-of-{size:05d}.safetensors"


def load_mixture(folder: Path) -> GaussianMixture:
    """The whole mixture, put together from its shards. Raises CheckpointError as `load_shard` does."""
    return load_shard(folder, ALONE)


def load_shard(folder: Path, peers: Devices) -> GaussianMixture:
    """This process's share, in the dtype that was saved, whatever number of processes saved.

    Raises CheckpointError naming the file that is missing, damaged, in another's place, or of another mixture, dtype
    or step than the first. Damage to the numbers shows by a digest, which files of earlier versions do not have.
    """
    described = _described(folder)
    mixture = _fresh(described[0][1], peers)
    part, rows = mixture.part, {name: list[Tensor]() for name in mixture.state_dict()}
    for path, own in described:
        start, stop = max(part.first, own["first"]), min(part.last, own["last"])
        if start < stop:
            with safe_open(path, "pt") as file:
                slices = _checked(path, file, own, mixture)
                for name, pieces in rows.items():
                    pieces.append(slices[name][start - own["first"] : stop - own["first"]])
    mixture.to(rows["means"][0].dtype).load_state_dict({name: torch.cat(pieces) for name, pieces in rows.items()})
    return mixture


_Said = dict[str, Any]  # SAID, with "dtype" of the means and, but for older files, "digest"


def _described(folder: Path) -> list[tuple[Path, _Said]]:
    """Every shard's file with what it says of itself, in order of classes."""
    sizes = {int(match[2]) for path in folder.glob("mixture-*") if (match := NAME.fullmatch(path.name))}
    if len(sizes) != 1:
        said = f"shards of {' and of '.join(map(str, sorted(sizes)))} processes" if sizes else "no shard of a mixture"
        raise CheckpointError(f"{folder} holds {said}; it must be one whole set")
    size = sizes.pop()
    found = [(path := folder / shard_name(rank, size), _metadata(path)) for rank in range(size)]
    for rank, (path, own) in enumerate(found):
        for name in (*SAME, "dtype"):
            if own[name] != (first := found[0][1][name]):
                raise CheckpointError(f"{path}: its {name} is {own[name]}, but {first} in the first")
        place = Part.of(own["num_classes"], rank=rank, size=size)
        if (own["first"], own["last"]) != (place.first, place.last):
            holds, belong = f"[{own['first']}, {own['last']})", f"[{place.first}, {place.last})"
            raise CheckpointError(f"{path} is another shard's file: it holds classes {holds}, not {belong}")
    return found


def _metadata(path: Path) -> _Said:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a shard of the mixture is not there")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            own: _Said = {name: parse(told[name]) for name, parse in SAID.items()}
            return own | {"dtype": file.get_slice("means").get_dtype(), "digest": told.get("digest")}
    except KeyError as error:
        raise CheckpointError(f"{path} is not a shard: it does not say its {error.args[0]}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a shard: {error}") from None


def _checked(path: Path, file: Any, own: _Said, mixture: GaussianMixture) -> dict[str, Any]:
    """Its tensors, still in the file, after a look at all of them."""
    expected = {name: [own["last"] - own["first"], *rows.shape[1:]] for name, rows in mixture.state_dict().items()}
    names: list[str] = file.keys()
    slices = {name: file.get_slice(name) for name in names}
    found = {name: values.get_shape() for name, values in slices.items()}
    if found != expected:
        raise CheckpointError(f"{path} is damaged or not a shard: it holds {found}, not {expected}")
    if own["digest"] not in (None, _digest(own, slices)):
        raise CheckpointError(f"{path} is damaged: its digest is another than when it was saved")
    return slices


def _digest(own: _Said, tensors: dict[str, Any]) -> str:
    """SHA-256 of what a shard says of itself and of its tensors, which may still be in a file."""
    digest = hashlib.sha256(repr([own[name] for name in SAID]).encode())
    for name in sorted(tensors):
        for start in range(0, own["last"] - own["first"], DIGESTED_ROWS):
            rows = tensors[name][start : start + DIGESTED_ROWS]
            digest.update(f"{name} {rows.dtype} {tuple(rows.shape)}".encode())
            digest.update(rows.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _fresh(own: _Said, peers: Devices) -> GaussianMixture:
    return GaussianMixture(
        own["num_classes"],
        own["num_features"],
        variance=own["variance"],
        prior=own["prior"],
        variance_floor=own["variance_floor"],
        peers=peers,
    )
