"""Makes the snapshot: gathers on the event loop, which is quick, and words it on a thread beside it."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from detectors.manifest import Manifest
from service.engine import Engine
from service.metrics import Metrics
from service.monitoring import traffic as columns
from service.monitoring.snapshot import (
    Calibration,
    DriftKind,
    Lately,
    ModelMonitor,
    Snapshot,
)
from service.monitoring.snapshot import Traffic as TrafficTold
from service.monitoring.tally import Counted
from service.monitoring.traffic import BUCKET_SECONDS, Traffic, latency_quantiles
from service.monitoring.words import summarise
from service.registry import Registry
from service.settings import Settings

RECENT_BUCKETS = 30
LATENCY_LEVELS = (0.5, 0.95, 0.99)

Buckets = NDArray[np.int64]


class Monitor:
    def __init__(self, settings: Settings, registry: Registry, traffic: Traffic, metrics: Metrics):
        self._settings, self._registry, self._traffic, self._metrics = settings, registry, traffic, metrics
        self._started = time.monotonic()
        self._version = version("lgm-guard")
        self.cost_seconds = 0.0  # processor time of the last snapshot

    async def snapshot(self, *, ready: bool) -> Snapshot:
        """One at a time: drifts are followed from one to the next."""
        engines = [(engine, engine.watch.gather()) for engine in self._registry.active_engines()]
        current, buckets = self._traffic.buckets()
        snapshot = await asyncio.to_thread(self._tell, engines, current, buckets, ready)
        kinds = Counter(alarm.kind for model in snapshot.models for alarm in model.drift.alarms)
        for kind in get_args(DriftKind):
            self._metrics.drift_alarms.labels(kind).set(kinds[kind])
        return snapshot

    def _tell(self, engines: list[tuple[Engine, Counted]], current: int, buckets: Buckets, ready: bool) -> Snapshot:
        now, clock, spent = datetime.now(UTC), time.monotonic(), time.thread_time()
        models = [self._model(engine, counted, now) for engine, counted in engines]
        lately = _lately(buckets[-RECENT_BUCKETS:], clock - (current + 1) * BUCKET_SECONDS)
        level, summary = summarise(models, lately, ready=ready)
        self.cost_seconds = time.thread_time() - spent
        return Snapshot(
            time=now,
            level=level,
            summary=summary,
            service_version=self._version,
            uptime_seconds=clock - self._started,
            ready=ready,
            device=self._settings.device,
            precision=self._settings.precision,
            queue_capacity=self._settings.queue_capacity,
            lately=lately,
            traffic=_traffic(buckets, now - timedelta(seconds=clock - current * BUCKET_SECONDS)),
            models=models,
        )

    def _model(self, engine: Engine, counted: Counted, now: datetime) -> ModelMonitor:
        manifest, found = engine.manifest, engine.watch.tell(counted, now)
        accuracy = manifest.measured.get("accuracy")
        return ModelMonitor(
            name=manifest.name,
            version=manifest.version,
            default=self._registry.is_default(manifest.name),
            loaded=engine.watch.loaded,
            accuracy=accuracy if isinstance(accuracy, float) else None,
            workers_up=engine.num_workers,
            workers_wanted=engine.num_workers_wanted,
            queue_depth=engine.depth,
            promised_share=manifest.false_alarm_rate,
            calibration=_calibration(manifest, now),
            flagged=found.flagged,
            p_values=found.p_values,
            classes=found.classes,
            num_classes=len(manifest.labels),
            drift=found.drift,
        )


def _calibration(manifest: Manifest, now: datetime) -> Calibration:
    age = None if manifest.created is None else max(0.0, (now - manifest.created).total_seconds())
    return Calibration(created=manifest.created, age_seconds=age, num_images=sum(manifest.calibration_sizes.values()))


def _traffic(buckets: Buckets, last_start: datetime) -> TrafficTold:
    statuses = buckets[:, columns.STATUSES]
    p50, p95, p99 = latency_quantiles(buckets[:, columns.LATENCIES], LATENCY_LEVELS)
    images, batches = buckets[:, columns.IMAGES].tolist(), buckets[:, columns.BATCHES].tolist()
    ages = range(len(buckets) - 1, -1, -1)
    return TrafficTold(
        bucket_seconds=BUCKET_SECONDS,
        bucket_starts=[last_start.replace(microsecond=0) - timedelta(seconds=age * BUCKET_SECONDS) for age in ages],
        requests=statuses.sum(1).tolist(),
        client_errors=statuses[:, columns.CLIENT_ERROR].tolist(),
        server_errors=statuses[:, columns.SERVER_ERROR].tolist(),
        refusals=statuses[:, columns.REFUSED].tolist(),
        images=images,
        flagged=buckets[:, columns.FLAGGED].tolist(),
        latency_p50_seconds=p50,
        latency_p95_seconds=p95,
        latency_p99_seconds=p99,
        batch_size=[round(of / count, 2) if count else None for of, count in zip(images, batches, strict=True)],
        queue_depth=buckets[:, columns.WAITING].tolist(),
    )


def _lately(buckets: Buckets, seconds_since_end: float) -> Lately:
    """seconds_since_end: negative, as the last bucket is not over yet."""
    total = buckets.sum(0)
    statuses, num_requests = total[columns.STATUSES], int(total[columns.STATUSES].sum())
    seconds = max(1.0, len(buckets) * BUCKET_SECONDS + seconds_since_end)
    quantiles = latency_quantiles(total[None, columns.LATENCIES], LATENCY_LEVELS)
    return Lately(
        requests_per_second=num_requests / seconds,
        images_per_second=float(total[columns.IMAGES]) / seconds,
        error_share=float(statuses[columns.SERVER_ERROR]) / num_requests if num_requests else None,
        refused_share=float(statuses[columns.REFUSED]) / num_requests if num_requests else None,
        latency_p50_seconds=quantiles[0][0],
        latency_p95_seconds=quantiles[1][0],
        latency_p99_seconds=quantiles[2][0],
    )
