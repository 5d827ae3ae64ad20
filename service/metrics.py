"""The metrics of one app, on its own registry. Labels are bounded: route templates, statuses, kinds."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.registry import Collector

from detectors.manifest import Manifest
from service.array_metrics import ArrayHistogram, ClassCounter
from service.judgements import Judgements
from service.monitoring.snapshot import DriftKind
from service.quarantine.records import State

P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NATS = (-1e6, -1e5, -1e4, -3000, -1000, -300, -100, -50, -30, -20, -10, -5, 0, 5, 10, 20, 30, 50, 100, 300, 1000)
LATENCIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = tuple(2.0**power for power in range(13))

# Else a series more for each counter, which nobody reads.
cast(Callable[[], None], disable_created_metrics)()


_C = TypeVar("_C", bound=Collector)


class Metrics:
    """Each is there from the start, at zero, where its labels are known: an absent series raises no alert.

    withholds_flagged: whether nobody may learn the label of a flagged image, since everybody may read these.
    """

    def __init__(self, *, withholds_flagged: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._withholds_flagged = withholds_flagged
        self._requests()
        self._inference()
        self._models()
        self._detection()
        self._quarantine()

    def _requests(self) -> None:
        counter = partial(Counter, registry=self.registry)
        self.requests = counter("lgm_requests", "Requests answered.", ["route", "status"])
        self.request_duration = self._histogram(
            "lgm_request_duration_seconds", "From a request's head to its answer's end.", LATENCIES, label="route"
        )
        self.rejected = counter("lgm_rejected", "Requests refused, by the kind of problem.", ["reason"])
        self.rate_limit_store_up = Gauge(
            "lgm_rate_limit_store_up",
            "0 while the store of shared rate limits fails, so that each service limits by itself; else 1.",
            registry=self.registry,
        )
        self.rate_limit_store_up.set(1)
        self._answered: dict[tuple[str, int | str], Counter] = {}

    def _inference(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.queue_depth = gauge("lgm_queue_depth", "Images that wait for the device.")
        self.queue_wait = self._histogram(
            "lgm_queue_wait_seconds", "A request's wait for its first batch.", LATENCIES
        )
        self.batch_size = self._histogram("lgm_batch_size", "Images in a batch.", SIZES)
        self.inference_duration = self._histogram("lgm_inference_duration_seconds", "Judging one batch.", LATENCIES)
        self.worker_up = gauge("lgm_worker_up", "Worker processes that are ready to judge.")
        self.worker_restarts = Counter(
            "lgm_worker_restarts", "Worker processes started in place of others that died.", registry=self.registry
        )

    def _models(self) -> None:
        gauge, which = partial(Gauge, registry=self.registry), ["name", "version"]
        self.model_info = gauge("lgm_model_info", "The model that serves; always 1.", which)
        self.calibration_timestamp = gauge(
            "lgm_calibration_timestamp_seconds", "When the model that serves was calibrated, since 1970.", which
        )
        self.false_alarm_target = gauge(
            "lgm_false_alarm_target_ratio", "The promised share of clean images flagged at most."
        )

    def _detection(self) -> None:
        self.images = Counter("lgm_images", "Images by what became of them.", ["decision"], registry=self.registry)
        self._accepted, self._flagged, _ = map(self.images.labels, ("accepted", "flagged", "rejected"))
        self.class_images = self._array(
            ClassCounter(
                "lgm_class_images",
                "Images by predicted class and what became of them.",
                withholds_flagged=self._withholds_flagged,
            )
        )
        self.log_likelihood = self._histogram("lgm_log_likelihood", "Log-likelihood of images, in nats.", NATS)
        self.p_value = self._histogram("lgm_p_value", "P-value behind the verdict.", P_VALUES)
        self.detector_p_value = self._histogram(
            "lgm_detector_p_value", "P-value of each detector.", P_VALUES, label="detector"
        )
        self.drift_alarms = Gauge(
            "lgm_drift_alarms", "Drifts that the monitor sees now.", ["kind"], registry=self.registry
        )
        for kind in get_args(DriftKind):
            self.drift_alarms.labels(kind)

    def _quarantine(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.quarantined = Counter(
            "lgm_quarantine",
            "Images chosen for quarantine, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("kept", "dropped", "failed", "expired"):
            self.quarantined.labels(outcome)
        self.quarantine_queue_depth = gauge("lgm_quarantine_queue_depth", "Images that wait to be kept.")
        self.quarantine_bytes = gauge("lgm_quarantine_bytes", "Bytes of the images in quarantine.")
        self.quarantine_items = gauge("lgm_quarantine_items", "Items in quarantine, by state.", ["state"])
        for state in State:
            self.quarantine_items.labels(state.value)

    def _histogram(
        self, name: str, documentation: str, bounds: Sequence[float], *, label: str | None = None
    ) -> ArrayHistogram:
        return self._array(ArrayHistogram(name, documentation, bounds, label=label))

    def _array(self, collector: _C) -> _C:
        self.registry.register(collector)
        return collector

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
