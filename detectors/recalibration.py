"""A bundle's calibration, extended by ordinary images of the traffic that it really sees.

Legend: of one predicted class, n calibration scores, m added ones, k of those beyond the old threshold; rate a.

**Which images may be added.** A conformal p-value p(s) = (1 + #{calibration >= s}) / (n + 1) is valid where the
calibration scores are a fair sample of what will come. Inputs that reviewers found to be false positives are not:
they were chosen for being flagged, so all of them lie beyond the threshold. Added alone they raise every p-value
above it, by up to m / (n + m + 1), and some a n of them already let everything pass. A blind sample of the traffic is
fair: each image was kept with the same chance whatever its score. Less those that reviewers found adversarial or
abnormal, it is one of the ordinary traffic, provided that *every* flagged one of it has been decided upon: to leave
out the undecided would cut off the top scores (more false alarms), to take them in would let an attacker calibrate.
So of the false positives only those of the blind sample are added, along with the sample's unflagged rest. The new
p-values hold for traffic that mixes the like of the old calibration data and of the sample, as n : m.

**What whoever poisons the sample or its review can reach.** Two limits bound it, whatever is added:

- k <= a (n + m + 1) / 2. Then an input of old p-value <= a / 2 stays flagged: with c old scores at or beyond its
  own, 1 + c = p (n + 1), its new p-value is at most (1 + c + k) / (n + m + 1) <= a / 2 + a / 2. A class with a
  greater k is left as it was, and where all classes together have more the whole is refused: such traffic is not
  like the calibration data any more, and detectors should be fitted anew on data of today.
- m <= n / 8; of more, a random part of the class is taken. Then (1 + c) / (n + m + 1) >= 8 p / 9, so no input of old
  p-value > 9 a / 8 becomes flagged, however many unflagged images somebody sends. It also leaves room below the
  first limit: ordinary traffic passes it unless it is flagged four times as often as promised.

One recalibration so moves a threshold a little; a further one needs a further review.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detectors.base import Detector
from detectors.calibration import ConformalCalibration
from detectors.fusion import stack_rows
from detectors.screener import Screener
from model.errors import CalibrationError

LEAST_ADDED = 100  # and at least as many as one false alarm is expected among: fewer tell nothing of the tail
MOST_ADDED = 1 / 8  # of the number of calibration images that a class has
POISON_SHARE = 0.5  # of the scores beyond the threshold that the rate allows, those that may be new


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Images as a screener judges them: predicted classes (n,), fused scores (n,), and each detector's (n,)."""

    class_index: Int[Tensor, " n"]
    suspicion: Float[Tensor, " n"]
    scores: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.class_index)

    def select(self, rows: Int[Tensor, " m"]) -> "Judged":
        """Those rows."""
        return Judged(
            class_index=self.class_index[rows],
            suspicion=self.suspicion[rows],
            scores={name: values[rows] for name, values in self.scores.items()},
        )


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What a recalibration does to one class.

    num_beyond: those of the sample that are flagged; num_added is 0 where they are too many. Thresholds are
    fused scores in nats: beyond them an input is flagged.
    """

    label: str
    num_before: int
    num_sampled: int
    num_beyond: int
    num_added: int
    threshold_before: float
    threshold_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalibration:
    """A screener of the same network, detectors and fusion with an extended calibration, and what changes by it."""

    screener: Screener
    changes: tuple[ClassChange, ...]


def judge(screener: Screener, batches: Iterable[Float[Tensor, "_ c h w"]]) -> Judged:
    """Scores of all images; there may be none."""
    none = torch.zeros(0)
    said = [screener.screen(batch) for batch in batches]
    return Judged(
        class_index=torch.cat([none.long(), *(verdicts.class_index.cpu() for verdicts in said)]),
        suspicion=torch.cat([none, *(verdicts.suspicion.cpu() for verdicts in said)]),
        scores={
            name: torch.cat([none, *(verdicts.evidence[name].score.cpu() for verdicts in said)])
            for name in screener.detectors
        },
    )


def flagged(screener: Screener, judged: Judged) -> Bool[Tensor, " n"]:
    """Which of them a screener on the CPU flags, also one that differs from the judge in its calibration alone."""
    return screener.p_value(judged.suspicion, judged.class_index) <= screener.false_alarm_rate


def recalibrate(screener: Screener, sample: Judged, *, generator: torch.Generator) -> Recalibration:
    """Extend the calibration by a blind sample of ordinary traffic, judged by that screener on the CPU.

    Raises CalibrationError: too few images, or more beyond the thresholds than may be (see above).
    """
    _check_size(screener, len(sample))
    sample = _part(screener, sample, generator)
    beyond = flagged(screener, sample)
    sizes = screener.calibration.counts[-len(screener.labels) :].cpu()
    num_sampled = torch.bincount(sample.class_index, minlength=len(sizes))
    num_beyond = torch.bincount(sample.class_index[beyond], minlength=len(sizes))
    most = _most_beyond(screener, sizes + num_sampled)
    _check_drift(screener, int(num_beyond.sum()), len(sample), int(sizes.sum()))
    accepted = num_beyond <= most
    added = sample.select(torch.nonzero(accepted[sample.class_index]).squeeze(1))
    after = _with_calibration(screener, extend(screener.calibration, *_stacked(screener, added)))
    changes = zip(
        screener.labels,
        sizes.tolist(),
        num_sampled.tolist(),
        num_beyond.tolist(),
        torch.where(accepted, num_sampled, 0).tolist(),
        thresholds(screener),
        thresholds(after),
        strict=True,
    )
    return Recalibration(screener=after, changes=tuple(ClassChange(*change) for change in changes))


def extend(table: ConformalCalibration, scores: Float[Tensor, " m"], rows: Int[Tensor, " m"]) -> ConformalCalibration:
    """A table with these scores added to these rows of it."""
    counts = table.counts.cpu()
    real = torch.arange(table.scores.shape[1]) < counts.unsqueeze(1)
    return ConformalCalibration.fit(
        torch.cat([table.scores.cpu()[real], scores]),
        torch.cat([torch.repeat_interleave(torch.arange(len(counts)), counts), rows]),
        len(counts),
    )


def thresholds(screener: Screener) -> list[float]:
    """For each class the fused score beyond which an input is flagged; infinite where none ever is."""
    table = screener.calibration
    first = len(screener.detectors) * len(screener.labels)
    return [
        _threshold(table.scores[first + index, : table.counts[first + index]], screener.false_alarm_rate)
        for index in range(len(screener.labels))
    ]


def _threshold(ascending: Float[Tensor, " n"], false_alarm_rate: float) -> float:
    """1 + #{scores >= s} <= rate (n + 1) holds for s beyond the score that has one too many at or above it."""
    num_above = math.floor(false_alarm_rate * (len(ascending) + 1) + 1e-9) - 1
    return float(ascending[len(ascending) - 1 - num_above]) if num_above >= 0 and len(ascending) > 0 else math.inf


