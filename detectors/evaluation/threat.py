"""What every attack shares: norms, budgets, and leaving the network and the process as they were.

Letters: n images, c channels, h w pixels. Images and eps are in units of [0, 1].
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.errors import LGMGuardError

Norm = Literal["linf", "l2", "none"]
BUDGET_TOLERANCE = 1e-5  # absolute, in the attack's norm: what float32 may add to a budget


class AttackError(LGMGuardError):
    """An attack that does not exist or cannot be run as asked."""


def check_eps(name: str, eps: float | None, norm: Norm) -> float:
    """Raises AttackError unless eps is a budget of that norm for images in [0, 1]."""
    if eps is None:
        raise AttackError(f"{name} needs eps, its {norm} budget for images in [0, 1]")
    if not (math.isfinite(eps) and eps > 0):
        raise AttackError(f"eps of {name} must be above 0 and finite, got {eps}")
    if norm == "linf" and eps > 1:
        raise AttackError(f"eps of {name} must lie in (0, 1], got {eps}: images are in [0, 1], so 8 is 8/255")
    return eps


def confine(
    candidates: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"], *, eps: float, norm: Norm
) -> Float[Tensor, "n c h w"]:
    """The nearest points of the eps-ball around images, then of [0, 1], which never leads out of the ball."""
    change = candidates - images
    if norm == "linf":
        change = change.clamp(-eps, eps)
    elif norm == "l2":
        length = perturbation_norm(change, norm).clamp_min(1e-30)
        change = change * (eps / length).clamp(max=1).view(-1, 1, 1, 1)
    return (images + change).clamp(0, 1)


def random_start(
    images: Float[Tensor, "n c h w"], *, eps: float, norm: Norm, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """A random point of each image's ball: uniform for linf; for l2 any direction, radius uniform up to eps."""
    change = torch.empty(images.shape)
    if norm == "linf":
        change.uniform_(-eps, eps, generator=generator)
    else:
        change.normal_(generator=generator)
        radius = eps * torch.rand(len(images), generator=generator)
        change *= (radius / perturbation_norm(change, norm)).view(-1, 1, 1, 1)
    return confine(images + change.to(images), images, eps=eps, norm=norm)


def perturbation_norm(change: Float[Tensor, "n c h w"], norm: Norm) -> Float[Tensor, " n"]:
    """Size of each image's perturbation: largest pixel for linf, Euclidean otherwise."""
    size: Tensor = torch.linalg.vector_norm(change.flatten(1), math.inf if norm == "linf" else 2, dim=1)
    return size


@contextmanager
def undisturbed(network: nn.Module, *, seed: int) -> Iterator[None]:
    """Evaluation mode, frozen parameters, seeded randomness and gradients enabled; all restored on the way out."""
    modes = [(module, module.training) for module in network.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    devices = {parameter.device for parameter, _ in frozen if parameter.device.type == "cuda"}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        network.eval().requires_grad_(False)
        with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in frozen:
            parameter.requires_grad_(required)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def check_batch(images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raises AttackError unless images are floats (n >= 1, c, h, w) in [0, 1] with n labels below num_classes."""
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise AttackError(f"images must be floats (n >= 1, c, h, w), got {images.dtype} {tuple(images.shape)}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise AttackError("images have values that are not in [0, 1]")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise AttackError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise AttackError(f"labels must lie in 0 to {num_classes - 1}, the network's classes")


def check_steps(steps: int) -> int:
    """Raises AttackError for fewer than one step."""
    if steps < 1:
        raise AttackError(f"an attack takes at least 1 step, got {steps}")
    return steps
