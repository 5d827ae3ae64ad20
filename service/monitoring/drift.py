"""When evidence becomes an alarm, since when, and until when.

Each step of time starts a window of every question and class, and each window has its e-value, judged against the
calibration alone, so that yesterday's attack does not become today's normal. An e-value ever reaches e with
probability 1 / e at most on clean traffic; what a day starts of them shares the day's false alarms evenly.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from service.monitoring.evidence import Family, log_e_values
from service.monitoring.snapshot import DriftKind

FALSE_ALARMS_A_DAY = 0.01
DAY_SECONDS = 86_400
END_EVIDENCE = log(1000)  # that the latest images speak for the calibration rather than for the drift

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """An alarm of a class, or of all (row = number of classes): since when, in the clock's seconds."""

    kind: DriftKind
    row: int
    since: float
    evidence: float


def threshold(num_windows: float, *, false_alarms: float) -> float:
    """The logarithm of the e-value that so many windows reach with that probability at most (union bound)."""
    return log(num_windows / false_alarms)


class DriftWatch:
    """The alarms of one question over all classes, from one look to the next."""

    def __init__(self, family: Family, *, threshold: float):
        self._family, self._threshold = family, threshold
        self._standing: dict[int, Standing] = {}
        self._forgotten_before = np.full(len(family.gaps) + 1, -np.inf)

    def look(self, starts: Floats, counts: NDArray[np.float64]) -> list[Standing]:
        """starts (s,) of steps, oldest first; counts (s, k, b) of the images in each. The alarms that stand now."""
        if len(starts) == 0:
            self._standing = {}
            return []
        until_now = counts[::-1].cumsum(0)[::-1]
        ratios = self._family.log_ratios(until_now)
        evidence = log_e_values(ratios)
        evidence[starts[:, None] < self._forgotten_before] = -np.inf
        strongest = evidence.argmax(0)
        peaks = evidence.max(0)
        for row in np.flatnonzero(peaks >= self._threshold).tolist():
            self._standing.setdefault(row, self._found(row, starts[strongest[row]], peaks[row]))
        for row, standing in tuple(self._standing.items()):
            first = int(strongest[row])
            if peaks[row] <= 0 or self._is_over(row, first, starts, ratios[:, row]):
                del self._standing[row]
            else:
                self._standing[row] = self._found(row, standing.since, max(peaks[row], self._threshold))
        return list(self._standing.values())

    def _found(self, row: int, since: float, evidence: float) -> Standing:
        return Standing(kind=self._family.kind, row=row, since=float(since), evidence=float(evidence))

    def _is_over(self, row: int, first: int, starts: Floats, ratios: Floats) -> bool:
        """Whether the images since some later step speak against the drift that fits best; ratios (s, a)."""
        drift = ratios[first].argmax()
        later = ratios[first + 1 :, drift]
        if len(later) == 0 or later.min() > -END_EVIDENCE:
            return False
        self._forgotten_before[row] = starts[first + 1 + int(later.argmin())]
        return True
