"""Training checkpoints: saved atomically, loaded without executing anything that is in them."""

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import Config, dump_config, parse_config
from model.errors import CheckpointError, ConfigurationError
from model.images import ImageFormat
from model.network import Network

FORMAT = 1
FILE_NAME = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that a run needs to go on, and all that is needed to judge with its network.

    command: what started the run, for whoever wants to repeat it. split_digests: of the train, calibration and test
    images. trained_images: fingerprints of every image trained on, so that none of them is ever calibrated on.
    criterion: what a rival loss learned beside the network, empty for L-GM. epoch: epochs finished. history: a row of
    figures per epoch. test_accuracy: a share, once the run is finished.
    """

    config: Config
    command: str
    class_names: tuple[str, ...]
    image_format: ImageFormat
    split_digests: dict[str, str]
    trained_images: Tensor
    epoch: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    loss_step: int
    history: list[dict[str, float]]
    test_accuracy: float | None = None
    criterion: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every epoch of the configuration is done."""
        return self.test_accuracy is not None

    def build_network(self) -> Network:
        """The network with the learned weights, in evaluation mode. Raises CheckpointError where they do not fit."""
        network = build_network(self.config, self.class_names, self.image_format)
        try:
            network.load_state_dict(self.network)
        except RuntimeError as error:
            raise CheckpointError(f"its weights do not fit its configuration: {error}") from None
        return network.eval()


def build_network(config: Config, class_names: tuple[str, ...], image_format: ImageFormat) -> Network:
    """A fresh network for these classes and images."""
    return Network(config.network, config.mixture, num_classes=len(class_names), num_channels=image_format.shape[0])


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write to a file beside it, then rename: a kill leaves the old checkpoint or the new one, never half.

    Raises CheckpointError where it cannot be written.
    """
    values = {
        "format": FORMAT,
        "config": dump_config(checkpoint.config),
        "command": checkpoint.command,
        "class_names": list(checkpoint.class_names),
        "image_format": {
            "shape": list(checkpoint.image_format.shape),
            "resize": checkpoint.image_format.resize,
        },
        "split_digests": checkpoint.split_digests,
        "trained_images": checkpoint.trained_images,
        "epoch": checkpoint.epoch,
        "network": checkpoint.network,
        "optimizer": checkpoint.optimizer,
        "loss_step": checkpoint.loss_step,
        "history": checkpoint.history,
        "test_accuracy": checkpoint.test_accuracy,
        "criterion": checkpoint.criterion,
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer fails anew when it closes what the disk refused
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise CheckpointError(f"{path} cannot be written: {reason}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the one in a run's folder.

    Raises CheckpointError: nothing there, damaged, or of another format.
    """
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there")
    try:
        _check_sums(path)
        return _parse(torch.load(path, map_location="cpu", weights_only=True))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # torch.load raises whatever the damaged byte leads to
        raise CheckpointError(f"{path} is damaged or not a checkpoint of lgm-guard: {error}") from None


def _check_sums(path: Path) -> None:
    """torch.load reads past the checksums of its zip file: a changed weight would go unseen."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{damaged} in it is damaged: its checksum is another")


def _parse(values: dict[str, Any]) -> Checkpoint:
    if values["format"] != FORMAT:
        raise CheckpointError(f"format {values['format']}, but this version reads format {FORMAT}")
    try:
        config = parse_config(values["config"])
    except ConfigurationError as error:
        raise CheckpointError(str(error)) from None
    channels, height, width = values["image_format"]["shape"]
    return Checkpoint(
        config=config,
        command=values["command"],
        class_names=tuple(values["class_names"]),
        image_format=ImageFormat(shape=(channels, height, width), resize=values["image_format"]["resize"]),
        split_digests=values["split_digests"],
        trained_images=values["trained_images"],
        epoch=values["epoch"],
        network=values["network"],
        optimizer=values["optimizer"],
        loss_step=values["loss_step"],
        history=values["history"],
        test_accuracy=values["test_accuracy"],
        criterion=values.get("criterion", {}),  # of a rival loss; checkpoints without are of L-GM
    )
