"""What a detector is worth, in numbers: pure functions over scores, predictions and counts.

Letters: n clean images, m attacked images. Scores: higher = more suspicious. Nothing here returns NaN:
a figure of no image at all is None.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.stats import betabinom, binomtest, norm, rankdata
from sklearn.metrics import roc_auc_score, roc_curve

Interval = tuple[float, float]
Scores = Float[np.ndarray, " _"]

RESAMPLES = 1000
CHUNK = 50  # resamples at a time: bounds memory
EDGE = 1e-12


def share(hits: Bool[np.ndarray, " n"]) -> float | None:
    """The share of true values; None of nothing."""
    return float(hits.mean()) if len(hits) else None


def share_interval(num_hits: int, num_images: int, *, level: float) -> Interval:
    """Exact binomial (Clopper-Pearson) interval of a share; of no image at all it is [0, 1]."""
    if num_images == 0:
        return 0.0, 1.0
    interval = binomtest(num_hits, num_images).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def wilson_interval(num_hits: int, num_images: int, *, level: float) -> Interval:
    """Wilson's score interval of a share; the one that Newcombe's interval of a difference is made from."""
    if num_images == 0:
        return 0.0, 1.0
    interval = binomtest(num_hits, num_images).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def promised_counts(rate: float, num_images: int, *, num_calibration: int, level: float) -> tuple[int, int]:
    """How many of n images a promise flags, least and most, with that probability (central interval).

    Of calibration scores without ties the k = floor(rate (c + 1)) most suspicious are flagged, and so is a share of
    all further images that varies with the calibration images, as Beta(k, c + 1 - k) (Vovk 2012, "Conditional
    validity of inductive conformal predictors"). The count is beta-binomial: as wide as the binomial only if c >> n.
    """
    flagging = math.floor(rate * (num_calibration + 1) + 1e-9)
    if flagging == 0:
        return 0, 0
    low, high = betabinom.interval(level, num_images, flagging, num_calibration + 1 - flagging)
    return int(low), int(high)


def auroc(clean: Scores, attacked: Scores) -> float | None:
    """P(attacked score > clean score), ties counted half (scikit-learn's); None where either side is empty."""
    if len(clean) == 0 or len(attacked) == 0:
        return None
    labels = np.repeat([0, 1], [len(clean), len(attacked)])
    return float(roc_auc_score(labels, _ranks(clean, attacked)))


def auroc_interval(
    clean: Scores, attacked: Scores, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Interval of the AUROC: all that the bootstrap's or Newcombe's holds.

    The bootstrap knows the scores, but near an AUROC of one, or with few images, it is too narrow: of samples that do
    not overlap it is [1, 1]. Newcombe's knows only how many there are, and keeps its level there.
    """
    area = auroc(clean, attacked)
    if area is None:
        return None
    drawn = bootstrap_interval(clean, attacked, level=level, resamples=resamples, seed=seed)
    counted = newcombe_interval(area, len(clean), len(attacked), level=level)
    return min(drawn[0], counted[0]), max(drawn[1], counted[1])


def newcombe_interval(area: float, num_clean: int, num_attacked: int, *, level: float) -> Interval:
    """Interval of an AUROC from the two numbers of images alone (Newcombe 2006, "Part 2", method 5).

    The areas from which the one found is at most z standard errors away, each with its own error as Hanley and McNeil
    (1982) have it, made symmetric in the two numbers.
    """
    z = float(norm.ppf((1 + level) / 2))
    others = (num_clean + num_attacked) / 2 - 1

    def beyond(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return (theta - area) ** 2 - z * z * spread / (num_clean * num_attacked)

    # An area of exactly 0 or 1 is a root itself, not the one that is sought.
    return float(brentq(beyond, 0, min(area, 1 - EDGE))), float(brentq(beyond, max(area, EDGE), 1))


def bootstrap_interval(clean: Scores, attacked: Scores, *, level: float, resamples: int, seed: int) -> Interval:
    """Percentile-bootstrap interval of the AUROC; clean and attacked images are resampled apart.

    An attacked score matters only by its place among the sorted clean ones, so each resample is a cumulated
    count and a look-up: O((n + m) resamples).
    """
    generator = np.random.default_rng(seed)
    ranks = _ranks(clean, attacked)
    order, asked = np.sort(ranks[: len(clean)]), ranks[len(clean) :]
    low, high = np.searchsorted(order, asked, "left"), np.searchsorted(order, asked, "right")
    chunks = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    drawn = np.concatenate([_resample(generator, len(clean), low, high, size) for size in chunks])
    bounds = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(bounds[0]), float(bounds[1])


def _resample(generator: np.random.Generator, count: int, low: np.ndarray, high: np.ndarray, size: int) -> np.ndarray:
    rows = np.arange(size)[:, None]
    drawn = generator.integers(count, size=(size, count)) + rows * count
    counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
    below = np.zeros((size, count + 1), dtype=np.int64)
    np.cumsum(counts, axis=1, out=below[:, 1:])
    picked = generator.integers(len(low), size=(size, len(low)))
    beaten = below[rows, low[picked]] + below[rows, high[picked]]
    return np.asarray(beaten.mean(axis=1) / (2 * count))


def roc(clean: Scores, attacked: Scores) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates of the ROC curve, corners alone."""
    labels = np.repeat([0, 1], [len(clean), len(attacked)])
    false_positive, true_positive, _ = roc_curve(labels, _ranks(clean, attacked))
    return false_positive, true_positive


def flagged(p_value: Scores, rate: float) -> Bool[np.ndarray, " _"]:
    """p <= rate, compared in the p-values' own precision, as the screener does."""
    return np.asarray(p_value <= p_value.dtype.type(rate))


def weaker(stronger_right: Bool[np.ndarray, " n"], other_right: Bool[np.ndarray, " n"]) -> float:
    """Exact one-sided McNemar p-value, small where the attack that should be stronger is weaker.

    On the same images: how many the classifier gets right under the one alone against under the other alone.
    """
    only_stronger = int((stronger_right & ~other_right).sum())
    only_other = int((other_right & ~stronger_right).sum())
    if only_stronger + only_other == 0:
        return 1.0
    return float(binomtest(only_stronger, only_stronger + only_other, alternative="greater").pvalue)


def difference_interval(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Interval:
    """Interval of second - first from an interval of each (square-and-add, Newcombe 1998, method 10).

    Treats the two as independent, which on the same images is wider than need be.
    """
    difference = second - first
    low = math.hypot(second - second_interval[0], first_interval[1] - first)
    high = math.hypot(second_interval[1] - second, first - first_interval[0])
    return difference - low, difference + high


def _ranks(clean: Scores, attacked: Scores) -> np.ndarray:
    """Scores as dense ranks, so that infinities keep their place; what is not a number is the most suspicious."""
    scores = np.concatenate([clean, attacked]).astype(np.float64)
    return np.asarray(rankdata(np.where(np.isnan(scores), math.inf, scores), method="dense"), dtype=np.float64)
