"""The quarantine's own threads: a database that hangs must hold up nothing but the reviews."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

from service.errors import QuarantineUnavailableError

NUM_THREADS = 8
MOST_CALLS = 64

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class QuarantineThreads:
    """Runs calls that block; at most MOST_CALLS at once, of which NUM_THREADS run."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lgm-review")
        self._room = BoundedSemaphore(MOST_CALLS)

    async def run(
        self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """What the call returns or raises. Raises QuarantineUnavailableError where too many wait already."""
        if not self._room.acquire(blocking=False):
            raise QuarantineUnavailableError(f"{MOST_CALLS} calls wait for the quarantine, the limit")
        running = self._pool.submit(copy_context().run, partial(call, *args, **kwargs))
        running.add_done_callback(lambda _: self._room.release())  # not sooner: one that was given up may still run
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Calls that wait are dropped; those that run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
