"""The metrics of one app, on its own registry. Labels are bounded: route templates, statuses, kinds."""

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import cast, get_args

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from detectors.bundle import Manifest
from service.judgements import Judgements
from service.monitoring.snapshot import DriftKind
from service.quarantine.records import State

P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NATS = (-1e6, -1e5, -1e4, -3000, -1000, -300, -100, -50, -30, -20, -10, -5, 0, 5, 10, 20, 30, 50, 100, 300, 1000)
LATENCIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = tuple(2.0**power for power in range(13))
MOST_PENDING = 256
MOST_LABELS, OTHER_LABELS = 100, "other"

# Else a series more for each counter, which nobody reads.
cast(Callable[[], None], disable_created_metrics)()


class ArrayHistogram(Collector):
    """A histogram that takes whole arrays, and counts many at once: prometheus-client's pays for each value.

    What was observed is kept as it came until there is enough of it or somebody looks.
    """

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


class ClassCounter(Collector):
    """Images by label and decision; counted many at once, as above. Labels beyond the first MOST_LABELS are one."""

    def __init__(self, name: str, documentation: str):
        self._name, self._documentation = name, documentation
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
        for label, (accepted, flagged) in totals.items():
            family.add_metric([label, "accepted"], float(accepted))
            family.add_metric([label, "flagged"], float(flagged))
        yield family


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("lgm_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.request_duration = ArrayHistogram(
            "lgm_request_duration_seconds", "From a request's head to its answer's end.", LATENCIES, label="route"
        )
        self.images = Counter("lgm_images", "Images by what became of them.", ["decision"], registry=self.registry)
        for decision in ("accepted", "flagged", "rejected"):
            self.images.labels(decision)
        self.rejected = Counter(
            "lgm_rejected", "Requests refused, by the kind of problem.", ["reason"], registry=self.registry
        )
        self.queue_depth = Gauge("lgm_queue_depth", "Images that wait for the device.", registry=self.registry)
        self.queue_wait = ArrayHistogram("lgm_queue_wait_seconds", "A request's wait for its first batch.", LATENCIES)
        self.batch_size = ArrayHistogram("lgm_batch_size", "Images in a batch.", SIZES)
        self.inference_duration = ArrayHistogram("lgm_inference_duration_seconds", "Judging one batch.", LATENCIES)
        self.worker_up = Gauge("lgm_worker_up", "Worker processes that are ready to judge.", registry=self.registry)
        self.worker_restarts = Counter(
            "lgm_worker_restarts", "Worker processes started in place of others that died.", registry=self.registry
        )
        self.rate_limit_store_up = Gauge(
            "lgm_rate_limit_store_up",
            "0 while the store of shared rate limits fails, so that each service limits by itself; else 1.",
            registry=self.registry,
        )
        self.rate_limit_store_up.set(1)
        self.model_info = Gauge(
            "lgm_model_info", "The model that serves; always 1.", ["name", "version"], registry=self.registry
        )
        self.calibration_timestamp = Gauge(
            "lgm_calibration_timestamp_seconds",
            "When the model that serves was calibrated, since 1970.",
            ["name", "version"],
            registry=self.registry,
        )
        self.drift_alarms = Gauge(
            "lgm_drift_alarms", "Drifts that the monitor sees now.", ["kind"], registry=self.registry
        )
        for kind in get_args(DriftKind):
            self.drift_alarms.labels(kind)
        self.class_images = ClassCounter("lgm_class_images", "Images by predicted class and what became of them.")
        self.registry.register(self.class_images)
        self.false_alarm_target = Gauge(
            "lgm_false_alarm_target_ratio",
            "The promised share of clean images flagged at most.",
            registry=self.registry,
        )
        self.log_likelihood = ArrayHistogram("lgm_log_likelihood", "Log-likelihood of images, in nats.", NATS)
        self.p_value = ArrayHistogram("lgm_p_value", "P-value behind the verdict.", P_VALUES)
        self.detector_p_value = ArrayHistogram(
            "lgm_detector_p_value", "P-value of each detector.", P_VALUES, label="detector"
        )
        self.quarantined = Counter(
            "lgm_quarantine",
            "Images chosen for quarantine, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("kept", "dropped", "failed", "expired"):
            self.quarantined.labels(outcome)
        self.quarantine_queue_depth = Gauge(
            "lgm_quarantine_queue_depth", "Images that wait to be kept.", registry=self.registry
        )
        self.quarantine_bytes = Gauge(
            "lgm_quarantine_bytes", "Bytes of the images in quarantine.", registry=self.registry
        )
        self.quarantine_items = Gauge(
            "lgm_quarantine_items", "Items in quarantine, by state.", ["state"], registry=self.registry
        )
        for state in State:
            self.quarantine_items.labels(state.value)
        for histogram in [value for value in vars(self).values() if isinstance(value, ArrayHistogram)]:
            self.registry.register(histogram)
        self._answered: dict[tuple[str, int | str], Counter] = {}
        self._accepted, self._flagged = self.images.labels("accepted"), self.images.labels("flagged")

    def request_answered(self, route: str, status: int | str, seconds: float) -> None:
        """status: HTTP's number, or gRPC's name."""
        counter = self._answered.get((route, status))
        if counter is None:
            counter = self._answered[route, status] = self.requests.labels(route, str(status))
        counter.inc()
        self.request_duration.observe((seconds,), route)

    def models_active(self, models: Sequence[tuple[str, str]]) -> None:
        """(name, version) of each that answers for its name now."""
        self.model_info.clear()
        for name, version in models:
            self.model_info.labels(name, version).set(1)

    def calibrated(self, manifests: Sequence[Manifest]) -> None:
        """Of each model that answers now; of one that does not say when, there is no series."""
        self.calibration_timestamp.clear()
        for manifest in manifests:
            if manifest.created is not None:
                self.calibration_timestamp.labels(manifest.name, manifest.version).set(manifest.created.timestamp())

    def default_model(self, *, false_alarm_rate: float, detectors: Iterable[str]) -> None:
        self.false_alarm_target.set(false_alarm_rate)
        for detector in detectors:
            self.detector_p_value.observe((), detector)

    def batch_started(self, size: int, wait_seconds: Sequence[float]) -> None:
        self.batch_size.observe((size,))
        self.queue_wait.observe(wait_seconds)

    def batch_judged(self, judgements: Judgements, seconds: float) -> None:
        self.inference_duration.observe((seconds,))
        num_flagged = int(np.count_nonzero(judgements.flagged))
        self._flagged.inc(num_flagged)
        self._accepted.inc(len(judgements) - num_flagged)
        self.log_likelihood.observe(judgements.log_likelihood)
        self.p_value.observe(judgements.p_value)
        for column, detector in enumerate(judgements.detectors):
            self.detector_p_value.observe(judgements.evidence_p_values[:, column], detector)
