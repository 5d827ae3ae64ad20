"""The table of torchattacks' attacks: one row each. A new one is a new row.

Not in it: PIFGSM, PIFGSMPP and TIFGSM, whose kernels have three channels; SparseFool, which today's NumPy warns of;
EADL1 and EADEN, whose steps overflow where a batch resists; GN and VANILA, which do not attack; PGDRS and PGDRSL2,
made for networks that are smoothed by noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from detectors.evaluation.threat import Norm

CW_INTERIOR = 1e-3  # of the [-1, 1] that CW's tanh maps to: at the very ends its gradient is zero
PUSHES = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0)  # of DeepFool's perturbation, tried in turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one run of an attack is built from; eps is infinite for attacks without a budget."""

    eps: float
    steps: int
    seed: int
    num_classes: int

    @property
    def step_size(self) -> float:
        """2.5 eps / steps (Madry et al. 2018), at most eps: every point of the ball can be reached."""
        return min(self.eps, 2.5 * self.eps / self.steps)


Build = Callable[[nn.Module, Plan], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackSpec:
    """One attack. norm "none": the smallest perturbation is sought and there is no eps.

    steps: those taken unless asked otherwise, queries for attacks that see no gradient; None where the
    attack has a fixed number and a wish is ignored. white_box: it follows gradients of the network.
    least_classes: it compares so many.
    """

    name: str
    norm: Norm
    steps: int | None
    build: Build
    targeted_ok: bool = True
    white_box: bool = True
    least_classes: int = 2


def _cw(model: nn.Module, plan: Plan) -> Any:
    """torchattacks starts from atanh(+-1) where a pixel is 0 or 1: such pixels, most of MNIST's, would never move."""
    attack = torchattacks.CW(model, c=1, kappa=0, steps=plan.steps, lr=0.05)
    edge = 1 - CW_INTERIOR
    attack.inverse_tanh_space = lambda images: torch.atanh((2 * images - 1).clamp(-edge, edge))
    return attack


def _deepfool(model: nn.Module, plan: Plan) -> Any:
    """torchattacks clips every step to [0, 1] and then often stops just before the boundary; a push leads over it."""
    attack = torchattacks.DeepFool(model, steps=plan.steps)
    return lambda images, labels: _pushed_over(model, images, attack(images, labels), labels)


@torch.no_grad()
def _pushed_over(model: nn.Module, images: Tensor, found: Tensor, labels: Tensor) -> Tensor:
    """The overshoot of Moosavi-Dezfooli et al. 2016: x + (1 + eta) r, the first of PUSHES that changes the class."""
    pushed, right = found, torch.arange(len(found), device=found.device)
    for factor in PUSHES:
        right = right[model(pushed[right]).argmax(1) == labels[right]]
        if len(right) == 0:
            break
        further = images[right] + factor * (found[right] - images[right])
        pushed = pushed.index_copy(0, right, further.clamp(0, 1))
    return pushed


def _auto_attack(norm: str) -> Build:
    """Croce and Hein 2020, standard version; torchattacks' own takes 10 steps where the paper takes 100."""

    def build(model: nn.Module, plan: Plan) -> Any:
        given = {"eps": plan.eps, "norm": norm, "seed": plan.seed}
        return torchattacks.MultiAttack(
            [
                torchattacks.APGD(model, steps=plan.steps, **given),
                torchattacks.APGDT(model, steps=plan.steps, n_classes=plan.num_classes, **given),
                torchattacks.FAB(model, steps=plan.steps, multi_targeted=True, n_classes=plan.num_classes, **given),
                torchattacks.Square(model, n_queries=50 * plan.steps, **given),
            ]
        )

    return build


def _spsa(model: nn.Module, plan: Plan) -> Any:
    return torchattacks.SPSA(model, eps=plan.eps, nb_iter=plan.steps, lr=plan.step_size)


def _one_pixel(model: nn.Module, plan: Plan) -> Any:
    return torchattacks.OnePixel(model, steps=plan.steps)


def _pixle(model: nn.Module, plan: Plan) -> Any:
    return torchattacks.Pixle(model, max_iterations=plan.steps)


def _apgd_targeted(model: nn.Module, plan: Plan) -> Any:
    return torchattacks.APGDT(model, eps=plan.eps, steps=plan.steps, seed=plan.seed, n_classes=plan.num_classes)


def _iterated(attack: Any, **fixed: Any) -> Build:
    """torchattacks' many that take eps, alpha and steps."""
    return lambda model, plan: attack(model, eps=plan.eps, alpha=plan.step_size, steps=plan.steps, **fixed)


def _apgd(norm: str, loss: str = "ce") -> Build:
    return lambda model, plan: torchattacks.APGD(
        model, eps=plan.eps, norm=norm, steps=plan.steps, seed=plan.seed, loss=loss
    )


def _square(norm: str) -> Build:
    return lambda model, plan: torchattacks.Square(
        model, eps=plan.eps, norm=norm, n_queries=plan.steps, seed=plan.seed
    )


def _fab(norm: str) -> Build:
    return lambda model, plan: torchattacks.FAB(
        model, eps=plan.eps, norm=norm, steps=plan.steps, seed=plan.seed, n_classes=plan.num_classes
    )


def _jsma(model: nn.Module, plan: Plan) -> Any:
    """torchattacks' own aims at the next of ten classes, however many there are."""
    attack = torchattacks.JSMA(model)
    attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % plan.num_classes, quiet=True)
    return attack


