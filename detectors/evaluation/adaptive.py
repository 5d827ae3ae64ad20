"""Attacks that know the detector: they seek images whose class is wrong and that are not flagged.

Carlini and Wagner 2017, "Adversarial Examples Are Not Easily Detected"; Bryniarski et al. 2021, "Evading
Adversarial Example Detection Defenses with Orthogonal Projected Gradient Descent".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detectors.evaluation import directions
from detectors.evaluation.adam import Adam
from detectors.evaluation.directions import Direction, Moment
from detectors.evaluation.hunt import Hunt
from detectors.evaluation.random_search import random_search
from detectors.evaluation.threat import (
    AttackError,
    Norm,
    check_batch,
    check_eps,
    check_steps,
    confine,
    random_start,
    undisturbed,
)
from detectors.screener import Screener

JOINT_WEIGHTS = (0.1, 0.25, 0.63, 1.6)  # of unit gradients; where the two oppose each other, 1 cancels them
HINGE_WEIGHTS = (1.0, 3.0)  # of nats of the class's margin against nats of the alarm's logarithm
FINEST = 0.03  # of eps: the first of Adam's steps, however many they are
ADAPTIVE_STEPS = 200  # of 40 none brings a single image through the shipped bundle, of 200 one brings half
CONVINCING = 0.5  # p-value from which an image is left alone, so that one run tells SR@5 and SR@50


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveSpec:
    """One attack. direction is ascended with each of the weights; without one, no gradient is used.

    stride: what a direction becomes where the budget is an linf ball; in l2 it has its length alone changed.
    by_adam: directions go through Adam's rule first, and steps do not shrink with their number below FINEST.
    """

    name: str
    direction: Direction | None
    stride: Callable[[Tensor], Tensor] = directions.signed
    weights: tuple[float, ...] = (1.0,)
    by_adam: bool = False
    knowledge: Literal["full"] = "full"

    @property
    def white_box(self) -> bool:
        """Whether it follows gradients."""
        return self.direction is not None

    def weights_of(self, restart: int) -> tuple[float, ...]:
        """All of them in the first restart, 0; then one a restart, in turn, for each costs a whole ascent."""
        return self.weights if restart == 0 else (self.weights[(restart - 1) % len(self.weights)],)

    def num_ascents(self, restarts: int) -> int:
        """How many times all steps are taken."""
        return sum(len(self.weights_of(restart)) for restart in range(restarts))


_ROWS = (
    AdaptiveSpec(name="joint", direction=directions.joint, weights=JOINT_WEIGHTS),
    AdaptiveSpec(
        name="joint-adam", direction=directions.hinged, stride=directions.whole, weights=HINGE_WEIGHTS, by_adam=True
    ),
    AdaptiveSpec(name="selective-pgd", direction=directions.selective),
    AdaptiveSpec(name="smooth-pgd", direction=directions.smooth, stride=directions.proportional),
    AdaptiveSpec(name="orthogonal-pgd", direction=directions.orthogonal, weights=(1.0, 0.0)),
    AdaptiveSpec(name="feature-matching", direction=directions.feature_matching),
    AdaptiveSpec(name="random-search", direction=None),
)
ADAPTIVE: dict[str, AdaptiveSpec] = {row.name: row for row in _ROWS}


def check_adaptive(name: str, eps: float | None, norm: Norm = "linf") -> AdaptiveSpec:
    """The adaptive attack of that name.

    Raises AttackError: unknown name (with those that exist), another norm than linf or l2, eps out of its range.
    """
    if name not in ADAPTIVE:
        raise AttackError(f"unknown adaptive attack {name!r}; there are {', '.join(ADAPTIVE)}")
    if norm == "none":
        raise AttackError(f"{name} needs a budget: norm linf or l2")
    check_eps(name, eps, norm)
    return ADAPTIVE[name]


def run_adaptive(
    screener: Screener,
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = ADAPTIVE_STEPS,
    restarts: int = 1,
    seed: int = 0,
    draws: int = 1,
) -> Float[Tensor, "n c h w"]:
    """Attack images (n, c, h, w) with true labels (n,); the best found of each, over steps, weights and restarts.

    Best: class wrong, then the rest; the higher p-value among equals, so the same images serve every false-alarm
    rate. An image is left alone once its class is wrong at a p-value above CONVINCING; all others stay open,
    whatever the restart.

    The first restart begins at the clean images and ascends with every weight. Later ones begin at random points of
    the ball and take the weights in turn, one each: with all of them a restart would cost up to four times as
    much. Every ascent takes all steps, each one forward pass and a backward pass or two; random-search takes ten
    queries a step. draws: gradients are averaged over so many passes, for a screener that is random.

    Raises AttackError as `check_adaptive` does, for steps, restarts or draws below one, and for a bad batch.
    """
    spec = check_adaptive(name, eps, norm)
    check_batch(images, labels, screener.network.mixture.num_classes)
    check_steps(steps)
    if restarts < 1 or draws < 1:
        raise AttackError(f"restarts and draws must be at least 1, got {restarts} and {draws}")
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(screener, seed=seed):
        clean = images.detach().to(screener.device, torch.float32).clone()
        hunt = Hunt(screener, clean, labels.to(screener.device), enough=CONVINCING)
        for restart in range(restarts):
            if spec.direction is None:
                random_search(hunt, eps=eps, norm=norm, steps=steps, generator=generator)
                continue
            chase = _Chase(
                spec=spec,
                direction=spec.direction,
                draws=draws,
                rank=restart,
                eps=eps,
                norm=norm,
                steps=steps,
            )
            for weight in spec.weights_of(restart):
                start = clean if restart == 0 else random_start(clean, eps=eps, norm=norm, generator=generator)
                chase.run(hunt, start, weight=weight)
        return hunt.best.to(images.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chase:
    """One ascent of every image that is still open."""

    spec: AdaptiveSpec
    direction: Direction
    draws: int
    rank: int
    eps: float
    norm: Norm
    steps: int

    def run(self, hunt: Hunt, start: Float[Tensor, "n c h w"], *, weight: float) -> None:
        current, adam = start.clone(), Adam(start) if self.spec.by_adam else None
        for step in range(self.steps):
            rows = hunt.open_rows()
            if len(rows) == 0:
                return
            moved = current[rows] + self._size(step) * self._ahead(hunt, rows, current[rows], weight, adam)
            current[rows] = confine(moved, hunt.images[rows], eps=self.eps, norm=self.norm)
        rows = hunt.open_rows()
        if len(rows) > 0:
            hunt.judge(rows, current[rows])

    def _ahead(
        self, hunt: Hunt, rows: Int[Tensor, " m"], images: Float[Tensor, "m c h w"], weight: float, adam: Adam | None
    ) -> Float[Tensor, "m c h w"]:
        """Judge images and tell the steepest way on, from one pass, whose graph ends with the call."""
        look = hunt.judge(rows, images)
        moment = Moment(screener=hunt.screener, look=look, weight=weight, draws=self.draws, rank=self.rank)
        direction = self.direction(moment)
        if adam is not None:
            direction = adam(rows, direction)
        return self.spec.stride(direction) if self.norm == "linf" else directions.unit(direction)

    def _size(self, step: int) -> float:
        """Shrinks linearly, coarse to fine; all steps add up to 2.5 eps as `Plan.step_size` does.

        Adam's moves are far below one where a direction keeps turning, so many short ones would lead nowhere.
        """
        first = max(5 / (self.steps + 1), FINEST if self.spec.by_adam else 0)
        return self.eps * min(1, first * (1 - step / self.steps))
