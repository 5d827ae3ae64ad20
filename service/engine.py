"""One loaded bundle: the worker processes that judge with it, and the threads that prepare what they judge."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from detectors.manifest import Manifest, load_manifest
from model.images import ImageFormat
from service.batching import Batcher
from service.cpus import available_cpus
from service.devices import resolve_devices
from service.errors import FieldFault, InvalidInputError, OverloadedError
from service.jobs import Times
from service.judgements import Judgements
from service.metrics import Metrics
from service.monitoring.model_watch import ModelWatch
from service.monitoring.observer import ModelObserver
from service.monitoring.traffic import Traffic
from service.plan import Plan
from service.recording import is_recorded, record
from service.settings import Settings
from service.slab import Layout
from service.workers import WorkerPool

logger = logging.getLogger(__name__)
Prepared = TypeVar("Prepared")
SMALL_VALUES = 3 * 64 * 64


def _stays() -> bool:
    return False


class Engine:
    """Prepares and judges images off the event loop. Knows nothing of HTTP."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        watch: ModelWatch,
        *,
        settings: Settings,
        metrics: Metrics,
        traffic: Traffic,
    ):
        self.manifest = manifest
        self.watch = watch
        self.image_format = ImageFormat(shape=manifest.image_shape, resize=manifest.resize)
        channels, height, width = manifest.image_shape
        # Decoding one in passing holds up nothing; where images are resized, files of any size may come.
        self.small_images = not manifest.resize and channels * height * width <= SMALL_VALUES
        self._batcher = Batcher(
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_wait_seconds,
            capacity=settings.queue_capacity,
            observer=ModelObserver(metrics, traffic, watch, waiting=lambda: self.depth),
        )
        plans = _plans(bundle, manifest, settings)
        self.num_workers_wanted = len(plans)
        self._workers = WorkerPool(
            plans,
            self._batcher,
            metrics,
            timeout_seconds=settings.inference_timeout_seconds,
        )
        self._threads = ThreadPoolExecutor(max_workers=available_cpus(), thread_name_prefix="lgm-decode")
        self._preparing = 0
        self._most_preparing = settings.queue_capacity
        self._num_users = 0
        self._unused = asyncio.Event()

    @classmethod
    async def load(cls, bundle: Path, *, settings: Settings, metrics: Metrics, traffic: Traffic) -> "Engine":
        """A bundle in workers that are warm and have tested themselves. Raises BundleError, SettingsError."""
        started = time.monotonic()
        manifest = await asyncio.to_thread(load_manifest, bundle)
        watch = await asyncio.to_thread(ModelWatch.of, bundle, manifest)
        engine = cls(bundle, manifest, watch, settings=settings, metrics=metrics, traffic=traffic)
        await engine._workers.start()
        seconds = time.monotonic() - started
        logger.info("bundle %s %s is ready after %.1f s", engine.name, engine.version, seconds)
        return engine

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    @property
    def detectors(self) -> tuple[str, ...]:
        return self.manifest.detectors

    @property
    def false_alarm_rate(self) -> float:
        return self.manifest.false_alarm_rate

    @property
    def alive(self) -> bool:
        """Whether a worker is up."""
        return self._batcher.num_devices > 0

    @property
    def num_workers(self) -> int:
        """How many workers are up."""
        return self._batcher.num_devices

    @property
    def worker_pids(self) -> list[int]:
        return self._workers.pids

    @property
    def depth(self) -> int:
        """Images that wait for a device."""
        return self._batcher.depth

    @contextmanager
    def in_use(self) -> Iterator["Engine"]:
        """Until a request's end: `close` waits for it, so that what was taken is decoded, judged and answered."""
        self._num_users += 1
        try:
            yield self
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    def check_room(self, count: int = 1) -> None:
        """Raises OverloadedError, NotReadyError where so many images more would not be taken."""
        self._batcher.check_room(count)

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """Run decoding on the pool. Raises OverloadedError where too much waits for it."""
        if self._preparing >= self._most_preparing:
            raise OverloadedError(f"{self._preparing} requests wait to be decoded, the limit")
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._preparing -= 1

    async def screen(
        self,
        images: ArrayLike,
        deadline: float | None = None,
        *,
        abandoned: Callable[[], bool] = _stays,
    ) -> Judgements:
        """Judge images (n, c, h, w) in [0, 1]; cancelling drops what has not reached the device.

        deadline: in time.monotonic() seconds. abandoned: whether the caller has gone, asked before late work starts.
        """
        array = np.ascontiguousarray(images, dtype=np.float32)
        if array.shape[1:] != self.image_format.shape or len(array) == 0:
            expected = f"(n >= 1, {', '.join(map(str, self.image_format.shape))})"
            raise InvalidInputError(FieldFault("images", f"must have shape {expected}, got {array.shape}"))
        deadline = math.inf if deadline is None else deadline
        if not is_recorded():
            return await self._batcher.submit(array, deadline=deadline, abandoned=abandoned)
        arrived, times = time.monotonic(), Times()
        judgements = await self._batcher.submit(array, deadline=deadline, abandoned=abandoned, times=times)
        record("queue wait", arrived, times.started)
        record("inference", times.started, times.ended)
        return judgements

    async def close(self) -> None:
        """Answer what was taken, then end the workers. Nobody must be able to take it into use any more."""
        while self._num_users:
            self._unused.clear()
            await self._unused.wait()
        await self._batcher.drain()
        await self._workers.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _plans(bundle: Path, manifest: Manifest, settings: Settings) -> list[Plan]:
    layout = Layout(
        max_batch_size=settings.max_batch_size,
        image_shape=manifest.image_shape,
        num_classes=len(manifest.labels),
        detectors=manifest.detectors,
    )
    return [
        Plan(
            bundle=bundle,
            version=manifest.version,
            device=device,
            threads=settings.threads,
            precision=settings.precision,
            compiler=settings.compiler,
            layout=layout,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )
        for device in resolve_devices(settings.device)
        for _ in range(settings.workers)
    ]