def _check_size(screener: Screener, count: int) -> None:
    least = max(LEAST_ADDED, math.ceil(1 / screener.false_alarm_rate))
    if count < least:
        raise CalibrationError(
            f"{count} images of the blind sample can be added, at least {least} are needed to say anything of a "
            f"false-alarm rate of {screener.false_alarm_rate:g}"
        )


def _part(screener: Screener, sample: Judged, generator: torch.Generator) -> Judged:
    """At most so many of each class as may be added, drawn whatever their scores."""
    drawn = torch.randperm(len(sample), generator=generator)
    sizes = screener.calibration_sizes.values()
    parts = [drawn[sample.class_index[drawn] == index][: int(MOST_ADDED * size)] for index, size in enumerate(sizes)]
    return sample.select(torch.cat(parts))


def _most_beyond(screener: Screener, sizes_after: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    allowed = POISON_SHARE * screener.false_alarm_rate * (sizes_after + 1).double()
    return (allowed + 1e-9).floor().long()


def _check_drift(screener: Screener, num_beyond: int, num_sampled: int, num_before: int) -> None:
    most = int(_most_beyond(screener, torch.tensor([num_before + num_sampled])))
    if num_beyond > most:
        raise CalibrationError(
            f"{num_beyond} of {num_sampled} ordinary images are flagged, beside {num_before} calibration images at "
            f"most {most} may be: this traffic is not like the calibration data; fit anew on data of today"
        )


def _stacked(screener: Screener, sample: Judged) -> tuple[Tensor, Tensor]:
    return stack_rows([*sample.scores.values(), sample.suspicion], sample.class_index, len(screener.labels))


def _with_calibration(screener: Screener, calibration: ConformalCalibration) -> Screener:
    return Screener(
        screener.network,
        [cast(Detector, detector) for detector in screener.detectors.values()],
        screener.fusion,
        calibration,
        labels=screener.labels,
        image_format=screener.image_format,
        false_alarm_rate=screener.false_alarm_rate,
        name=screener.name,
        reference=screener.reference,
    ).requires_grad_(False)
