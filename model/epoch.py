"""One pass over the training images, and the measure of what was learned.

Several processes draw what one would draw, and each works on its rows of every batch, so they follow one process's
curve but for rounding.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.adversarial import attacked
from model.augmentation import augment
from model.config import Config
from model.criterion import Criterion, Predictor, draw_alike, learned_beside, predictor_of, show
from model.devices import ALONE, Devices
from model.errors import DivergenceError
from model.image_set import ImageSet, to_unit
from model.network import Network
from model.optimizer import clip_gradient, learning_rate, set_learning_rate
from model.parallel import Embed
from model.part import Part
from model.precision import autocast
from model.training_log import Report, Reporter

EVALUATION_BATCH = 512


def steps_per_epoch(config: Config, images: ImageSet) -> int:
    """Batches of an epoch, the last one perhaps smaller."""
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
    generator = _seeded(config, epoch, devices)
    num_steps = steps_per_epoch(config, images)
    predict, report = predictor_of(network, criterion), Report()
    draw_alike(criterion, generator)
    network.train()
    criterion.train()
    for step, batch in enumerate(_batches(images, config, generator, devices, network.mixture.means.device)):
        rate = _set_rate(optimizer, config, epoch * num_steps + step, num_steps)
        alpha, lambda_ = criterion.alpha, criterion.lambda_
        with autocast(config.training, batch.labels.device):
            shown = _attacked(network, batch, config, epoch=epoch + step / num_steps, generator=generator)
            features = devices.gather((embed or network.embed)(shown), batch.part)
            show(criterion, shown, partial(devices.gather, part=batch.part))
        with torch.no_grad():  # by whom the batch met: afterwards its labels have been learned from
            correct = (predict(features) == batch.labels).sum()
        terms = criterion(features, batch.labels)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        clip_gradient(network, config.optimizer, classifier=learned_beside(criterion))
        optimizer.step()
        report.add(terms, correct, len(batch.labels), alpha=alpha, lambda_=lambda_, learning_rate=rate)
        reporter.step(epoch, step, report)
    _check_finite(report.figures()["loss"], f"the loss is no longer finite in epoch {epoch + 1}")
    return report


class _Batch(NamedTuple):
    """This process's m images of a batch, the labels of all n, and which rows of the batch the images are."""

    images: Float[Tensor, "m c h w"]
    labels: Int[Tensor, " n"]
    part: Part


def _batches(
    images: ImageSet, config: Config, generator: torch.Generator, devices: Devices, device: torch.device
) -> Iterator[_Batch]:
    """Augmented and on the device, in an order that the generator draws."""
    order = torch.randperm(len(images), generator=generator)
    for indices in torch.split(order, config.training.batch_size):
        if len(indices) == 1:
            continue  # batch normalisation has no variance of one image
        part = devices.part(len(indices))
        batch = augment(to_unit(images.images[indices[part.rows]]), config.augmentation, generator, part)
        if config.training.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        labels = images.labels[indices].to(device, non_blocking=True)
        yield _Batch(batch.to(device, non_blocking=True), labels, part)


def _seeded(config: Config, epoch: int, devices: Devices) -> torch.Generator:
    """Whence all of an epoch's chance comes, but for layers that draw, like dropout: each process for itself."""
    seed = config.training.seed * 1_000_003 + epoch
    torch.manual_seed(seed + 7919 * devices.rank)
    return torch.Generator().manual_seed(seed)


def _set_rate(optimizer: torch.optim.Optimizer, config: Config, step: int, num_steps: int) -> float:
    """The learning rate of a step of the run, which the optimiser then has; num_steps: of an epoch."""
    rate = learning_rate(config.optimizer, step, steps_per_epoch=num_steps, epochs=config.training.epochs)
    set_learning_rate(optimizer, rate)
    return rate


def _attacked(
    network: Network, batch: _Batch, config: Config, *, epoch: float, generator: torch.Generator
) -> Float[Tensor, "m c h w"]:
    images, labels, part = batch
    return attacked(
        network, images, labels[part.rows], config.adversarial, epoch=epoch, generator=generator, part=part
    )


def _check_finite(value: float, told: str) -> None:
    if not math.isfinite(value):
        raise DivergenceError(f"{told}: lower optimizer.learning_rate, or set optimizer.clip_gradient_norm")


@torch.inference_mode()
def accuracy(network: Network, images: ImageSet, predict: Predictor | None = None, devices: Devices = ALONE) -> float:
    """Share of the images whose most likely class is their own: evaluation mode, float32, no margin.

    predict: classes (n,) of features; the network's own mixture by default. Every process of devices embeds a part
    of the images, and has the share of all.

    Raises DivergenceError for features that are not finite: of the last step of a run no loss tells.
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
        _check_finite(float(features.sum()), "features of images held out are no longer finite")
        correct += int((predict(features).cpu() == labels).sum())
    return correct / len(images)
