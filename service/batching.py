"""A bounded queue of images and the one thread that takes them to the device in batches.

An idle worker starts at once with what is there; a busy one, coming back, collects from the first arrival on
for at most max_wait_seconds. Requests larger than a batch are split and joined again. Nothing here knows
of HTTP, of event loops or of what the judging does.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from service.errors import InferenceError, NotReadyError, OverloadedError
from service.judgements import Judgements, join

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Times:
    """When a request came, when the device first took images of it and when it gave the last ones back."""

    arrived: float
    started: float = 0.0
    ended: float = 0.0


@dataclass(eq=False, slots=True)
class _Job:
    images: Tensor
    times: Times
    future: Future[Judgements] = field(default_factory=Future)
    taken: int = 0
    parts: list[Judgements] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return len(self.images) - self.taken


@dataclass(frozen=True, slots=True)
class _Piece:
    job: _Job
    start: int
    stop: int


def _ignore(size: int, wait_seconds: Sequence[float]) -> None:
    """The observer where nobody looks."""


class Batcher:
    """Takes images (n, c, h, w), gives a future of their judgements.

    `judge` is called on the worker's thread alone, with at most max_batch_size images. `on_batch` is told of
    each batch: its size, and how long the requests that begin in it have waited.
    """

    def __init__(
        self,
        judge: Callable[[Tensor], Judgements],
        *,
        max_batch_size: int,
        max_wait_seconds: float,
        capacity: int,
        on_batch: Callable[[int, Sequence[float]], None] = _ignore,
    ):
        self._judge = judge
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._capacity = capacity
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._depth = 0
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="lgm-batcher", daemon=True)
        self._worker.start()

    @property
    def depth(self) -> int:
        """Images that wait."""
        return self._depth

    @property
    def alive(self) -> bool:
        return self._worker.is_alive() and not self._closed

    def submit(self, images: Tensor, times: Times | None = None) -> Future[Judgements]:
        """Queue images; cancelling the future drops what has not reached the device. Times are filled in.

        Raises OverloadedError where they do not fit into the queue, NotReadyError when closed.
        """
        job = _Job(images, times or Times(time.monotonic()))
        with self._changed:
            if not self.alive:
                raise NotReadyError("the model's worker has stopped")
            if self._depth + len(images) > self._capacity:
                raise OverloadedError(f"{self._depth} images wait; the limit is {self._capacity}")
            self._jobs.append(job)
            self._depth += len(images)
            self._changed.notify()
        job.future.add_done_callback(lambda future: self._discard(job) if future.cancelled() else None)
        return job.future

    def close(self, timeout_seconds: float | None = None) -> None:
        """Accept nothing more, judge what waits, stop the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join(timeout_seconds)

    def _work(self) -> None:
        pieces: list[_Piece] = []
        try:
            while pieces := self._collect():
                self._run(pieces)
        finally:
            self._end(pieces)

    def _collect(self) -> list[_Piece]:
        """The next batch; empty only when closed and drained."""
        with self._changed:
            if self._jobs:
                self._wait_for_company()
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            return self._take()

    def _wait_for_company(self) -> None:
        remaining = self._jobs[0].times.arrived + self._max_wait_seconds - time.monotonic()
        if remaining > 0:
            self._changed.wait_for(lambda: self._closed or self._depth >= self._max_batch_size, remaining)

    def _take(self) -> list[_Piece]:
        pieces, room = [], self._max_batch_size
        while room and self._jobs:
            job = self._jobs[0]
            count = min(room, job.waiting)
            pieces.append(_Piece(job, job.taken, job.taken + count))
            job.taken += count
            room -= count
            if not job.waiting:
                self._jobs.popleft()
        self._depth -= self._max_batch_size - room
        return pieces

    def _run(self, pieces: list[_Piece]) -> None:
        now = time.monotonic()
        try:
            images = torch.cat([piece.job.images[piece.start : piece.stop] for piece in pieces])
            self._on_batch(len(images), [now - piece.job.times.arrived for piece in pieces if piece.start == 0])
            judgements = self._judge(images)
        except Exception:
            logger.exception("a batch of %d requests failed", len(pieces))
            self._fail(pieces)
        else:
            self._deliver(pieces, judgements, now)

    def _deliver(self, pieces: list[_Piece], judgements: Judgements, started: float) -> None:
        row, ended = 0, time.monotonic()
        for piece in pieces:
            job, count = piece.job, piece.stop - piece.start
            job.parts.append(judgements.rows(row, row + count))
            row += count
            job.times.started = job.times.started or started
            job.times.ended = ended
            if piece.stop == len(job.images):
                with suppress(InvalidStateError):  # cancelled meanwhile
                    job.future.set_result(join(job.parts))

    def _fail(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            self._discard(piece.job)
            with suppress(InvalidStateError):
                piece.job.future.set_exception(InferenceError("the model failed on this batch"))

    def _end(self, running: list[_Piece]) -> None:
        """Closed before anybody learns of it; nobody waits for a worker that has ended."""
        with self._changed:
            self._closed = True
            waiting = [_Piece(job, 0, 0) for job in self._jobs]
        if running:
            logger.critical("the model's worker has ended while it judged %d requests", len(running))
        self._fail(running + waiting)

    def _discard(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._depth -= job.waiting
