"""Evidence that p-values have drifted, which may be looked at as often as one likes.

A conformal p-value is a rank: the score's place in one of the n + 1 gaps between the n clean scores of its class.
If traffic is exchangeable with the calibration images, the next score falls into a gap with probability
(1 + images there so far) / (n + 1 + images so far): Polya's urn. So the chance of any sequence of bins is known to
the last digit, with nothing assumed of the scores' distribution, and with the calibration's own chance in it: of few
clean scores the flagged share of clean traffic may well be half as high again as promised, and a test of uniformity
would sooner or later reject it.

An e-value is the likelihood of the sequence under drifts that one has in mind, mixed, over that of the urn. Under the
urn it is a martingale of mean one, so it ever exceeds e with probability 1 / e at most (Ville's inequality; Vovk's
conformal test martingales). Legend: s windows, k classes, b bins, a alternatives.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log, pi

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from service.monitoring.snapshot import DriftKind

FLAGGED_MULTIPLES = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0, 24.0, 36.0, 54.0)
MOST_RATE = 0.95
TILTS = (0.2, 0.35, 0.5, 0.7, 1.5, 2.5, 4.0)  # p-values distributed as x^tilt: below one small ones are too frequent

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A question put to every class: gaps (k, b) of its bins, log-probabilities of each bin if drifted (a, k, b)."""

    kind: DriftKind
    gaps: Floats
    alternatives: Floats

    @cached_property
    def _floor(self) -> Floats:
        """A bin without gaps never has an image; its urn may as well hold something."""
        return np.maximum(self.gaps, 1)

    def log_ratios(self, counts: Floats) -> Floats:
        """How much likelier each drift is than none: (s, k + 1, a) of counts (s, k, b); the last row is of all."""
        drifted = (counts.swapaxes(0, 1) @ self.alternatives.transpose(1, 2, 0)).swapaxes(0, 1)
        ratios = drifted - self._log_urn(counts)[:, :, None]
        return np.concatenate([ratios, ratios.sum(1, keepdims=True)], 1)

    def _log_urn(self, counts: Floats) -> Floats:
        drawn = (gammaln(self._floor + counts) - gammaln(self._floor)).sum(2)
        total = self.gaps.sum(1)
        urn: Floats = drawn - (gammaln(total + counts.sum(2)) - gammaln(total))
        return urn


def log_e_values(log_ratios: Floats) -> Floats:
    """(s, k + 1): logarithms of the e-values, all alternatives weighing the same."""
    summed: Floats = logsumexp(log_ratios, axis=2)
    return summed - log(log_ratios.shape[2])


def flagged_family(gaps: Floats, promised: float) -> Family:
    """Whether more is flagged than promised. gaps (k, 2): flagged, not flagged."""
    rates = [rate for multiple in FLAGGED_MULTIPLES if (rate := multiple * promised) < MOST_RATE] + [MOST_RATE]
    chances = np.array([[rate, 1 - rate] for rate in rates])
    return Family(kind="flagged", gaps=gaps, alternatives=np.log(chances)[:, None].repeat(len(gaps), axis=1))


def shape_family(kind: DriftKind, gaps: Floats) -> Family:
    """Whether p-values are not uniform: too small, too large, at both ends, or in the middle. gaps (k, b)."""
    upper = (gaps.cumsum(1) / gaps.sum(1, keepdims=True)).clip(0, 1)
    tilted = [upper**tilt for tilt in TILTS]
    at_both_ends, in_the_middle = np.arcsin(np.sqrt(upper)) * 2 / pi, upper**2 * (3 - 2 * upper)
    chances = np.diff(np.stack([*tilted, at_both_ends, in_the_middle]), axis=2, prepend=0)
    return Family(kind=kind, gaps=gaps, alternatives=np.log(np.where(gaps > 0, chances, 1)))
