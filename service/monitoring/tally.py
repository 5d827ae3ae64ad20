"""What one model's images were judged to be, counted a step of time.

Judging leaves its arrays here as they came, and they are counted many at once: that costs next to nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.judgements import Judgements
from service.monitoring.baseline import Baseline, Floats, Ints, bins_of
from service.monitoring.snapshot import NUM_P_VALUE_BINS

NUM_STEPS = 60
MOST_PENDING = 64
RULER_END, RULER_BINS = 12.0, 192  # in arsinh of distances from the centre, so that far outliers have their place

Counts = NDArray[np.uint32]
# Columns of a class's row: images, flagged; bins of the verdict's p-value, the likelihood's, the log-likelihood.
IMAGES, FLAGGED = 0, 1
TOTALS = slice(0, 2)
VERDICT = slice(2, 2 + NUM_P_VALUE_BINS)
LIKELIHOOD = slice(VERDICT.stop, VERDICT.stop + NUM_P_VALUE_BINS)
RULER = slice(LIKELIHOOD.stop, LIKELIHOOD.stop + RULER_BINS)
NUM_COLUMNS = RULER.stop


@dataclass(frozen=True, slots=True)
class Counted:
    """starts (s,) of the steps that are not forgotten, in the clock's seconds, oldest first; counts (k + 1, columns)
    of each. class_totals (k + 1, 2): images, flagged, since the start. The last row has the classes beyond the k.
    """

    starts: Floats
    steps: tuple[Counts, ...]
    class_totals: Ints

    def since(self, start: float) -> Ints:
        """(k + 1, columns) over the steps that began at `start` or later."""
        total = np.zeros((len(self.class_totals), NUM_COLUMNS), np.int64)
        for first, counts in zip(self.starts, self.steps, strict=True):
            if first >= start:
                total += counts
        return total

    def by_step(self, columns: slice) -> Floats:
        """(s, k, b): these columns of the classes that are told apart."""
        shape = (len(self.steps), len(self.class_totals) - 1, columns.stop - columns.start)
        found = np.empty(shape)
        for place, counts in zip(found, self.steps, strict=True):
            place[:] = counts[:-1, columns]
        return found


class Tally:
    """Of one event loop. clock: monotonic seconds; step_seconds: how finely the last NUM_STEPS of them are told."""

    def __init__(self, baseline: Baseline, *, clock: Callable[[], float], step_seconds: float):
        self._baseline, self._clock, self._step_seconds = baseline, clock, step_seconds
        self._num_rows = len(baseline.sizes) + 1
        self._pending: list[Judgements] = []
        self._steps: deque[tuple[int, Counts]] = deque(maxlen=NUM_STEPS)
        self._class_totals = np.zeros((self._num_rows, 2), np.int64)
        self._step = self._now()

    def batch_judged(self, judgements: Judgements) -> None:
        step = self._now()
        if step != self._step or len(self._pending) >= MOST_PENDING:
            self._count_pending()
            self._step = step
        self._pending.append(judgements)

    def counted(self) -> Counted:
        self._count_pending()
        oldest = self._now() - NUM_STEPS
        kept = [(step, counts) for step, counts in self._steps if step > oldest]
        starts = np.array([step * self._step_seconds for step, _ in kept], np.float64)
        steps = tuple(counts.copy() if step == self._step else counts for step, counts in kept)  # the others are over
        return Counted(starts, steps, self._class_totals.copy())

    def _now(self) -> int:
        return int(self._clock() // self._step_seconds)

    def _count_pending(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self._add(pending)

    def _add(self, pending: list[Judgements]) -> None:
        """All of one step: what comes in the next one is counted after it."""
        if not self._steps or self._steps[-1][0] != self._step:
            self._steps.append((self._step, self._empty()))
        counts, known = self._steps[-1][1], len(self._baseline.sizes)
        classes = np.minimum(np.concatenate([part.class_index for part in pending]), known)
        flagged = np.concatenate([part.flagged for part in pending])
        num_images = np.bincount(classes, minlength=self._num_rows)
        num_flagged = np.bincount(classes[flagged], minlength=self._num_rows)
        self._class_totals += np.stack([num_images, num_flagged], 1)
        counts[:, IMAGES] += num_images.astype(np.uint32)
        counts[:, FLAGGED] += num_flagged.astype(np.uint32)
        self._add_distributions(pending, classes, counts)

    def _add_distributions(self, pending: list[Judgements], classes: Ints, counts: Counts) -> None:
        """Of the classes that are told apart."""
        told = classes < len(self._baseline.sizes)
        classes = classes[told]
        p_values = np.concatenate([part.p_value for part in pending])[told]
        counts[:, VERDICT] += self._histogram(classes, bins_of(p_values, self._baseline.sizes[classes]), VERDICT)
        if (column := self._baseline.likelihood_column) is not None:
            p_values = np.concatenate([part.evidence_p_values[:, column] for part in pending])[told]
            bins = bins_of(p_values, self._baseline.likelihood_sizes[classes])
            counts[:, LIKELIHOOD] += self._histogram(classes, bins, LIKELIHOOD)
        log_likelihood = np.concatenate([part.log_likelihood for part in pending])[told].astype(np.float64)
        counts[:, RULER] += self._histogram(classes, self._ruler_bins(log_likelihood, classes), RULER)

    def _histogram(self, classes: Ints, bins: Ints, columns: slice) -> Counts:
        num_bins = columns.stop - columns.start
        flat = np.bincount(classes * num_bins + bins, minlength=self._num_rows * num_bins)
        return flat.reshape(self._num_rows, num_bins).astype(np.uint32)

    def _ruler_bins(self, log_likelihood: Floats, class_index: Ints) -> Ints:
        distance = (log_likelihood - self._baseline.centres[class_index]) / self._baseline.scales[class_index]
        place = (np.arcsinh(distance) + RULER_END) * (RULER_BINS / (2 * RULER_END))
        return np.clip(place, 0, RULER_BINS - 1).astype(np.int64)

    def _empty(self) -> Counts:
        return np.zeros((self._num_rows, NUM_COLUMNS), np.uint32)


def ruler_edges() -> Floats:
    """Distances from the centre in scales, RULER_BINS + 1 of them."""
    return np.sinh(np.linspace(-RULER_END, RULER_END, RULER_BINS + 1))
