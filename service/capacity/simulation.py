"""One replica, simulated event by event: its event loop, its queue as batching.py has it, its workers.

A balancer that sends each of many independent requests to any of r replicas splits a Poisson process of rate l into
r Poisson processes of rate l / r (Kingman, Poisson Processes, section 5.1). So one simulated replica tells of a
million.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from service.batching import LEAST_SHARE

Steps = Generator[simpy.Event, Any, None]
LOOP, WORKER = 0, 1  # priorities: what waits for a socket goes before what computes, as the kernel has it
WARM_UP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """Seconds of processor time that a request and a batch cost by their images, and what there is to spend.

    handover_seconds: of the event loop, for each batch that is handed to a worker and answered. The limits are those
    of the settings of the same names.
    """

    request_seconds: Callable[[int], float]
    batch_seconds: Callable[[int], float]
    cores: int
    workers: int
    handover_seconds: float = 0.0
    max_batch_size: int = 64
    max_wait_seconds: float = 0.002
    queue_capacity: int = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of the requests after the first tenth; times in seconds.

    waits: of each from arrival until a worker has it, but for its own work on the event loop; queue_waits: the part
    of it that is spent in the queue, which is what lgm_queue_wait_seconds tells; latencies: from arrival to verdict;
    refused: 503s; busy_share: of the workers' time.
    """

    waits: NDArray[np.float64]
    queue_waits: NDArray[np.float64]
    latencies: NDArray[np.float64]
    refused: int
    images_per_batch: float
    busy_share: float

    def wait(self, percent: float) -> float:
        return float(np.percentile(self.waits, percent))

    def queue_wait(self, percent: float) -> float:
        return float(np.percentile(self.queue_waits, percent))

    def latency(self, percent: float) -> float:
        return float(np.percentile(self.latencies, percent))


def simulate(
    replica: Replica,
    *,
    requests_per_second: float,
    images_per_request: int = 1,
    num_requests: int,
    generator: np.random.Generator,
) -> Outcome:
    """Poisson arrivals at the replica's door, until all are answered."""
    gaps = generator.exponential(1 / requests_per_second, num_requests)
    running = _Running(replica, images_per_request, np.cumsum(gaps))
    return running.run()


@dataclass(eq=False, slots=True)
class _Request:
    queued: float
    waiting: int
    unjudged: int
    collectable: bool
    answered: simpy.Event
    started: float = math.nan


@dataclass(eq=False, slots=True)
class _Tally:
    waits: list[float] = field(default_factory=list)
    queue_waits: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    batches: int = 0
    images: int = 0
    busy_seconds: float = 0.0


class _Running:
    def __init__(self, replica: Replica, images_per_request: int, arrivals: NDArray[np.float64]) -> None:
        self._replica, self._images, self._arrivals = replica, images_per_request, arrivals
        self._environment = simpy.Environment()
        self._loop = simpy.Resource(self._environment, 1)
        self._cores = simpy.PreemptiveResource(self._environment, replica.cores)
        self._queue: deque[_Request] = deque()
        self._depth = 0
        self._idle = replica.workers
        self._alarm_at = math.inf
        self._counted_from = float(arrivals[int(len(arrivals) * WARM_UP_SHARE)])
        self._tally = _Tally()

    def run(self) -> Outcome:
        self._environment.process(self._arrive())
        self._environment.run()
        tally = self._tally
        return Outcome(
            waits=np.asarray(tally.waits),
            queue_waits=np.asarray(tally.queue_waits),
            latencies=np.asarray(tally.latencies),
            refused=tally.refused,
            images_per_batch=tally.images / max(1, tally.batches),
            busy_share=tally.busy_seconds / (float(self._environment.now) * self._replica.workers),
        )

    def _arrive(self) -> Steps:
        for moment in self._arrivals:
            yield self._environment.timeout(moment - self._environment.now)
            self._environment.process(self._answer())

    def _answer(self) -> Steps:
        arrived, work = self._environment.now, self._replica.request_seconds(self._images)
        with self._loop.request() as turn:
            yield turn
            yield from self._compute(work, LOOP)
        if self._depth + self._images > self._replica.queue_capacity:
            self._tally.refused += arrived >= self._counted_from
            return
        request = _Request(
            queued=self._environment.now,
            waiting=self._images,
            unjudged=self._images,
            collectable=self._idle < self._replica.workers,
            answered=self._environment.event(),
        )
        self._queue.append(request)
        self._depth += self._images
        self._dispatch()
        yield request.answered
        if arrived >= self._counted_from:
            self._tally.waits.append(request.started - arrived - work)
            self._tally.queue_waits.append(request.started - request.queued)
            self._tally.latencies.append(self._environment.now - arrived)

    def _compute(self, seconds: float, priority: int) -> Steps:
        """Spend processor time; what is more urgent takes the processor away for a while."""
        while seconds > 0:
            with self._cores.request(priority=priority) as turn:
                yield turn
                began = self._environment.now
                try:
                    yield self._environment.timeout(seconds)
                    seconds = 0.0
                except simpy.Interrupt:
                    seconds -= self._environment.now - began

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            if (seconds := self._seconds_to_collect()) > 0:
                self._environment.process(self._ring(self._environment.now + seconds))
                return
            self._idle -= 1
            self._environment.process(self._judge(self._take()))

    def _ring(self, moment: float) -> Steps:
        if moment < self._alarm_at:
            self._alarm_at = moment
            yield self._environment.timeout(moment - self._environment.now)
            self._alarm_at = math.inf
            self._dispatch()

    def _seconds_to_collect(self) -> float:
        """As Batcher has it; the last nanosecond is not waited for, lest rounding makes it wait for ever."""
        most, first = self._replica.max_batch_size, self._queue[0]
        enough = most if self._replica.workers == 1 else min(LEAST_SHARE, most)
        if not first.collectable or self._depth >= enough:
            return 0.0
        seconds = first.queued + self._replica.max_wait_seconds - self._environment.now
        return seconds if seconds > 1e-9 else 0.0

    def _take(self) -> list[tuple[_Request, int]]:
        share = math.ceil(self._depth / (1 + self._idle))
        room = min(self._replica.max_batch_size, max(LEAST_SHARE, share))
        batch = []
        while room and self._queue:
            request = self._queue[0]
            taken = min(room, request.waiting)
            request.waiting -= taken
            if math.isnan(request.started):
                request.started = self._environment.now
            if not request.waiting:
                self._queue.popleft()
            batch.append((request, taken))
            room -= taken
            self._depth -= taken
        return batch

    def _judge(self, batch: list[tuple[_Request, int]]) -> Steps:
        began, size = self._environment.now, sum(taken for _, taken in batch)
        yield from self._compute(self._replica.batch_seconds(size), WORKER)
        if self._replica.handover_seconds:
            with self._loop.request() as turn:  # the worker is idle again when the loop has seen to it
                yield turn
                yield from self._compute(self._replica.handover_seconds, LOOP)
        self._tally.batches += 1
        self._tally.images += size
        self._tally.busy_seconds += self._environment.now - began
        for request, taken in batch:
            request.unjudged -= taken
            if not request.unjudged:
                request.answered.succeed()
        self._idle += 1
        self._dispatch()
