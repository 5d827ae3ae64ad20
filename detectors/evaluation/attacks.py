"""Attacks that do not know the detector, through torchattacks: images -> adversarial images, checked afterwards.

Letters: n images, c channels, h w pixels, k classes. Images and eps are in units of [0, 1].
"""

import logging
import math
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detectors.evaluation.attack_table import ATTACKS, AttackSpec, Plan
from detectors.evaluation.threat import (
    BUDGET_TOLERANCE,
    AttackError,
    Norm,
    check_batch,
    check_eps,
    check_steps,
    confine,
    perturbation_norm,
    undisturbed,
)
from model.network import Network

__all__ = ["ATTACKS", "AttackError", "AttackSpec", "Norm", "check_attack", "run_attack", "target_labels"]

_log = logging.getLogger(__name__)


def check_attack(name: str, eps: float | None, *, targeted: bool = False) -> AttackSpec:
    """The attack of that name, if it can be run so.

    Raises AttackError: unknown name (with those that exist), eps missing, given to an attack that has none,
    or out of range: (0, 1] for linf, (0, inf) for l2; no targeted version.
    """
    if name not in ATTACKS:
        raise AttackError(f"unknown attack {name!r}; there are {', '.join(ATTACKS)}")
    spec = ATTACKS[name]
    if spec.norm == "none" and eps is not None:
        raise AttackError(f"{name} seeks the smallest perturbation and takes no eps, got {eps}")
    if spec.norm != "none":
        check_eps(name, eps, spec.norm)
    if targeted and not spec.targeted_ok:
        able = ", ".join(other.name for other in ATTACKS.values() if other.targeted_ok)
        raise AttackError(f"{name} has no targeted version; those that have: {able}")
    return spec


def check_num_classes(name: str, num_classes: int) -> None:
    """Raises AttackError where a known attack compares more classes than there are."""
    least = ATTACKS[name].least_classes
    if num_classes < least:
        raise AttackError(f"{name} compares {least} classes; this network has {num_classes}")


def run_attack(
    network: Network,
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | None,
    steps: int | None = None,
    targeted: bool = False,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Attack images (n, c, h, w) with true labels (n,); the result is in [0, 1] and in budget, up to rounding.

    Some attacks give an image back as it was where they found nothing. Targets are `target_labels`.
    The network's modes and requires_grad and the global random state are afterwards what they were,
    also after an error.

    Raises AttackError as `check_attack` does, for steps below one, too few classes, and a batch that does not fit.
    """
    spec, num_classes = check_attack(name, eps, targeted=targeted), network.mixture.num_classes
    check_num_classes(name, num_classes)
    check_batch(images, labels, num_classes)
    steps = check_steps(spec.steps or 1) if steps is None else check_steps(steps)
    device = network.mixture.means.device
    with undisturbed(network, seed=seed):
        clean = images.detach().to(device, torch.float32).clone()
        wanted = target_labels(labels, num_classes, seed=seed) if targeted else labels
        plan = Plan(eps=math.inf if eps is None else eps, steps=steps, seed=seed, num_classes=num_classes)
        attack = spec.build(_Logits(network).eval(), plan)
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        found = cast(Tensor, attack(clean, wanted.to(device))).detach()
        return _verified(found, clean, spec=spec, eps=plan.eps).to(images.device)


def target_labels(labels: Int[Tensor, " n"], num_classes: int, *, seed: int) -> Int[Tensor, " n"]:
    """A wrong class for each label, uniform over those, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randint(num_classes - 1, labels.shape, generator=generator).to(labels.device)
    return (labels + 1 + offset) % num_classes


class _Logits(nn.Module):
    """The log joint as torchattacks wants logits: (n, k), float32, positive.

    A shift of a row changes neither posterior nor margin. Relative to the largest, cross entropy keeps its
    gradient where the posterior has rounded to one; above zero, because CW and UPGD mask classes with zeros
    and see no other class if all logits are negative, as a log joint is. Gradients come in the images' own layout,
    which attacks view as rows, whatever that of the network's weights.
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        log_joint: Tensor = self.network(images.flatten(1).view(images.shape)).log_joint.float()
        relative = log_joint - log_joint.amax(1, keepdim=True)
        return relative - relative.detach().amin(1, keepdim=True) + 1


def _verified(found: Tensor, clean: Tensor, *, spec: AttackSpec, eps: float) -> Tensor:
    """Inside the budget and [0, 1] whatever the attack did; what it did wrong is logged."""
    finite = found.isfinite().flatten(1).all(1)
    whole = torch.where(finite.view(-1, 1, 1, 1), found, clean)
    broken = ~finite | _outside(whole, clean, norm=spec.norm, eps=eps)
    if bool(broken.any()):
        _log.warning(
            "%s broke its budget or gave no numbers for %d of %d images; they were projected back",
            spec.name,
            int(broken.sum()),
            len(broken),
        )
    return confine(whole, clean, eps=eps, norm=spec.norm)


def _outside(found: Tensor, clean: Tensor, *, norm: Norm, eps: float) -> Bool[Tensor, " n"]:
    rows = found.flatten(1)
    beyond = (rows < -BUDGET_TOLERANCE).any(1) | (rows > 1 + BUDGET_TOLERANCE).any(1)
    return beyond | (perturbation_norm(found - clean, norm) > eps + BUDGET_TOLERANCE)
