"""What a bundle's calibration says of clean traffic: how p-values and log-likelihoods would lie."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.clean_scores import load_clean_scores
from detectors.manifest import Manifest
from service.monitoring.evidence import Family, flagged_family, shape_family
from service.monitoring.snapshot import NUM_P_VALUE_BINS, QUANTILE_LEVELS

LIKELIHOOD = "likelihood"
MOST_CLASSES_TESTED = 1000
LEAST_SCALE = 1e-3

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Of the first k classes, at most MOST_CLASSES_TESTED; others are counted as one.

    sizes, likelihood_sizes (k,): clean scores behind the p-values of the verdict and of the likelihood.
    quantiles (k, QUANTILE_LEVELS) of clean log-likelihoods, in nats; centres, scales (k,) a ruler for live ones.
    likelihood_column: where that detector's evidence stands, None if the bundle does not have it.
    """

    labels: tuple[str, ...]
    sizes: Ints
    likelihood_sizes: Ints
    likelihood_column: int | None
    quantiles: Floats | None
    centres: Floats
    scales: Floats
    families: tuple[Family, ...]
    expected_shares: Floats


def load_baseline(bundle: Path, manifest: Manifest) -> Baseline:
    """Raises BundleError naming the file and the reason."""
    calibration = load_clean_scores(bundle, manifest)
    num_classes = len(manifest.labels)
    num_tested = min(num_classes, MOST_CLASSES_TESTED)

    def rows(block: int) -> slice:
        return slice(block * num_classes, block * num_classes + num_tested)

    column = manifest.detectors.index(LIKELIHOOD) if LIKELIHOOD in manifest.detectors else None
    sizes = calibration.counts[rows(len(manifest.detectors))]
    likelihood_sizes = sizes if column is None else calibration.counts[rows(column)]
    quantiles = None if column is None else _quantiles(calibration.scores[rows(column)], likelihood_sizes)
    verdict_gaps = _gaps(sizes)
    families = [
        flagged_family(_flagged_gaps(sizes, manifest.false_alarm_rate), manifest.false_alarm_rate),
        shape_family("p_values", verdict_gaps),
    ]
    if column is not None:
        families.append(shape_family("likelihood", _gaps(likelihood_sizes)))
    centres, scales = _ruler(quantiles, num_tested)
    return Baseline(
        labels=manifest.labels,
        sizes=sizes,
        likelihood_sizes=likelihood_sizes,
        likelihood_column=column,
        quantiles=quantiles,
        centres=centres,
        scales=scales,
        families=tuple(families),
        expected_shares=verdict_gaps / verdict_gaps.sum(1, keepdims=True),
    )


def bins_of(p_values: NDArray[np.float32], sizes: Ints) -> Ints:
    """The equal bin of (0, 1] that each p-value lies in, exactly: they are ranks over sizes + 1."""
    ranks = np.rint(p_values.astype(np.float64) * (sizes + 1)).astype(np.int64)
    return (NUM_P_VALUE_BINS * ranks - 1) // (sizes + 1)


def _gaps(sizes: Ints) -> Floats:
    """How many of a class's n + 1 gaps between clean scores each bin holds (k, bins)."""
    upper = np.arange(NUM_P_VALUE_BINS + 1) * (sizes[:, None] + 1) // NUM_P_VALUE_BINS
    return np.diff(upper, axis=1).astype(np.float64)


def _flagged_gaps(sizes: Ints, false_alarm_rate: float) -> Floats:
    """(k, 2): gaps whose p-value is flagged, in the arithmetic of the verdict, and the others."""
    ranks = 1 + np.arange(int(sizes.max()) + 1)
    p_values = ranks.astype(np.float32) / (sizes[:, None] + 1).astype(np.float32)
    flagged = (p_values <= np.float32(false_alarm_rate)) & (ranks <= sizes[:, None] + 1)
    num_flagged = flagged.sum(1)
    return np.stack([num_flagged, sizes + 1 - num_flagged], 1).astype(np.float64)


def _quantiles(scores: NDArray[np.floating], sizes: Ints) -> Floats:
    """Of log-likelihoods, whose negatives the scores are; NaN for a class without clean images."""
    found = np.full((len(sizes), len(QUANTILE_LEVELS)), np.nan)
    for index, size in enumerate(sizes.tolist()):
        if size:
            found[index] = np.quantile(-scores[index, :size].astype(np.float64), QUANTILE_LEVELS)
    return found


def _ruler(quantiles: Floats | None, num_classes: int) -> tuple[Floats, Floats]:
    if quantiles is None:
        return np.zeros(num_classes), np.ones(num_classes)
    known = ~np.isnan(quantiles[:, 0])
    median, spread = quantiles[:, 2], quantiles[:, 3] - quantiles[:, 1]
    return np.where(known, median, 0.0), np.where(known, np.maximum(spread, LEAST_SCALE), 1.0)
