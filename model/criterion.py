"""The loss that a configuration asks for, who classifies in training, and the Gaussians of losses that have none."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint, load_checkpoint
from model.errors import CheckpointError, ConfigurationError
from model.image_set import ImageSet, to_unit
from model.loss_config import LossConfig, build_schedule
from model.losses.base import RivalLoss
from model.losses.distillation import DistillationLoss
from model.losses.known import RIVALS
from model.losses.lgm import LGMLoss
from model.losses.noisy_softmax import NoisySoftmaxLoss
from model.network import Network

Criterion = LGMLoss | RivalLoss
Classifier = Callable[[Tensor], Tensor]  # features (n, d) -> scores (n, k)
Predictor = Callable[[Tensor], Tensor]  # features (n, d) -> classes (n,)

FITTING_BATCH = 512
NUM_FITTING_IMAGES = 50_000  # evenly spaced; a class's mean and variances need no more


def build_criterion(
    config: LossConfig, network: Network, class_names: tuple[str, ...], *, steps_per_epoch: int
) -> Criterion:
    """The loss over this network's features, on its device; class_names: of the data, by index.

    Raises ConfigurationError for an option out of range, a library that is missing or a teacher of other classes,
    CheckpointError for one that cannot teach.
    """
    if config.name not in RIVALS:
        return LGMLoss(
            network.mixture,
            alpha=0.0 if config.name == "gm" else build_schedule(config.alpha, steps_per_epoch),
            lambda_=build_schedule(config.lambda_, steps_per_epoch),
            block_size=config.block_size,
        )
    mixture = network.mixture
    options: dict[str, Any] = dict(config.options)
    if config.teacher is not None:
        options["teacher"] = _teacher(config.teacher, network, class_names)
    return RIVALS[config.name](mixture.num_classes, mixture.num_features, **options).to(mixture.means.device)


def restore_criterion(checkpoint: Checkpoint, network: Network) -> Criterion:
    """The loss as it stood when the checkpoint of this network was saved, in evaluation mode."""
    criterion = build_criterion(checkpoint.config.loss, network, checkpoint.class_names, steps_per_epoch=1)
    if isinstance(criterion, RivalLoss):
        try:
            criterion.load_state_dict(checkpoint.criterion)
        except RuntimeError as error:
            raise CheckpointError(f"its classifier does not fit its configuration: {error}") from None
    return criterion.eval()


def classifier_of(network: Network, criterion: Criterion) -> Classifier:
    """Who tells the class while the loss is learned: the loss's own classifier, or the mixture."""
    return criterion.logits if isinstance(criterion, RivalLoss) else network.mixture


def predictor_of(network: Network, criterion: Criterion) -> Predictor:
    """The same one's answers: the mixture finds them without holding the scores of every class."""
    if isinstance(criterion, RivalLoss):
        return lambda features: criterion.logits(features).argmax(1)
    return network.mixture.predict


def learned_beside(criterion: Criterion) -> Iterable[nn.Parameter]:
    """What the optimiser must be given beside the network's parameters."""
    return criterion.parameters() if isinstance(criterion, RivalLoss) else ()


def draw_alike(criterion: Criterion, generator: torch.Generator) -> None:
    """Let a loss that draws do so from what every process draws alike: each computes that of the whole batch."""
    if isinstance(criterion, NoisySoftmaxLoss):
        criterion.generator = generator


def show(criterion: Criterion, images: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
    """Let a loss that learns from a teacher see the whole batch, which several processes may have to gather."""
    if isinstance(criterion, DistillationLoss):
        criterion.see(gather(images))


@torch.no_grad()
def fit_gaussians(network: Network, images: ImageSet) -> None:
    """Set means and variances (and priors that are not uniform) to those of the features of training images.

    For a network whose loss models no density: class by class the maximum-likelihood Gaussians, variances floored.
    """
    network.eval()
    device = network.mixture.means.device
    chosen = torch.arange(0, len(images), math.ceil(len(images) / NUM_FITTING_IMAGES))
    labels = images.labels[chosen].to(device)
    batches = (to_unit(images.images[rows]).to(device) for rows in torch.split(chosen, FITTING_BATCH))
    features = torch.cat([network.embed(batch) for batch in batches])
    network.mixture.set_means(features, labels)
    network.mixture.set_variances(features, labels)
    if network.mixture.prior != "uniform":
        network.mixture.set_priors(torch.bincount(images.labels, minlength=len(images.class_names)).to(device))


def _teacher(path: str, network: Network, class_names: tuple[str, ...]) -> Classifier:
    """Images -> logits of a finished checkpoint's network."""
    checkpoint = load_checkpoint(Path(path))
    if not checkpoint.finished:
        raise CheckpointError(f"loss.teacher: {path} is not finished; run its lgm train again")
    if (known := checkpoint.class_names) != class_names:
        told, given = (", ".join(names[:20]) for names in (known, class_names))
        raise ConfigurationError(
            f"loss.teacher: {path} knows {len(known)} classes ({told}), not the data's ({given})"
        )
    teacher = checkpoint.build_network().to(network.mixture.means.device).requires_grad_(False)
    if teacher.normalise.mean.shape != network.normalise.mean.shape:
        raise ConfigurationError(f"loss.teacher: {path} takes images of other channels")
    tell = classifier_of(teacher, restore_criterion(checkpoint, teacher))
    return lambda images: tell(teacher.embed(images))