def _row(name: str, norm: Norm, steps: int | None, build: Build, **rest: Any) -> AttackSpec:
    return AttackSpec(name=name, norm=norm, steps=steps, build=build, **rest)


_ROWS = (
    _row("fgsm", "linf", None, lambda model, plan: torchattacks.FGSM(model, eps=plan.eps)),
    _row("bim", "linf", 10, _iterated(torchattacks.BIM)),
    _row("pgd", "linf", 40, _iterated(torchattacks.PGD)),
    _row("pgd-l2", "l2", 40, _iterated(torchattacks.PGDL2)),
    _row("mifgsm", "linf", 10, _iterated(torchattacks.MIFGSM)),
    _row("deepfool", "none", 10, _deepfool, targeted_ok=False),
    _row("cw", "none", 200, _cw),
    _row("apgd", "linf", 100, _apgd("Linf"), targeted_ok=False),
    _row("apgd-l2", "l2", 100, _apgd("L2"), targeted_ok=False),
    _row("apgd-dlr", "linf", 100, _apgd("Linf", loss="dlr"), targeted_ok=False, least_classes=3),
    _row("apgdt", "linf", 100, _apgd_targeted, targeted_ok=False, least_classes=4),
    _row("autoattack", "linf", 100, _auto_attack("Linf"), targeted_ok=False, least_classes=4),
    _row("autoattack-l2", "l2", 100, _auto_attack("L2"), targeted_ok=False, least_classes=4),
    _row("square", "linf", 1000, _square("Linf"), white_box=False),
    _row("square-l2", "l2", 1000, _square("L2"), white_box=False),
    _row("rfgsm", "linf", 10, _iterated(torchattacks.RFGSM)),
    _row("ffgsm", "linf", None, lambda model, plan: torchattacks.FFGSM(model, eps=plan.eps, alpha=1.25 * plan.eps)),
    _row("eotpgd", "linf", 40, _iterated(torchattacks.EOTPGD)),
    _row("tpgd", "linf", 40, _iterated(torchattacks.TPGD), targeted_ok=False),
    _row("upgd", "linf", 40, _iterated(torchattacks.UPGD, loss="margin", random_start=True)),
    _row("nifgsm", "linf", 10, _iterated(torchattacks.NIFGSM)),
    _row("sinifgsm", "linf", 10, _iterated(torchattacks.SINIFGSM)),
    _row("vmifgsm", "linf", 10, _iterated(torchattacks.VMIFGSM)),
    _row("vnifgsm", "linf", 10, _iterated(torchattacks.VNIFGSM)),
    _row("difgsm", "linf", 10, _iterated(torchattacks.DIFGSM)),
    _row("jitter", "linf", 10, _iterated(torchattacks.Jitter)),
    _row("fab", "linf", 20, _fab("Linf"), targeted_ok=False),
    _row("fab-l2", "l2", 20, _fab("L2"), targeted_ok=False),
    _row("spsa", "linf", 10, _spsa, white_box=False),
    _row("jsma", "none", None, _jsma),
    _row("onepixel", "none", 10, _one_pixel, targeted_ok=False, white_box=False),
    _row("pixle", "none", 10, _pixle, white_box=False),
)
ATTACKS: dict[str, AttackSpec] = {row.name: row for row in _ROWS}
