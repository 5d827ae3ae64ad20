"""What a run trains: network, loss and optimiser, as they stand at its start or as its checkpoint holds them."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from model.batch_norm import joined
from model.checkpoint import Checkpoint, build_network
from model.config import Config
from model.criterion import Criterion, build_criterion, learned_beside
from model.data import Splits
from model.devices import Devices
from model.epoch import steps_per_epoch
from model.errors import ConfigurationError
from model.image_set import ImageSet, to_unit
from model.losses.base import RivalLoss
from model.mixture import GaussianMixture
from model.network import Network
from model.optimizer import build_optimizer, with_mixture_state
from model.parallel import Embed, parallel

INITIAL_IMAGES, INITIAL_BATCH = 10_000, 512


class Learners(NamedTuple):
    """All that a step changes. Of a sharded mixture a process has its own classes; a checkpoint has all of them.

    embed: the network's, as `parallel` made it.
    """

    network: Network
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    embed: Embed

    def saved(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with what was learned so far; every process must ask."""
        network, mixture, optimizer = self.network.state_dict(), self.network.mixture, self.optimizer
        mixture_names = [name for name in network if name.startswith("mixture.")]
        network.update({name: mixture.rows_of_all(network[name]) for name in mixture_names})
        return replace(
            checkpoint,
            network=network,
            optimizer=with_mixture_state(optimizer.state_dict(), optimizer, mixture, mixture.rows_of_all),
            loss_step=self.criterion.step,
            criterion=self.criterion.state_dict() if isinstance(self.criterion, RivalLoss) else {},
        )


def build_learners(checkpoint: Checkpoint, splits: Splits, *, device: torch.device, devices: Devices) -> Learners:
    """As they stand before the first step, or after the last that the checkpoint knows.

    Raises ConfigurationError for parts that do not fit one another or the images.
    """
    config = checkpoint.config
    torch.manual_seed(config.training.seed)
    network = _placed(_whole_network(checkpoint, splits), config, device, devices)
    num_steps = steps_per_epoch(config, splits.train)
    criterion = build_criterion(config.loss, network, splits.train.class_names, steps_per_epoch=num_steps)
    optimizer = build_optimizer(network, config.optimizer, classifier=learned_beside(criterion))
    if checkpoint.epoch > 0:
        _take_up(checkpoint, network.mixture, criterion, optimizer)
    return Learners(network, criterion, optimizer, parallel(network, criterion, devices))


def _whole_network(checkpoint: Checkpoint, splits: Splits) -> Network:
    config = checkpoint.config
    network = build_network(config, splits.train.class_names, splits.image_format)
    _check_takes(network, splits.train, config)
    if checkpoint.epoch > 0:
        network.load_state_dict(checkpoint.network)
    else:
        _initialise(network, splits.train, config)
    return network


def _placed(network: Network, config: Config, device: torch.device, devices: Devices) -> Network:
    """This process's, on its device. The mixture is sharded only here, whatever chance and data have made of it."""
    if config.mixture.sharded:
        network.mixture = network.mixture.shard(devices)
    network = network.to(device)
    if not devices.alone:
        joined(network)
    return network.to(memory_format=torch.channels_last) if config.training.channels_last else network


def _take_up(
    previous: Checkpoint, mixture: GaussianMixture, criterion: Criterion, optimizer: torch.optim.Optimizer
) -> None:
    """Go on where a checkpoint was saved."""
    optimizer.load_state_dict(with_mixture_state(previous.optimizer, optimizer, mixture, mixture.rows_here))
    criterion.step = previous.loss_step
    if isinstance(criterion, RivalLoss):
        criterion.load_state_dict(previous.criterion)


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


@torch.no_grad()
def _initialise(network: Network, images: ImageSet, config: Config) -> None:
    """Pixel statistics, priors and, if configured, means, all from the training images."""
    every = max(1, len(images) // INITIAL_IMAGES)
    sample = to_unit(images.images[::every])
    network.normalise.mean.copy_(sample.mean((0, 2, 3)).view(-1, 1, 1))
    network.normalise.std.copy_(sample.std((0, 2, 3)).clamp_min(1e-3).view(-1, 1, 1))
    if config.mixture.prior != "uniform":
        network.mixture.set_priors(torch.bincount(images.labels, minlength=len(images.class_names)))
    if config.mixture.means_from_data:
        network.mixture.set_means(_features(network, sample), images.labels[::every])


def _features(network: Network, sample: Tensor) -> Tensor:
    return torch.cat([network.embed(chunk) for chunk in sample.tensor_split(math.ceil(len(sample) / INITIAL_BATCH))])
