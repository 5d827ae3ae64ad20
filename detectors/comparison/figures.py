"""What is said of a trained network in numbers: pure functions over features, posteriors and distances.

Letters: n inputs, k classes, d features.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2

NUM_BINS = 15


def calibration_error(posterior: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
    """Expected calibration error: |accuracy - confidence| over equal bins of the confidence, weighted by their sizes.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3, 15 bins. In
    [0, 1], 0 best.
    """
    confidence, right = posterior.max(1), posterior.argmax(1) == labels
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def scatter_ratio(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float | None:
    """tr S_w / tr S_b: squared distances to the own class's mean over those of that mean to the mean of all.

    Small: classes are tight against their distances. None where all means are one.
    """
    centre, within, between = features.mean(0), 0.0, 0.0
    for label in np.unique(labels):
        own = features[labels == label]
        within += float(np.square(own - own.mean(0)).sum())
        between += len(own) * float(np.square(own.mean(0) - centre).sum())
    return within / between if between > 0 else None


def likelihood_misfit(squared_distances: Float[np.ndarray, " n"], num_features: int) -> float:
    """How far the features are from the Gaussians that stand for them: 0 is a perfect fit, 1 none.

    Under the model (x - mu_z)^T Lambda_z^-1 (x - mu_z) follows a chi-squared law with d degrees; this is the largest
    gap between that law and what is found (Kolmogorov and Smirnov's statistic).
    """
    expected = np.sort(chi2.cdf(squared_distances, num_features))
    count = len(expected)
    above = np.arange(1, count + 1) / count - expected
    below = expected - np.arange(count) / count
    return float(max(above.max(), below.max()))


def quantile_threshold(scores: Float[np.ndarray, " n"], rate: float) -> float:
    """The score that at most that share of these lies above."""
    return float(np.quantile(scores, 1 - rate, method="higher"))
