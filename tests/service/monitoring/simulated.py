"""Traffic without a network: p-values of scores against calibration scores, both drawn."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from service.judgements import Judgements
from service.monitoring.baseline import Baseline, _flagged_gaps, _gaps
from service.monitoring.evidence import flagged_family, shape_family
from service.monitoring.snapshot import QUANTILE_LEVELS

RATE = 0.01


def baseline_of(sizes: list[int], *, rate: float = RATE, scale: float = 1.0) -> Baseline:
    """Of classes with standard normal log-likelihoods times scale."""
    counts = np.array(sizes)
    gaps = _gaps(counts)
    quantiles = np.tile(scale * ndtri(QUANTILE_LEVELS), (len(sizes), 1))
    return Baseline(
        labels=tuple(map(str, range(len(sizes)))),
        sizes=counts,
        likelihood_sizes=counts,
        likelihood_column=0,
        quantiles=quantiles,
        centres=quantiles[:, 2],
        scales=quantiles[:, 3] - quantiles[:, 1],
        families=(
            flagged_family(_flagged_gaps(counts, rate), rate),
            shape_family("p_values", gaps),
            shape_family("likelihood", gaps),
        ),
        expected_shares=gaps / gaps.sum(1, keepdims=True),
    )


@dataclass(frozen=True)
class Source:
    """Images whose scores are normal in every class; shift: how much higher than those of the calibration."""

    calibration: list[NDArray[np.float64]]
    generator: np.random.Generator
    rate: float = RATE
    shift: float = 0.0

    @classmethod
    def calibrated(cls, sizes: list[int], *, seed: int = 0, rate: float = RATE) -> "Source":
        generator = np.random.default_rng(seed)
        return cls([np.sort(generator.normal(size=size)) for size in sizes], generator, rate)

    def shifted(self, shift: float) -> "Source":
        return replace(self, shift=shift)

    def batch(self, classes: NDArray[np.int64]) -> Judgements:
        scores = self.generator.normal(size=len(classes)) + self.shift
        p_values = np.empty(len(classes), np.float32)
        for index, row in enumerate(self.calibration):
            mine = classes == index
            at_least = len(row) - np.searchsorted(row, scores[mine])
            p_values[mine] = np.float32(1 + at_least) / np.float32(len(row) + 1)
        return judgements_of(classes, p_values, p_values <= np.float32(self.rate), -scores.astype(np.float32))


def judgements_of(
    classes: NDArray[np.int64],
    p_values: NDArray[np.float32],
    flagged: NDArray[np.bool_],
    log_likelihood: NDArray[np.float32],
) -> Judgements:
    return Judgements(
        classes,
        np.ones((len(classes), 1), np.float32),
        log_likelihood,
        p_values,
        flagged,
        ("likelihood",),
        -log_likelihood[:, None],
        p_values[:, None],
    )


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 1200.0

    def __call__(self) -> float:
        return self.seconds
