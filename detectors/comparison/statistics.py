"""What can be said of variants that were each trained from several seeds. Letters: s seeds, v variants."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2, rankdata, studentized_range, t

LEVEL = 0.95


def mean_interval(values: Float[np.ndarray, " s"]) -> tuple[float, float, float]:
    """Mean and its t-interval at 95 %; of one seed the interval is the mean alone."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def paired_p_value(first: Float[np.ndarray, " s"], second: Float[np.ndarray, " s"]) -> float | None:
    """Two-sided p-value of the paired t-test over seeds; None of fewer than two, 1 where nothing differs."""
    differences = second - first
    count = len(differences)
    if count < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / (spread / math.sqrt(count)), count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold together, in the order given."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def mean_ranks(values: Float[np.ndarray, "s v"]) -> Float[np.ndarray, " v"]:
    """Each variant's rank among all, 1 the highest value, ties shared, averaged over the seeds."""
    return np.asarray(rankdata(-values, axis=1).mean(0))


def friedman_p_value(values: Float[np.ndarray, "s v"]) -> float | None:
    """Friedman's test that all variants are alike, without correction for ties; None below 2 seeds or 3 variants."""
    seeds, variants = values.shape
    if seeds < 2 or variants < 3:
        return None
    spread = float(np.square(mean_ranks(values) - (variants + 1) / 2).sum())
    return float(chi2.sf(12 * seeds / (variants * (variants + 1)) * spread, variants - 1))


def critical_difference(num_seeds: int, num_variants: int) -> float:
    """Nemenyi's: mean ranks that differ by less cannot be told apart at 5 % (Demsar, JMLR 7, 2006, section 3.2.2)."""
    studentized = float(studentized_range.ppf(LEVEL, num_variants, np.inf)) / math.sqrt(2)
    return studentized * math.sqrt(num_variants * (num_variants + 1) / (6 * num_seeds))
