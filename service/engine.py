"""One loaded bundle: warmed, checked against its own reference scores, with the threads that serve it."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from detectors import Screener, load_bundle
from model.images import ImageFormat
from service.batching import Batcher, Times
from service.errors import InferenceError, OverloadedError, SettingsError
from service.judgements import Judgements
from service.metrics import Metrics
from service.recording import record
from service.settings import Settings

logger = logging.getLogger(__name__)
Prepared = TypeVar("Prepared")


class Engine:
    """Prepares and judges images off the event loop. Knows nothing of HTTP."""

    def __init__(self, screener: Screener, *, settings: Settings, metrics: Metrics):
        self._screener = screener
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(max_workers=settings.threads, thread_name_prefix="lgm-decode")
        self._preparing = 0
        self._most_preparing = settings.queue_capacity
        self._batcher = Batcher(
            self._judge,
            max_batch_size=settings.max_batch_size,
            max_wait_seconds=settings.max_wait_seconds,
            capacity=settings.queue_capacity,
            on_batch=metrics.batch_started,
        )
        metrics.queue_depth.set_function(lambda: self._batcher.depth)
        metrics.model_activated(self.name, self.version, screener.false_alarm_rate, screener.detectors)

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> "Engine":
        """Load, warm and self-test the bundle of the settings. Raises BundleError, SettingsError."""
        started = time.monotonic()
        screener = load_bundle(settings.bundle, device=str(_device(settings.device)))
        screener.self_test()
        _warm(screener, settings.max_batch_size)
        logger.info(
            "bundle %s %s is ready on %s after %.1f s",
            screener.name,
            screener.version,
            screener.device,
            time.monotonic() - started,
        )
        return cls(screener, settings=settings, metrics=metrics)

    @property
    def name(self) -> str:
        return self._screener.name

    @property
    def version(self) -> str:
        return self._screener.version

    @property
    def labels(self) -> tuple[str, ...]:
        return self._screener.labels

    @property
    def image_format(self) -> ImageFormat:
        return self._screener.image_format

    @property
    def alive(self) -> bool:
        return self._batcher.alive

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """Run decoding on the pool. Raises OverloadedError where too much waits for it."""
        if self._preparing >= self._most_preparing:
            raise OverloadedError(f"{self._preparing} requests wait to be decoded, the limit")
        self._preparing += 1
        started = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._preparing -= 1
            record("decode", started, time.monotonic())

    async def screen(self, images: Tensor) -> Judgements:
        """Judge images (n, c, h, w) in [0, 1]; cancelling drops what has not reached the device."""
        times = Times(time.monotonic())
        judgements = await asyncio.wrap_future(self._batcher.submit(images, times))
        record("queue wait", times.arrived, times.started)
        record("inference", times.started, times.ended)
        return judgements

    def close(self) -> None:
        self._batcher.close()
        self._pool.shutdown(cancel_futures=True)

    def _judge(self, images: Tensor) -> Judgements:
        started = time.monotonic()
        judgements = Judgements.of(self._screener.screen(images))
        if not np.isfinite(judgements.log_likelihood).all():
            raise InferenceError("the model gave a likelihood that is not finite")
        self._metrics.batch_judged(judgements, time.monotonic() - started)
        return judgements


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device: {name} is not available here ({torch.cuda.device_count()} CUDA devices)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device: mps is not available here")
    return device


def _warm(screener: Screener, max_batch_size: int) -> None:
    """Run the sizes that batches grow through, so that no request pays for a first time."""
    sizes = {max_batch_size} | {2**power for power in range(max_batch_size.bit_length())}
    for size in sorted(sizes):
        screener.screen(torch.zeros(size, *screener.image_format.shape))
