"""Optimisers with the parameter groups that a Gaussian head wants, and learning rates by step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.config import OptimizerConfig
from model.mixture import GaussianMixture
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


def clip_gradient(network: Network, config: OptimizerConfig, *, classifier: Iterable[nn.Parameter] = ()) -> None:
    """Scale the gradient, of a sharded mixture that of all classes, down to the configured norm, if there is one."""
    limit, mixture = config.clip_gradient_norm, network.mixture
    parameters = [*network.parameters(), *classifier]
    if limit is None:
        return
    if mixture.peers.alone:
        nn.utils.clip_grad_norm_(parameters, limit)
        return
    own = {id(parameter) for parameter in mixture.parameters()}
    everywhere = _squared_norm(parameter for parameter in parameters if id(parameter) not in own)
    norm = (mixture.peers.sum_(_squared_norm(mixture.parameters())) + everywhere).sqrt()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def _squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).square()


def with_mixture_state(
    state: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    mixture: GaussianMixture,
    change: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """The state with what is remembered of each class, such as momenta (k, ...), changed."""
    own = {id(parameter) for parameter in mixture.parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    remembered = {
        index: {name: change(value) if _has_rows(value) else value for name, value in values.items()}
        for index, values in state["state"].items()
        if id(parameters[index]) in own
    }
    return state | {"state": state["state"] | remembered}


def _has_rows(value: object) -> bool:
    """Not a number of steps."""
    return isinstance(value, Tensor) and value.ndim > 0
