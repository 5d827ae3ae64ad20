"""The feeder's side of worker processes: starting them, feeding them, replacing those that die or hang."""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import send_handle

from model.errors import BundleError
from service.batching import Batcher, Outcome
from service.errors import InferenceError, WorkerDiedError
from service.forking import run_worker, worker_context
from service.jobs import Floats
from service.judgements import Judgements
from service.metrics import Metrics
from service.plan import COUNT, Plan, Said
from service.slab import Slab, anonymous_file

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 600
STOP_TIMEOUT_SECONDS = 5
STABLE_SECONDS = 10  # a worker that lived longer is replaced at once when it dies
FIRST_DELAY_SECONDS, MOST_DELAY_SECONDS = 0.1, 30.0


class Worker:
    """One process and its slab. A Device of the batcher."""

    def __init__(self, process: ForkServerProcess, connection: Connection, slab: Slab, *, timeout_seconds: float):
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.pid = process.pid
        self._process = process
        self._connection = connection
        self._slab = slab
        self._timeout_seconds = timeout_seconds
        self._ready: asyncio.Future[None] = loop.create_future()
        self._count = 0
        self._done: Callable[[Outcome], None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._on_end: Callable[[Worker], None] = _nothing
        weakref.finalize(self, process.kill)  # at exit too: multiprocessing would wait there for whoever still runs
        loop.add_reader(connection.fileno(), self._read)

    @classmethod
    async def start(cls, plan: Plan, *, timeout_seconds: float) -> "Worker":
        """A worker that is ready. Raises BundleError where it refuses the bundle, WorkerDiedError."""
        context = worker_context()
        here, there = context.Pipe()
        memory = anonymous_file(plan.layout.num_bytes)
        process = context.Process(
            target=run_worker, args=(plan, there), name=f"lgm-worker {plan.device}", daemon=True
        )
        try:
            await asyncio.to_thread(process.start)  # waits for the process that it is forked from
            there.close()
            send_handle(here, memory, process.pid)
            worker = cls(process, here, Slab(memory, plan.layout), timeout_seconds=timeout_seconds)
        finally:
            os.close(memory)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await worker._ready
        except BaseException:
            worker.kill()
            raise
        return worker

    def judge(self, images: Sequence[Floats], done: Callable[[Outcome], None]) -> None:
        row = 0
        for part in images:
            self._slab.images[row : row + len(part)] = part
            row += len(part)
        self._count, self._done = row, done
        self._alarm = asyncio.get_running_loop().call_later(self._timeout_seconds, self._give_up)
        with suppress(BrokenPipeError):  # that it has died will be read
            self._connection.send_bytes(COUNT.pack(row))

    def when_ended(self, tell: "Callable[[Worker], None]") -> None:
        self._on_end = tell

    def kill(self) -> None:
        self._process.kill()

    async def stop(self) -> None:
        """End once the batch that runs is judged; nobody waits for it any more."""
        self._end()
        await asyncio.to_thread(self._process.join, STOP_TIMEOUT_SECONDS)
        self._process.kill()
        await asyncio.to_thread(self._process.join)

    def _read(self) -> None:
        try:
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._end()
            return
        said, text = Said(message[0]), message[1:]
        if said is Said.JUDGED:
            self._tell(self._slab.read(self._count))
        elif said is Said.FAILED:
            self._tell(InferenceError(f"the model failed on these images ({text.decode()})"))
        elif said is Said.REFUSED:
            self._ready.set_exception(BundleError(text.decode()))
        else:
            self._ready.set_result(None)

    def _tell(self, outcome: Judgements | InferenceError) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    def _give_up(self) -> None:
        logger.error("worker %d has hung on a batch for %g s and is killed", self.pid, self._timeout_seconds)
        self.kill()

    def _end(self) -> None:
        if self.ended.done():
            return
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._connection.close()
        self.ended.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(WorkerDiedError("the worker ended before it was ready"))
        self._on_end(self)
        self._tell(WorkerDiedError("the worker has died"))


def _nothing(worker: Worker) -> None:
    """Before anybody asks to be told."""


class WorkerPool:
    """Keeps a worker running for each plan, and the batcher told of those that are ready."""

    def __init__(self, plans: Sequence[Plan], batcher: Batcher, metrics: Metrics, *, timeout_seconds: float):
        self._plans = plans
        self._batcher = batcher
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._workers: set[Worker] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """Of the workers that are ready."""
        return sorted(worker.pid for worker in self._workers if worker.pid is not None)

    async def start(self) -> None:
        """Returns once all are ready. Raises BundleError, WorkerDiedError where one is not; then none is left."""
        starting = [self._start(plan) for plan in self._plans]
        outcomes = await asyncio.gather(*starting, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        workers = [outcome for outcome in outcomes if isinstance(outcome, Worker)]
        if failures:
            await asyncio.gather(*(worker.stop() for worker in workers))
            raise failures[0]
        self._keepers = [
            asyncio.create_task(self._keep(plan, worker)) for plan, worker in zip(self._plans, workers, strict=True)
        ]

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.gather(*(worker.stop() for worker in tuple(self._workers)))
        await asyncio.gather(*self._keepers)

    async def _start(self, plan: Plan) -> Worker:
        return await Worker.start(plan, timeout_seconds=self._timeout_seconds)

    async def _keep(self, plan: Plan, worker: Worker | None) -> None:
        delay = 0.0
        while worker is not None:
            started = time.monotonic()
            await self._watch(worker)
            if time.monotonic() - started > STABLE_SECONDS:
                delay = 0.0
            worker = await self._replace(plan, delay)
            delay = _longer(delay)

    async def _watch(self, worker: Worker) -> None:
        """Until it ends."""
        if self._stopping.is_set():
            await worker.stop()
            return
        self._workers.add(worker)
        worker.when_ended(self._lose)
        self._batcher.attach(worker)
        await worker.ended

    def _lose(self, worker: Worker) -> None:
        self._workers.discard(worker)
        self._batcher.detach(worker)
        if not self._stopping.is_set():
            logger.error("worker %d has died; it is replaced", worker.pid)

    async def _replace(self, plan: Plan, delay: float) -> Worker | None:
        """Another worker, started again and again, ever more slowly; None once the pool stops."""
        await self._pause(delay)
        while not self._stopping.is_set():
            self._metrics.worker_restarts.inc()
            try:
                return await self._start(plan)
            except (BundleError, WorkerDiedError, TimeoutError, OSError) as error:
                delay = _longer(delay)
                logger.error("no worker could be started on %s, next try in %g s: %s", plan.device, delay, error)
            if not self._batcher.num_devices:
                self._batcher.refuse("the model's worker does not start")
            await self._pause(delay)
        return None

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _longer(delay: float) -> float:
    return min(MOST_DELAY_SECONDS, max(FIRST_DELAY_SECONDS, 2 * delay))
