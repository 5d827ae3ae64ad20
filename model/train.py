"""The training loop: images -> features, class Gaussians; on one device, or one of several.

Every random choice of an epoch comes from (seed, epoch) and a checkpoint is written after each epoch, so a
killed run that is started again ends as if it had never been killed, bit for bit on a CPU. Several processes draw
what one would draw, and each works on its rows of every batch, so they follow one process's curve but for rounding.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.adversarial import attacked
from model.augmentation import augment
from model.batch_norm import joined
from model.checkpoint import FILE_NAME, Checkpoint, build_network, load_checkpoint, save_checkpoint
from model.config import Config, dump_config
from model.criterion import (
    Criterion,
    Predictor,
    build_criterion,
    fit_gaussians,
    learned_beside,
    predictor_of,
    show,
)
from model.data import ImageSet, Splits, load_splits, to_unit
from model.devices import ALONE, Devices, local_device
from model.errors import CheckpointError, ConfigurationError, DivergenceError
from model.losses.base import RivalLoss
from model.network import Network
from model.optimizer import build_optimizer, clip_gradient, learning_rate, set_learning_rate
from model.parallel import Embed, parallel
from model.part import Part
from model.precision import autocast, warn_of_emulation
from model.training_log import Report, Reporter

EVALUATION_BATCH = 512


def train(
    config: Config, output: Path, reporter: Reporter, *, command: str = "", devices: Devices = ALONE
) -> Checkpoint:
    """Train as configured, or go on where the folder's checkpoint stopped; the finished checkpoint.

    devices: this process among those that train together; all need the same folder, and the first one writes it.

    Raises ConfigurationError, DataError, CheckpointError before the first step wherever something does not
    fit: classes, device, a folder that holds another run, processes that differ in configuration or data.
    """
    devices.agree(_flat(dump_config(config)))
    previous = _previous(config, output)
    devices.agree({"the number of epochs in the run's checkpoint": 0 if previous is None else previous.epoch})
    if previous is not None and previous.finished:
        return previous
    splits = load_splits(config.data)
    check_fit(config, splits)
    start = _fresh_checkpoint(config, splits, command)
    devices.agree({f"the digest of the {name} images": digest for name, digest in start.split_digests.items()})
    network, criterion, optimizer = _learners(config, splits, devices)
    if previous is not None:
        _check_same_data(previous, start.split_digests, output)
        _take_up(previous, network, criterion, optimizer)
    embed = parallel(network, criterion, devices)
    checkpoint = previous or start

    reporter.start(config, _steps_per_epoch(config, splits.train), checkpoint.history)
    for epoch in range(checkpoint.epoch, config.training.epochs):
        started = time.monotonic()
        report = train_epoch(
            network, criterion, optimizer, splits.train, config, epoch, reporter, devices=devices, embed=embed
        )
        held_out = accuracy(network, splits.calibration, predictor_of(network, criterion), devices)
        row = _row(epoch, report, held_out, seconds=time.monotonic() - started)
        reporter.finish_epoch(row)
        last = epoch + 1 == config.training.epochs
        if last and isinstance(criterion, RivalLoss):
            fit_gaussians(network, splits.train)
        checkpoint = replace(
            checkpoint,
            epoch=epoch + 1,
            network=network.state_dict(),
            optimizer=optimizer.state_dict(),
            loss_step=criterion.step,
            history=[*checkpoint.history, row],
            test_accuracy=accuracy(network, splits.test, network.mixture.predict, devices) if last else None,
            criterion=criterion.state_dict() if isinstance(criterion, RivalLoss) else {},
        )
        if devices.rank == 0:
            save_checkpoint(checkpoint, output / FILE_NAME)
    return checkpoint


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """{"training.seed": 0, ...} of nested tables."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _learners(config: Config, splits: Splits, devices: Devices) -> tuple[Network, Criterion, torch.optim.Optimizer]:
    """Network, loss and optimiser as they stand before the first step."""
    device = select_device(local_device(config.training.device, devices))
    warn_of_emulation(config.training, device)
    torch.manual_seed(config.training.seed)
    network = build_network(config, splits.train.class_names, splits.image_format)
    _check_takes(network, splits.train, config)
    _initialise(network, splits.train, config)
    network = network.to(device)
    if not devices.alone:
        joined(network)
    if config.training.channels_last:
        network = network.to(memory_format=torch.channels_last)
    steps_per_epoch = _steps_per_epoch(config, splits.train)
    criterion = build_criterion(config.loss, network, steps_per_epoch=steps_per_epoch)
    optimizer = build_optimizer(network, config.optimizer, classifier=learned_beside(criterion))
    return network, criterion, optimizer


def _row(epoch: int, report: Report, held_out_accuracy: float, *, seconds: float) -> dict[str, float]:
    """What the history keeps of an epoch."""
    return {
        "epoch": epoch + 1.0,
        **report.figures(),
        "held_out_accuracy": held_out_accuracy,
        "seconds": seconds,
        "threads": float(torch.get_num_threads()),
    }


def _take_up(previous: Checkpoint, network: Network, criterion: Criterion, optimizer: torch.optim.Optimizer) -> None:
    """Go on where a checkpoint was saved."""
    network.load_state_dict(previous.network)
    optimizer.load_state_dict(previous.optimizer)
    criterion.step = previous.loss_step
    if isinstance(criterion, RivalLoss):
        criterion.load_state_dict(previous.criterion)


def _fresh_checkpoint(config: Config, splits: Splits, command: str) -> Checkpoint:
    """What is known of a run before its first epoch."""
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


def _steps_per_epoch(config: Config, images: ImageSet) -> int:
    return math.ceil(len(images) / config.training.batch_size)


