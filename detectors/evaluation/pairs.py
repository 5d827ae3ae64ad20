"""Two runs on the same images: how closely their figures go together, image by image, and what that tells.

An image's influence is what it adds to a figure's deviation (the figure's influence function); over the images, the
correlation of two figures' influences is that of the figures. Letters: n images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from detectors.evaluation import metrics
from detectors.evaluation.metrics import Interval
from detectors.evaluation.parts import Part, load_part
from detectors.evaluation.rows import Measured
from detectors.evaluation.settings import Task

# what a row says of its task beside the name
TASK = ("group", "knowledge", "norm", "seed", "eps", "steps", "severity", "restarts", "targeted", "on_curve")
TOLERANCE = 1e-9  # of a figure told again
HALF_A_HIT = 0.5  # the continuity correction of a count

Influence = Float[np.ndarray, " n"]
Mask = Bool[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A row of one run, the folder of its parts, and the false-alarm rate that its bundle promises."""

    row: Mapping[str, Any]
    folder: Path
    promise: float


def correlations(first: Side, second: Side) -> dict[str, float]:
    """The correlation of each figure that both sides' parts tell; of none where they are not there.

    The caller sees to it that both drew the same test images. Foreign images are not paired: no digest is kept
    of them. Parts that tell another figure than the row belong to another run, and are passed over.
    """
    measured = [_load(side) for side in (first, second)]
    if measured[0] is None or measured[1] is None:
        return {}
    if not np.array_equal(measured[0].part.labels, measured[1].part.labels):
        return {}
    mine, theirs = _influences(first, measured[0]), _influences(second, measured[1])
    return {
        figure: correlation(mine[figure], theirs[figure], continuity=0.0 if figure == "auroc" else HALF_A_HIT)
        for figure in mine.keys() & theirs.keys()
    }


def correlation(first: Influence, second: Influence, *, continuity: float) -> float:
    """Pearson's, its covariance brought nearer to zero by continuity / n where it is positive.

    For shares and half a hit this is Newcombe's corrected phi. Zero where one side does not vary.
    """
    covariance, spread = float(np.mean(first * second)), float(np.std(first) * np.std(second))
    if spread == 0:
        return 0.0
    if covariance > 0:
        covariance = max(0.0, covariance - continuity / len(first))
    return max(-1.0, min(1.0, covariance / spread))


def paired_interval(
    first: float, first_interval: Interval, second: float, second_interval: Interval, *, correlation: float
) -> Interval:
    """Interval of second - first from an interval of each and the correlation of the two.

    Square-and-add (Newcombe 1998, Statistics in Medicine 17:2635, method 10; Zou and Donner 2008 for other
    figures than shares). Unlike the bootstrap or an interval from the discordant pairs alone it holds its level
    where few pairs differ, or none. Without correlation it is `metrics.difference_interval`.
    """
    difference = second - first
    low = _add(second - second_interval[0], first_interval[1] - first, correlation)
    high = _add(second_interval[1] - second, first - first_interval[0], correlation)
    return difference - low, difference + high


def _add(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))


def _load(side: Side) -> Measured | None:
    row = side.row
    if row["group"] == "foreign":
        return None
    task = Task(name=row["attack"], **{name: row[name] for name in TASK})
    part, clean = load_part(side.folder, task.key), load_part(side.folder, f"clean-seed{task.seed}")
    if part is None or clean is None or not (_fits(part, clean, row) and np.array_equal(part.labels, clean.labels)):
        return None
    return Measured(task=task, part=part, clean=clean)


def _fits(part: Part, clean: Part, row: Mapping[str, Any]) -> bool:
    return row["detector"] in part.scores and row["detector"] in clean.scores


def _influences(side: Side, measured: Measured) -> dict[str, Influence]:
    """By figure; of those alone that the parts tell as the row does."""
    found = {name: _of_share(*counted) for name, counted in _counted(side, measured).items()}
    found["auroc"] = _of_area(side, measured)
    return {name: told[1] for name, told in found.items() if told is not None and _is_told(side.row[name], told[0])}


def _is_told(figure: float | None, again: float) -> bool:
    return figure is not None and math.isclose(figure, again, abs_tol=TOLERANCE)


def _counted(side: Side, measured: Measured) -> dict[str, tuple[Mask, Mask]]:
    """For each share: which images count as hits, and of which images it is a share."""
    detector, right = side.row["detector"], measured.part.right
    p_values, clean_p = measured.part.p_values[detector], measured.clean.p_values[detector]
    everyone = np.ones(len(right), dtype=bool)
    return {
        "attacked_accuracy": (right, everyone),
        "tpr_at_fpr_5": (metrics.flagged(p_values, 0.05), measured.judged),
        "tpr_at_fpr_1": (metrics.flagged(p_values, 0.01), measured.judged),
        "sr_at_5": (~right & ~metrics.flagged(p_values, 0.05), everyone),
        "robust_accuracy_with_rejection": (right | metrics.flagged(p_values, side.promise), everyone),
        "realised_false_alarm_rate": (metrics.flagged(clean_p, side.promise), everyone),
    }


def _of_share(hits: Mask, asked: Mask) -> tuple[float, Influence] | None:
    """The share and each image's influence, times the number asked."""
    if not asked.any():
        return None
    value = float(hits[asked].mean())
    return value, asked * (hits - value)


def _of_area(side: Side, measured: Measured) -> tuple[float, Influence] | None:
    """The AUROC and each image's influence, as a clean image and as an attacked one (DeLong's placements)."""
    detector, right, judged = side.row["detector"], measured.clean.right, measured.judged
    if not (right.any() and judged.any()):
        return None
    clean, attacked = measured.clean.scores[detector][right], measured.part.scores[detector][judged]
    both = _ranks(np.concatenate([clean, attacked]))
    above = 1 - (both[: len(clean)] - _ranks(clean)) / len(attacked)  # share of attacked scores above each clean one
    below = (both[len(clean) :] - _ranks(attacked)) / len(clean)
    value, influence = float(below.mean()), np.zeros(len(right))
    influence[right] += (above - value) / right.mean()
    influence[judged] += (below - value) / judged.mean()
    return value, influence


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ties share their mean rank; what is not a number is the most suspicious."""
    return np.asarray(rankdata(np.where(np.isnan(scores), math.inf, scores)))
