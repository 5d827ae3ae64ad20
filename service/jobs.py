"""A request's images on their way through the queue, whole or in pieces."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.judgements import Judgements, join

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Times:
    """When a device first took images of a request and when the last were judged, in time.monotonic() seconds."""

    started: float = 0.0
    ended: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """Images (n, c, h, w) and the future of their judgements.

    collectable: it found a device busy. abandoned: whether its caller has gone. waiting: how many of its images
    are in the queue. parts: judgements so far, by the row where they begin. times: filled in if there.
    """

    images: Floats
    arrived: float
    collectable: bool
    deadline: float
    abandoned: Callable[[], bool]
    future: asyncio.Future[Judgements]
    waiting: int = 0
    num_judged: int = 0
    parts: dict[int, Judgements] = field(default_factory=dict)
    times: Times | None = None

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def begin(self, now: float) -> None:
        if self.times is not None and self.times.started == 0.0:
            self.times.started = now

    def add(self, start: int, judgements: Judgements) -> None:
        """Parts may come in any order, since devices take different times."""
        self.parts[start] = judgements
        self.num_judged += len(judgements)
        if self.num_judged == len(self.images) and not self.future.done():
            if self.times is not None:
                self.times.ended = time.monotonic()
            self.future.set_result(join([self.parts[row] for row in sorted(self.parts)]))


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a job. alone: never beside others, who could be the cause or suffer; deaths: of devices over it."""

    job: Job
    start: int
    stop: int
    alone: bool = False
    deaths: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def images(self) -> Floats:
        return self.job.images[self.start : self.stop]

    def split(self, count: int) -> tuple["Piece", "Piece | None"]:
        """The first so many rows, and the rest if there is one."""
        if count >= len(self):
            return self, None
        middle = self.start + count
        return replace(self, stop=middle), replace(self, start=middle)

    def to_try_alone(self) -> "Piece":
        return replace(self, alone=True)

    def after_death(self) -> "Piece":
        return replace(self, alone=True, deaths=self.deaths + 1)
