"""Optimisers with the parameter groups that a Gaussian head wants, and learning rates by step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from model.config import OptimizerConfig
from model.network import Network


def build_optimizer(
    network: Network, config: OptimizerConfig, *, classifier: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW over four groups: decayed weights, other weights, means, the rest.

    Means, variances and priors have no weight decay (a decayed log-variance is pulled to one), and
    their own multiples of the learning rate. classifier: what a rival loss learns beside the network; its weights
    are weights like others.
    """
    body = [parameter for name, parameter in network.named_parameters() if not name.startswith("mixture.")]
    body += classifier
    head = [parameter for name, parameter in sorted(network.mixture.named_parameters()) if name != "means"]
    parted: list[tuple[list[nn.Parameter], float, float]] = [
        ([parameter for parameter in body if parameter.ndim > 1], config.weight_decay, 1.0),
        ([parameter for parameter in body if parameter.ndim <= 1], 0.0, 1.0),
        ([network.mixture.means], 0.0, config.means_multiplier),
        (head, 0.0, config.variances_multiplier),
    ]
    groups = [
        {"params": parameters, "weight_decay": decay, "multiplier": multiplier}
        for parameters, decay, multiplier in parted
        if parameters
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


def learning_rate(config: OptimizerConfig, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The rate of training step `step` (from 0): a pure function, so a resumed run needs no state for it."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.schedule == "steps":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return config.learning_rate * 0.1**passed
    progress = (step - warmup) / max(1.0, epochs * steps_per_epoch - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group to its multiple of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def clip_gradient(network: nn.Module, config: OptimizerConfig, *, classifier: Iterable[nn.Parameter] = ()) -> None:
    """Scale the gradient down to the configured norm, where there is one."""
    if config.clip_gradient_norm is not None:
        nn.utils.clip_grad_norm_([*network.parameters(), *classifier], config.clip_gradient_norm)
