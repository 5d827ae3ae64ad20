"""Requests and batches of the last hour, in buckets of ten seconds."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.judgements import Judgements

BUCKET_SECONDS = 10
NUM_BUCKETS = 360
LATENCY_BOUNDS = np.geomspace(1e-4, 60, 65)  # a bin is a quarter wider than the one before
MOST_PENDING = 1024
OK, CLIENT_ERROR, SERVER_ERROR, REFUSED = range(4)
REFUSALS = frozenset({429, 503, "RESOURCE_EXHAUSTED", "UNAVAILABLE"})
SERVER_ERRORS = frozenset({"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"})

PREDICTIONS = frozenset({"/v1/predict", "grpc/ModelInfer"})

Bucket = NDArray[np.int64]
# Columns of a bucket.
STATUSES = slice(0, 4)
LATENCIES = slice(4, 4 + len(LATENCY_BOUNDS) + 1)
IMAGES, FLAGGED, BATCHES, WAITING = range(LATENCIES.stop, LATENCIES.stop + 4)
NUM_COLUMNS = WAITING + 1


def is_prediction(route: str) -> bool:
    """route: its template, or the path."""
    return route in PREDICTIONS or route.endswith("/infer")


def status_class(status: int | str) -> int:
    """status: HTTP's number, or gRPC's name."""
    if status in REFUSALS:
        return REFUSED
    if isinstance(status, str):
        return OK if status == "OK" else SERVER_ERROR if status in SERVER_ERRORS else CLIENT_ERROR
    return OK if status < 400 else CLIENT_ERROR if status < 500 else SERVER_ERROR


class Traffic:
    """Of one event loop. clock: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets = np.zeros((NUM_BUCKETS, NUM_COLUMNS), np.int64)
        self._current = int(clock() // BUCKET_SECONDS)
        self._first = self._current
        self._pending: list[tuple[int | str, float]] = []

    def request_answered(self, route: str, status: int | str, seconds: float) -> None:
        if is_prediction(route):
            self._turn()
            if len(self._pending) >= MOST_PENDING:
                self._count_pending()
            self._pending.append((status, seconds))

    def batch_started(self, size: int, waiting: int) -> None:
        """waiting: images that are still in the queue."""
        self._turn()
        bucket = self._bucket()
        bucket[BATCHES] += 1
        bucket[WAITING] = max(bucket[WAITING], size + waiting)

    def batch_judged(self, judgements: Judgements) -> None:
        self._turn()
        bucket = self._bucket()
        bucket[IMAGES] += len(judgements)
        bucket[FLAGGED] += np.count_nonzero(judgements.flagged)

    def buckets(self) -> tuple[int, NDArray[np.int64]]:
        """The number of the current bucket since the clock's zero, and those up to it (n, columns), oldest first."""
        self._turn()
        self._count_pending()
        rolled = np.roll(self._buckets, -1 - self._current % NUM_BUCKETS, axis=0)
        return self._current, rolled[-min(NUM_BUCKETS, 1 + self._current - self._first) :]

    def _bucket(self) -> Bucket:
        bucket: Bucket = self._buckets[self._current % NUM_BUCKETS]
        return bucket

    def _turn(self) -> None:
        now = int(self._clock() // BUCKET_SECONDS)
        if now == self._current:
            return
        self._count_pending()
        for number in range(max(self._current, now - NUM_BUCKETS) + 1, now + 1):
            self._buckets[number % NUM_BUCKETS] = 0
        self._current = now

    def _count_pending(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        bucket = self._bucket()
        statuses = np.array([status_class(status) for status, _ in pending])
        seconds = np.array([seconds for _, seconds in pending])[statuses != REFUSED]  # refusing takes none
        bucket[STATUSES] += np.bincount(statuses, minlength=4)
        places = np.searchsorted(LATENCY_BOUNDS, seconds)
        bucket[LATENCIES] += np.bincount(places, minlength=len(LATENCY_BOUNDS) + 1)


def latency_quantiles(counts: NDArray[np.int64], levels: tuple[float, ...]) -> list[list[float | None]]:
    """Of histograms (n, bins): a row a level, straight lines within a bin; None where nothing was counted."""
    cumulative = counts.cumsum(axis=1)
    totals = cumulative[:, -1]
    edges = np.concatenate([[0.0], LATENCY_BOUNDS, LATENCY_BOUNDS[-1:]])
    rows = np.arange(len(counts))
    found = []
    for level in levels:
        bins = (cumulative < (level * totals)[:, None]).sum(axis=1).clip(max=counts.shape[1] - 1)
        inside = np.maximum(counts[rows, bins], 1)
        part = (level * totals - (cumulative[rows, bins] - counts[rows, bins])) / inside
        values = edges[bins] + part.clip(0, 1) * (edges[bins + 1] - edges[bins])
        found.append([round(float(value), 6) if total else None for value, total in zip(values, totals, strict=True)])
    return found