def train_epoch(
    network: Network,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    config: Config,
    epoch: int,
    reporter: Reporter,
    *,
    devices: Devices = ALONE,
    embed: Embed | None = None,
) -> Report:
    """One pass over the images in an order drawn from (seed, epoch); the running means of the epoch.

    embed: what `parallel` made of the network, where there are several processes.
    """
    embed = embed or network.embed
    seed = config.training.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + 7919 * devices.rank)  # for layers that draw, like dropout
    device = network.mixture.means.device
    steps_per_epoch = _steps_per_epoch(config, images)
    predict = predictor_of(network, criterion)
    report = Report()
    network.train()
    criterion.train()
    for step, (batch, labels, part) in enumerate(_batches(images, config, generator, devices)):
        rate = learning_rate(
            config.optimizer,
            epoch * steps_per_epoch + step,
            steps_per_epoch=steps_per_epoch,
            epochs=config.training.epochs,
        )
        set_learning_rate(optimizer, rate)
        alpha, lambda_ = criterion.alpha, criterion.lambda_
        batch, labels = batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast(config.training, device):
            reached = epoch + step / steps_per_epoch
            batch = attacked(
                network, batch, labels[part.rows], config.adversarial, epoch=reached, generator=generator, part=part
            )
            features = devices.gather(embed(batch), part)
            show(criterion, batch, partial(devices.gather, part=part))
        terms = criterion(features, labels)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        clip_gradient(network, config.optimizer, classifier=learned_beside(criterion))
        optimizer.step()
        with torch.no_grad():
            correct = (predict(features) == labels).sum()
        report.add(terms, correct, len(labels), alpha=alpha, lambda_=lambda_, learning_rate=rate)
        reporter.step(epoch, step, report)
    _check_finite(report, epoch)
    return report


def _check_finite(report: Report, epoch: int) -> None:
    if not math.isfinite(report.figures()["loss"]):
        raise DivergenceError(
            f"the loss is no longer finite in epoch {epoch + 1}: lower optimizer.learning_rate, "
            "or set optimizer.clip_gradient_norm"
        )


@torch.inference_mode()
def accuracy(network: Network, images: ImageSet, predict: Predictor | None = None, devices: Devices = ALONE) -> float:
    """Share of the images whose most likely class is their own: evaluation mode, float32, no margin.

    predict: classes (n,) of features; the network's own mixture by default. Every process of devices embeds a part
    of the images, and has the share of all.
    """
    network.eval()
    device, predict = network.mixture.means.device, predict or network.mixture.predict
    num_batches = math.ceil(len(images) / EVALUATION_BATCH)
    correct = 0
    for batch, labels in zip(
        images.images.tensor_split(num_batches), images.labels.tensor_split(num_batches), strict=True
    ):
        part = devices.part(len(labels))
        features = devices.gather(network.embed(to_unit(batch[part.rows]).to(device)), part)
        correct += int((predict(features).cpu() == labels).sum())
    return correct / len(images)


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


@torch.no_grad()
def _check_takes(network: Network, images: ImageSet, config: Config) -> None:
    """Refuse a backbone that fails on images of this size, by asking it."""
    try:
        network.eval()(to_unit(images.images[:1]))
    except (RuntimeError, AssertionError, ValueError) as error:
        _, height, width = images.images.shape[1:]
        raise ConfigurationError(
            f"network.backbone {config.network.backbone!r} does not take images of {width} x {height}: {error}"
        ) from None
    network.train()


def _batches(
    images: ImageSet, config: Config, generator: torch.Generator, devices: Devices
) -> Iterator[tuple[Float[Tensor, "m c h w"], Int[Tensor, " n"], Part]]:
    """This process's m images of each batch, the labels of all n, and which rows of the batch the images are."""
    order = torch.randperm(len(images), generator=generator)
    for indices in torch.split(order, config.training.batch_size):
        if len(indices) == 1:
            continue  # batch normalisation has no variance of one image
        part = devices.part(len(indices))
        batch = augment(to_unit(images.images[indices[part.rows]]), config.augmentation, generator, part)
        if config.training.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        yield batch, images.labels[indices], part


@torch.no_grad()
def _initialise(network: Network, images: ImageSet, config: Config) -> None:
    """Pixel statistics, priors and, if configured, means, all from the training images."""
    sample = to_unit(images.images[:: max(1, len(images) // 10_000)])
    network.normalise.mean.copy_(sample.mean((0, 2, 3)).view(-1, 1, 1))
    network.normalise.std.copy_(sample.std((0, 2, 3)).clamp_min(1e-3).view(-1, 1, 1))
    if config.mixture.prior != "uniform":
        network.mixture.set_priors(torch.bincount(images.labels, minlength=len(images.class_names)))
    if config.mixture.means_from_data:
        chunks = sample.tensor_split(math.ceil(len(sample) / EVALUATION_BATCH))
        features = torch.cat([network.embed(chunk) for chunk in chunks])
        network.mixture.set_means(features, images.labels[:: max(1, len(images) // 10_000)])


def _previous(config: Config, output: Path) -> Checkpoint | None:
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"{output} is not a folder; choose another --output")
    if not (output / FILE_NAME).exists():
        return None
    previous = load_checkpoint(output)
    if previous.config != config:
        raise CheckpointError(f"{output} holds a run with another configuration; choose another --output")
    return previous


def _check_same_data(previous: Checkpoint, digests: dict[str, str], output: Path) -> None:
    for name, digest in digests.items():
        if previous.split_digests[name] != digest:
            raise CheckpointError(f"{output} was trained on other {name} images than those found now")
