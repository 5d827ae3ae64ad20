"""A bounded queue of images, and how they are shared out in batches to the devices that are free.

Everything here runs on one event loop. Where all devices are idle, one starts at once with what is there; what comes
while one is busy is collected, from the first arrival on for at most max_wait_seconds. Requests larger than a batch
are split and joined again. Nothing here knows of HTTP, of processes or of what the judging does.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from service.errors import (
    AbandonedError,
    DeadlineError,
    InferenceError,
    NotReadyError,
    OverloadedError,
    WorkerDiedError,
)
from service.jobs import Floats, Job, Piece, Times
from service.judgements import Judgements

logger = logging.getLogger(__name__)

LEAST_SHARE = 8  # images that make a second device worth its while; fewer cost it more than the first would take
PATIENT_SECONDS = 0.01  # after shorter waits it is not worth asking whether the caller is still there
MOST_DEATHS = 2  # of devices over the same images, until it is them that are blamed
MOST_RETRY_SECONDS = 30
NEW_RATE_WEIGHT = 0.1

Outcome = Judgements | InferenceError


class Device(Protocol):
    """Judges one batch at a time; tells `done` on the event loop. WorkerDiedError says that it is no more."""

    def judge(self, images: Sequence[Floats], done: Callable[[Outcome], None]) -> None: ...


class Observer(Protocol):
    def batch_started(self, size: int, wait_seconds: Sequence[float]) -> None: ...

    def batch_judged(self, judgements: Judgements, seconds: float) -> None: ...


def _stays() -> bool:
    return False


class Batcher:
    """Takes images (n, c, h, w), gives a future of their judgements.

    A batch whose judging fails is tried again, each request alone, so that only what is really bad fails. What a
    device died over goes back to the queue's head, once.
    """

    def __init__(self, *, max_batch_size: int, max_wait_seconds: float, capacity: int, observer: Observer):
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._capacity = capacity
        self._observer = observer
        self._queue: deque[Piece] = deque()
        self._depth = 0
        self._unfinished: set[Job] = set()
        self._idle: list[Device] = []
        self._num_devices = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._seconds_per_image = 0.0
        self._refusal = ""
        self._draining = False

    @property
    def depth(self) -> int:
        """Images that wait."""
        return self._depth

    @property
    def num_devices(self) -> int:
        return self._num_devices

    def check_room(self, count: int = 1) -> None:
        """Raises OverloadedError where so many images more do not fit, NotReadyError where nobody judges."""
        if self._draining or self._refusal:
            raise NotReadyError(self._refusal or "the model is being unloaded")
        if self._depth + count > self._capacity:
            message = f"{self._depth} images wait; the limit is {self._capacity}"
            raise OverloadedError(message, retry_after_seconds=self._retry_after())

    def submit(
        self,
        images: Floats,
        *,
        deadline: float = math.inf,
        abandoned: Callable[[], bool] = _stays,
        times: Times | None = None,
    ) -> asyncio.Future[Judgements]:
        """Queue images; deadline in time.monotonic() seconds. Cancelling the future drops what still waits.

        abandoned: asked before work that waited for long is started. times: are filled in. Raises as check_room
        does; the future also raises DeadlineError, AbandonedError, InferenceError.
        """
        self.check_room(len(images))
        loop = asyncio.get_running_loop()
        job = Job(
            images,
            arrived=time.monotonic(),
            collectable=len(self._idle) < self._num_devices,
            deadline=deadline,
            abandoned=abandoned,
            future=loop.create_future(),
            times=times,
        )
        alarm = None if deadline == math.inf else loop.call_later(deadline - job.arrived, self._expire, job)
        job.future.add_done_callback(lambda _: self._forget(job, alarm))
        self._unfinished.add(job)
        self._wait(Piece(job, 0, len(images)), self._queue.append)
        self._dispatch()
        return job.future

    def attach(self, device: Device) -> None:
        """From now on it gets batches, until it says that it is no more."""
        self._refusal = ""
        self._num_devices += 1
        self._idle.append(device)
        self._dispatch()

    def detach(self, device: Device) -> None:
        """It died while it was idle."""
        if device in self._idle:
            self._idle.remove(device)
            self._num_devices -= 1

    def refuse(self, reason: str) -> None:
        """Until a device is attached, nobody is there to judge: what waits and what comes is told so."""
        self._refusal = reason
        for piece in tuple(self._queue):
            piece.job.fail(NotReadyError(reason))

    async def drain(self) -> None:
        """Take nothing more, and wait until all that was taken is answered."""
        self._draining = True
        self._dispatch()
        while self._unfinished:
            await asyncio.wait([job.future for job in self._unfinished])

    def _dispatch(self) -> None:
        while self._idle and self._find_wanted():
            if (seconds := self._seconds_to_collect()) > 0:
                self._dispatch_after(seconds)
                return
            self._start(self._idle.pop(), self._take())  # the last to judge, whose caches are warm

    def _find_wanted(self) -> bool:
        """Whether anything waits, once work that needs no answer any more is gone from the queue's head."""
        while self._queue:
            job = self._queue[0].job
            self._check_wanted(job)
            if not job.future.done():
                return True
            self._queue.popleft()
        return False

    def _check_wanted(self, job: Job) -> None:
        now = time.monotonic()
        if now >= job.deadline:
            self._expire(job)
        elif now - job.arrived > PATIENT_SECONDS and not job.future.done() and job.abandoned():
            job.fail(AbandonedError("the caller has gone"))

    def _seconds_to_collect(self) -> float:
        job = self._queue[0].job
        enough = self._max_batch_size if self._num_devices == 1 else min(LEAST_SHARE, self._max_batch_size)
        if self._draining or not job.collectable or self._depth >= enough:
            return 0.0
        return min(job.arrived + self._max_wait_seconds, job.deadline) - time.monotonic()

    def _dispatch_after(self, seconds: float) -> None:
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._dispatch()

    def _take(self) -> list[Piece]:
        """The next batch; where several devices are idle, a fair share. What is to be tried alone comes alone."""
        share = math.ceil(self._depth / (1 + len(self._idle)))
        room = min(self._max_batch_size, max(LEAST_SHARE, share))
        pieces: list[Piece] = []
        while room and self._find_wanted() and not (pieces and (pieces[-1].alone or self._queue[0].alone)):
            piece, rest = self._queue.popleft().split(room)
            if rest is not None:
                self._queue.appendleft(rest)
            piece.job.waiting -= len(piece)
            self._depth -= len(piece)
            room -= len(piece)
            pieces.append(piece)
        return pieces

    def _start(self, device: Device, pieces: list[Piece]) -> None:
        now = time.monotonic()
        waits = [now - piece.job.arrived for piece in pieces if piece.start == 0]
        self._observer.batch_started(sum(map(len, pieces)), waits)
        for piece in pieces:
            piece.job.begin(now)
        device.judge([piece.images for piece in pieces], partial(self._finish, device, pieces, now))

    def _finish(self, device: Device, pieces: list[Piece], started: float, outcome: Outcome) -> None:
        if isinstance(outcome, WorkerDiedError):
            self._num_devices -= 1
            self._put_back(pieces)
        else:
            self._idle.append(device)
            if isinstance(outcome, Judgements):
                self._deliver(pieces, outcome, time.monotonic() - started)
            else:
                self._try_alone(pieces, outcome)
        self._dispatch()

    def _deliver(self, pieces: list[Piece], judgements: Judgements, seconds: float) -> None:
        self._observer.batch_judged(judgements, seconds)
        self._seconds_per_image += NEW_RATE_WEIGHT * (seconds / len(judgements) - self._seconds_per_image)
        row = 0
        for piece in pieces:
            piece.job.add(piece.start, judgements.rows(row, row + len(piece)))
            row += len(piece)

    def _try_alone(self, pieces: list[Piece], error: InferenceError) -> None:
        if len(pieces) == 1:
            pieces[0].job.fail(error)
            return
        for piece in reversed(pieces):
            self._wait(piece.to_try_alone(), self._queue.appendleft)

    def _put_back(self, pieces: list[Piece]) -> None:
        for piece in reversed(pieces):
            if piece.deaths + 1 == MOST_DEATHS:
                piece.job.fail(InferenceError("the model's worker died over it twice"))
            else:
                self._wait(piece.after_death(), self._queue.appendleft)

    def _wait(self, piece: Piece, put: Callable[[Piece], None]) -> None:
        if not piece.job.future.done():
            piece.job.waiting += len(piece)
            self._depth += len(piece)
            put(piece)

    def _expire(self, job: Job) -> None:
        if self._num_devices:
            job.fail(DeadlineError("no answer before the deadline"))
        else:
            job.fail(NotReadyError("the model's worker is being restarted"))

    def _forget(self, job: Job, alarm: asyncio.TimerHandle | None) -> None:
        if alarm is not None:
            alarm.cancel()
        self._unfinished.discard(job)
        self._depth -= job.waiting
        job.waiting = 0

    def _retry_after(self) -> int:
        seconds = self._depth * self._seconds_per_image / max(1, self._num_devices)
        return min(MOST_RETRY_SECONDS, max(1, math.ceil(seconds)))
