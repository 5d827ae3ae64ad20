"""The training loop: images -> features, class Gaussians; on one device, or one of several.

Every random choice of an epoch (see `epoch`) comes from (seed, epoch) and a checkpoint is written after each, so a
killed run that is started again ends as if it had never been killed, bit for bit on a CPU.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint import FILE_NAME, Checkpoint, save_checkpoint
from model.config import Config
from model.criterion import fit_gaussians, predictor_of
from model.data import Splits, load_splits
from model.devices import ALONE, Devices, local_device
from model.epoch import accuracy, steps_per_epoch, train_epoch
from model.errors import ConfigurationError
from model.learners import Learners, build_learners
from model.losses.base import RivalLoss
from model.precision import warn_of_emulation
from model.runs import begun, own_folder, previous_checkpoint
from model.training_log import Reporter


def train(
    config: Config,
    output: Path,
    reporter: Reporter,
    *,
    command: str = "",
    devices: Devices = ALONE,
    splits: Splits | None = None,
) -> Checkpoint:
    """Train as configured, or go on where the folder's checkpoint stopped; the finished checkpoint.

    devices: this process among those that train together; all need the same folder, and the first one writes it.
    splits: what config.data names, for a caller that has it already.

    Raises ConfigurationError, DataError, CheckpointError before the first step wherever something does not
    fit: classes, device, a folder that holds another run or cannot be written, processes that differ in configuration
    or data.
    """
    checkpoint = previous_checkpoint(config, output, devices)
    if checkpoint is not None and checkpoint.finished and splits is None:
        return checkpoint
    splits = load_splits(config.data) if splits is None else splits
    check_fit(config, splits)
    checkpoint = begun(checkpoint, config, splits, output, command=command, devices=devices)
    if checkpoint.finished:
        return checkpoint
    device = select_device(local_device(config.training.device, devices))
    warn_of_emulation(config.training, device)
    learners = build_learners(checkpoint, splits, device=device, devices=devices)
    checkpoint = replace(checkpoint, network={}, optimizer={})  # or a sharded mixture would stay in memory, whole

    with own_folder(output, devices):
        reporter.start(config, steps_per_epoch(config, splits.train), checkpoint.history)
        for epoch in range(checkpoint.epoch, config.training.epochs):
            row = _epoch(learners, splits, config, epoch, reporter, devices)
            reporter.finish_epoch(row)
            checkpoint = _after_epoch(checkpoint, row, learners, splits, devices)
            _save(learners.saved(checkpoint), output, devices)
    return learners.saved(checkpoint)


def _epoch(
    learners: Learners, splits: Splits, config: Config, epoch: int, reporter: Reporter, devices: Devices
) -> dict[str, float]:
    """Train, measure on images held out; what the history keeps."""
    network, criterion, optimizer, embed = learners
    started = time.monotonic()
    report = train_epoch(
        network, criterion, optimizer, splits.train, config, epoch, reporter, devices=devices, embed=embed
    )
    held_out_accuracy = accuracy(network, splits.calibration, predictor_of(network, criterion), devices)
    return {
        "epoch": epoch + 1.0,
        **report.figures(),
        "held_out_accuracy": held_out_accuracy,
        "seconds": time.monotonic() - started,
        "threads": float(torch.get_num_threads()),
    }


def _after_epoch(
    checkpoint: Checkpoint, row: dict[str, float], learners: Learners, splits: Splits, devices: Devices
) -> Checkpoint:
    """The next checkpoint, but for what was learned; the last one is of Gaussians that are fitted, and tested."""
    checkpoint = replace(checkpoint, epoch=checkpoint.epoch + 1, history=[*checkpoint.history, row])
    if checkpoint.epoch == checkpoint.config.training.epochs:
        if isinstance(learners.criterion, RivalLoss):
            fit_gaussians(learners.network, splits.train)
        checkpoint = replace(checkpoint, test_accuracy=accuracy(learners.network, splits.test, devices=devices))
    return checkpoint


def _save(checkpoint: Checkpoint, output: Path, devices: Devices) -> None:
    if devices.rank == 0:
        save_checkpoint(checkpoint, output / FILE_NAME)


def select_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N. Raises ConfigurationError where it does not exist."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"device {name!r} is not known; use cpu, cuda or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigurationError(f"device {name!r} cannot be used; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices found")
    return device


def check_fit(config: Config, splits: Splits) -> None:
    """Refuse parts that cannot work together before any work is done."""
    found, expected = len(splits.train.class_names), config.mixture.num_classes
    if expected is not None and expected != found:
        raise ConfigurationError(f"mixture.num_classes is {expected}, but {config.data.name} has {found} classes")
    if len(splits.train) < 2:
        raise ConfigurationError(f"{config.data.name} leaves {len(splits.train)} training images; 2 are needed")
