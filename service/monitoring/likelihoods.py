"""Log-likelihoods from the histograms that they were counted in."""

import numpy as np
from numpy.typing import NDArray

from service.monitoring.baseline import Baseline, Floats
from service.monitoring.snapshot import QUANTILE_LEVELS
from service.monitoring.tally import ruler_edges

MEDIAN = QUANTILE_LEVELS.index(0.5)


def live_quantiles(counts: NDArray[np.int64], baseline: Baseline, classes: NDArray[np.int64]) -> Floats:
    """(k, QUANTILE_LEVELS) in nats from (k, bins) of these classes; meaningless where a class has no image.

    Straight lines within a bin: off by an eighth of the clean scores' interquartile range at most near the centre.
    """
    edges, cumulative = ruler_edges(), counts.cumsum(1)
    rows = np.arange(len(counts))[:, None]
    ranks = cumulative[:, -1:] * np.array(QUANTILE_LEVELS)
    bins = (cumulative[:, None, :] < ranks[:, :, None]).sum(2).clip(max=counts.shape[1] - 1)
    inside = counts[rows, bins]
    part = (ranks - (cumulative[rows, bins] - inside)) / np.maximum(inside, 1)
    distance = edges[bins] + part.clip(0, 1) * (edges[bins + 1] - edges[bins])
    found: Floats = baseline.centres[classes][:, None] + distance * baseline.scales[classes][:, None]
    return found


def median_shifts(counts: NDArray[np.int64], baseline: Baseline, rows: slice) -> float:
    """Live median - clean median of these classes, in nats, the mean over their images. counts (k, bins)."""
    classes = np.arange(len(baseline.sizes))[rows] if len(counts) == 1 else np.arange(len(counts))
    assert baseline.quantiles is not None
    shifts = live_quantiles(counts, baseline, classes)[:, MEDIAN] - baseline.quantiles[classes, MEDIAN]
    weights = np.where(np.isnan(shifts), 0, counts.sum(1))
    return float(np.nan_to_num(shifts) @ weights / max(1, weights.sum()))
