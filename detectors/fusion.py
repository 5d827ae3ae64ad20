"""Several detectors' scores -> one: the logarithm of the sum of 1 / p, the harmonic mean of p-values made smooth.

Each kind of attack shows in one detector or two and leaves the others calm. A product of p-values (Fisher's) lets the
calm ones outvote the one that saw it; the harmonic mean follows whoever is most surprised, and costs each of e
detectors at most a factor e of its own p-value.

A conformal p-value has steps, ends at 1 / (n + 1) and has no gradient. The surprise -log p of a score is taken
from a smooth estimate of the clean scores' survival function instead: it orders inputs beyond the
furthest clean score too, and an attack on the verdict can follow its gradient. What comes out is calibrated
again on clean data of its own, so nothing rests on the estimate or on detectors being independent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.errors import CalibrationError

LEAST_SCORES = 8  # clean scores beyond the last knot: fewer say too little about the tail
TIED = 1e-5  # the relative width of a rise between scores that are equal


class Surprise(nn.Module):
    """-log P(clean score >= s | predicted class), in nats, rising and continuous.

    knots (k, m): the scores that a share 2^-j of a class's clean scores reach, j = 0 .. m - 1; straight lines
    between them. Beyond the last the survival falls exponentially, with tails (k,) the mean excess over it, the
    maximum-likelihood estimate. Below the first it goes on down to -log 2, so that a gradient is left everywhere
    and yet no detector's calm outweighs another's alarm.
    """

    knots: Tensor
    tails: Tensor
    slopes: Tensor  # 1 / the width of every step, the tail's last
    highest: Tensor  # steps climbed at most between two knots: one, beyond the last without end
    gains: Tensor  # nats a step

    def __init__(self, knots: Float[Tensor, "k m"], tails: Float[Tensor, " k"]):
        super().__init__()
        self.register_buffer("knots", knots)
        self.register_buffer("tails", tails)
        between = [1.0] * (knots.shape[1] - 1)
        slopes = 1 / torch.cat([knots.diff(dim=1), tails.unsqueeze(1)], 1)
        self.register_buffer("slopes", slopes, persistent=False)
        self.register_buffer("highest", knots.new_tensor([*between, math.inf]), persistent=False)
        self.register_buffer("gains", knots.new_tensor([*(math.log(2) for _ in between), 1.0]), persistent=False)

    @classmethod
    def fit(cls, scores: Float[Tensor, " n"], class_index: Int[Tensor, " n"], num_classes: int) -> "Surprise":
        """From clean scores and the classes predicted for them.

        Raises CalibrationError for a score that is not finite, and for a class without any.
        """
        if not bool(scores.isfinite().all()):
            raise CalibrationError("a calibration score is not finite: the network does not judge clean data")
        rows = [scores[class_index == index].sort().values for index in range(num_classes)]
        if not all(map(len, rows)):
            raise CalibrationError("too few calibration images: none is left to tell how surprising a score is")
        num_knots = max(_num_knots(len(row)) for row in rows)
        found = [_knots_and_tail(row, num_knots) for row in rows]
        return cls(torch.stack([knots for knots, _ in found]), torch.stack([tail for _, tail in found]))

    def forward(self, scores: Float[Tensor, " n"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Surprises, differentiable in the scores; a score that is not a number has no end to it."""
        steps = (scores.unsqueeze(1) - self.knots[class_index]) * self.slopes[class_index]
        climbed = torch.minimum(steps.clamp_min(0), self.highest) @ self.gains
        surprises = torch.add(climbed, nn.functional.elu(steps[:, 0].clamp_max(0)), alpha=math.log(2))
        return surprises.nan_to_num(nan=math.inf, posinf=math.inf)


def _num_knots(count: int) -> int:
    """As many as leave LEAST_SCORES beyond the last; at least the first."""
    return 1 + max(0, int(math.log2(max(count, 1) / LEAST_SCORES)))


def _knots_and_tail(row: Float[Tensor, " n"], num_knots: int) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
    """Knots of one class from its sorted scores; those it has too few scores for lie on its exponential tail."""
    order = torch.arange(num_knots).to(row)
    survivals = 0.5 ** torch.arange(_num_knots(len(row)), dtype=torch.float64)
    knots = row[((1 - survivals) * (len(row) - 1)).long().to(row.device)]
    least_gap = TIED * (1 + row.abs().amax())  # scores may tie, and a rise must still have a width
    tail = (row[row >= knots[-1]] - knots[-1]).mean().clamp_min(least_gap)
    further = knots[-1] + tail * math.log(2) * order[1 : 1 + num_knots - len(knots)]
    return torch.cat([knots, further]) + least_gap * order, tail


class Fusion(nn.Module):
    """score = log sum over detectors of exp(surprise at their scores), in nats (Good 1958; Wilson, PNAS 2019).

    surprise: of e detectors and k classes at once, its rows those of the first name's classes, then the next one's.
    """

    def __init__(self, names: Sequence[str], surprise: Surprise):
        super().__init__()
        self.names = tuple(names)
        self.surprise = surprise

    @classmethod
    def fit(cls, scores: Mapping[str, Tensor], class_index: Int[Tensor, " n"], num_classes: int) -> "Fusion":
        """From the clean scores (n,) of each detector that decides, by name. Raises as `Surprise.fit` does.

        A class with fewer than LEAST_SCORES takes those of all classes for its own: a few say nothing of its tail,
        and without any it would never be flagged.
        """
        chosen, classes = _borrow(class_index, num_classes)
        stacked, rows = stack_rows([of[chosen] for of in scores.values()], classes, num_classes)
        return cls(tuple(scores), Surprise.fit(stacked, rows, len(scores) * num_classes))

    def forward(self, scores: Mapping[str, Tensor], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Fused scores in nats from the scores (n,) of each detector by name; higher = more suspicious."""
        return combine(self.surprises(scores, class_index))

    def surprises(self, scores: Mapping[str, Tensor], class_index: Int[Tensor, " n"]) -> Float[Tensor, "e n"]:
        """The surprise at each detector's scores, in the order of `names`."""
        num_classes = len(self.surprise.tails) // len(self.names)
        stacked, rows = stack_rows([scores[name] for name in self.names], class_index, num_classes)
        surprises: Tensor = self.surprise(stacked, rows)
        return surprises.view(len(self.names), -1)


def _borrow(class_index: Int[Tensor, " n"], num_classes: int) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Which scores to take, and for which class each: all of them for a class that has few."""
    counts = class_index.bincount(minlength=num_classes)
    own = torch.nonzero(counts[class_index] >= LEAST_SCORES).squeeze(1)
    few = torch.nonzero(counts < LEAST_SCORES).squeeze(1)
    everything = torch.arange(len(class_index), device=class_index.device).repeat(len(few))
    return torch.cat([own, everything]), torch.cat([class_index[own], few.repeat_interleave(len(class_index))])


def combine(surprises: Float[Tensor, "e n"]) -> Float[Tensor, " n"]:
    """The fused score, log sum exp over detectors, in nats."""
    return surprises.logsumexp(0)


def stack_rows(
    scores: Iterable[Float[Tensor, " n"]], class_index: Int[Tensor, " n"], num_classes: int
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """The scores of e detectors one after the other, and the row of each in a table of e x k classes.

    One table for all: a single image is judged by a handful of operations rather than by a handful a detector.
    """
    stacked = torch.stack(tuple(scores))
    offsets = torch.arange(0, len(stacked) * num_classes, num_classes, device=class_index.device)
    return stacked.view(-1), (class_index + offsets.unsqueeze(1)).view(-1)
