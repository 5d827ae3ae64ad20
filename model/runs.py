"""How a training run begins: what its folder holds, and what all its processes must agree on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from model.config import Config, dump_config
from model.data import Splits
from model.devices import Devices
from model.errors import CheckpointError, ConfigurationError
from model.folder_lock import alone_in


def previous_checkpoint(config: Config, output: Path, devices: Devices) -> Checkpoint | None:
    """That of the same run, if it was begun.

    Raises ConfigurationError, CheckpointError for anything else there, and where the processes differ.
    """
    if config.mixture.sharded and devices.alone:
        raise ConfigurationError("mixture.sharded needs several processes: lgm train --devices N, or torchrun")
    devices.agree(_flat(dump_config(config)))
    previous = _found(config, output)
    devices.agree({"the number of epochs in the run's checkpoint": 0 if previous is None else previous.epoch})
    return previous


def begun(
    previous: Checkpoint | None, config: Config, splits: Splits, output: Path, *, command: str, devices: Devices
) -> Checkpoint:
    """The previous checkpoint, or what is known of a run before its first epoch.

    Raises CheckpointError for other images than the previous one's, ConfigurationError where the processes' differ.
    """
    fresh = _fresh(config, splits, command)
    devices.agree({f"the digest of the {name} images": digest for name, digest in fresh.split_digests.items()})
    if previous is None:
        return fresh
    for name, digest in fresh.split_digests.items():
        if previous.split_digests[name] != digest:
            raise CheckpointError(f"{output} was trained on other {name} images than those found now")
    return previous


@contextmanager
def own_folder(output: Path, devices: Devices) -> Iterator[None]:
    """The run's folder, made unless it is there, is this process's alone; of several the first one's.

    Raises ConfigurationError where nothing can be written in it, or another process trains in it.
    """
    if devices.rank > 0:
        yield
        return
    _make_folder(output)
    with alone_in(output):
        yield


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}; choose another --output") from None


def _found(config: Config, output: Path) -> Checkpoint | None:
    try:
        if output.exists() and not output.is_dir():
            raise ConfigurationError(f"{output} is not a folder; choose another --output")
        if not (output / FILE_NAME).exists():
            return None
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be read: {error.strerror}; choose another --output") from None
    previous = load_checkpoint(output)
    if previous.config != config:
        raise CheckpointError(
            f"{output} holds a run with another configuration ({_difference(config, previous.config)}); "
            "choose another --output"
        )
    return previous


def _difference(asked: Config, there: Config) -> str:
    """The first keys that differ."""
    wanted, found = _flat(dump_config(asked)), _flat(dump_config(there))
    names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    told = [f"{name} is {wanted.get(name)!r}, there {found.get(name)!r}" for name in names[:3]]
    return ", ".join([*told, *([f"{len(names) - 3} more"] if len(names) > 3 else [])])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """{"training.seed": 0, ...} of nested tables."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _fresh(config: Config, splits: Splits, command: str) -> Checkpoint:
    parts = {"train": splits.train, "calibration": splits.calibration, "test": splits.test}
    return Checkpoint(
        config=config,
        command=command,
        class_names=splits.train.class_names,
        image_format=splits.image_format,
        split_digests={name: part.digest() for name, part in parts.items()},
        trained_images=splits.train.fingerprints(),
        epoch=0,
        network={},
        optimizer={},
        loss_step=0,
        history=[],
    )
