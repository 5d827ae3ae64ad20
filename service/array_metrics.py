"""Metrics that take whole arrays, and count many at once: prometheus-client's pay for each value.

What was observed is kept as it came until there is enough of it or somebody looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from service.judgements import Judgements

MOST_PENDING = 256
MOST_LABELS, OTHER_LABELS, WITHHELD_LABELS = 100, "other", "withheld"


class ArrayHistogram(Collector):
    """A histogram, of one label at most."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], *, label: str | None = None):
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._counts: dict[str, np.ndarray] = {}
        self._sums: dict[str, float] = {}
        self._pending: dict[str, list[ArrayLike]] = {}
        self._lock = Lock()
        if label is None:
            self.observe(())

    def observe(self, values: ArrayLike, label_value: str = "") -> None:
        pending = self._pending.setdefault(label_value, [])
        pending.append(values)
        if len(pending) >= MOST_PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
            for label_value, parts in pending.items():
                array = np.concatenate(parts, dtype=np.float64)
                counts = np.bincount(np.searchsorted(self._bounds, array), minlength=len(self._bounds) + 1)
                self._counts[label_value] = self._counts.get(label_value, 0) + counts
                self._sums[label_value] = self._sums.get(label_value, 0.0) + float(array.sum())

    def collect(self) -> Iterable[Metric]:
        self._count_pending()
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._documentation, labels=labels)
        with self._lock:
            state = [(key, counts.copy(), self._sums[key]) for key, counts in self._counts.items()]
        for key, counts, total in state:
            family.add_metric([key] if self._label else [], self._buckets(counts), total)
            if self._bounds[0] < 0:  # there the family leaves out the sum, and the count with it
                family.add_sample(f"{self._name}_count", {}, float(counts.sum()))
        yield family

    def _buckets(self, counts: np.ndarray) -> list[tuple[str, float]]:
        names = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, counts.cumsum().astype(float).tolist(), strict=True))


class WithoutLoneCounts(Collector):
    """Families as OpenMetrics has them: no count of a histogram without a sum, as that of negative values is."""

    def __init__(self, collector: Collector):
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        for family in self._collector.collect():
            names = {sample.name for sample in family.samples}
            if family.type == "histogram" and f"{family.name}_sum" not in names:
                family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_count"]
            yield family


class ClassCounter(Collector):
    """Images by label and decision. Labels beyond the first MOST_LABELS are one, and so are withheld ones."""

    def __init__(self, name: str, documentation: str, *, withholds_flagged: bool = False):
        self._name, self._documentation, self._withholds_flagged = name, documentation, withholds_flagged
        self._counts: dict[tuple[str, ...], np.ndarray] = {}
        self._pending: list[tuple[tuple[str, ...], Judgements]] = []
        self._lock = Lock()

    def observe(self, labels: tuple[str, ...], judgements: Judgements) -> None:
        self._pending.append((labels, judgements))
        if len(self._pending) >= MOST_PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            for labels, judgements in pending:
                counts = self._counts.setdefault(labels, np.zeros((len(labels), 2), np.int64))
                np.add.at(counts, (judgements.class_index, judgements.flagged.astype(np.int64)), 1)

    def collect(self) -> Iterable[Metric]:
        self._count_pending()
        family = CounterMetricFamily(self._name, self._documentation, labels=["label", "decision"])
        totals: dict[str, np.ndarray] = {}
        for labels, counts in tuple(self._counts.items()):
            for label, row in zip(labels, counts, strict=True):
                known = label if label in totals or len(totals) < MOST_LABELS else OTHER_LABELS
                totals[known] = totals.get(known, 0) + row
        for label, (accepted, _) in totals.items():
            family.add_metric([label, "accepted"], float(accepted))
        for label, flagged in self._flagged(totals).items():
            family.add_metric([label, "flagged"], float(flagged))
        yield family

    def _flagged(self, totals: Mapping[str, np.ndarray]) -> dict[str, int]:
        by_label = {label: int(flagged) for label, (_, flagged) in totals.items()}
        return {WITHHELD_LABELS: sum(by_label.values())} if self._withholds_flagged else by_label
