"""One snapshot a second for all who listen, made once and written once; rarely while nobody does."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from service.errors import NotReadyError, OverloadedError
from service.monitoring.monitor import Monitor

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
MOST_SHARE = 0.02
IDLE_SECONDS = 10.0
HEARTBEAT_SECONDS = 15.0
MOST_LISTENERS = 64
HEARTBEAT = b": the next snapshot takes its time\n\n"


class Pulse:
    """Listeners wait for the next beat and keep none, so whoever is slow misses some and costs no memory."""

    def __init__(self, monitor: Monitor, *, is_ready: Callable[[], bool]):
        self._monitor, self._is_ready = monitor, is_ready
        self._snapshot, self._event, self._made = b"", b"", -IDLE_SECONDS
        self._making = asyncio.Lock()
        self._next: asyncio.Future[bytes | None] | None = None
        self._num_listeners = 0
        self._ended = False
        self._wanted = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None

    @property
    def _beat_seconds(self) -> float:
        """Slower where many classes make a snapshot dear: it may take so much of a processor and no more."""
        return max(BEAT_SECONDS, self._monitor.cost_seconds / MOST_SHARE)

    def start(self) -> None:
        self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        self.end_streams()
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating

    def end_streams(self) -> None:
        self._ended = True
        self._announce(None)

    async def latest(self) -> bytes:
        """A snapshot as JSON, at most a beat old."""
        async with self._making:
            if time.monotonic() - self._made >= self._beat_seconds:
                snapshot = await self._monitor.snapshot(ready=self._is_ready())
                self._snapshot, self._made = snapshot.model_dump_json().encode(), time.monotonic()
                self._event = b"event: snapshot\ndata: " + self._snapshot + b"\n\n"
            return self._snapshot

    def check_room(self) -> None:
        """Raises OverloadedError, NotReadyError."""
        if self._ended:
            raise NotReadyError("the service is shutting down")
        if self._num_listeners >= MOST_LISTENERS:
            raise OverloadedError(f"{MOST_LISTENERS} listen to the monitor, the limit")

    async def listen(self) -> AsyncIterator[bytes]:
        """Server-sent events, the first at once; ends with the service."""
        self._num_listeners += 1
        self._wanted.set()
        try:
            await self.latest()
            seen = self._event
            yield seen
            while not self._ended:
                beat = await self._await_beat()
                if beat is None and not self._ended:
                    yield HEARTBEAT
                elif beat is not None and beat is not seen:  # the first may have been made for this very beat
                    seen = beat
                    yield beat
        finally:
            self._num_listeners -= 1

    async def _await_beat(self) -> bytes | None:
        """None if it does not come in time, or at the end."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({self._next}, timeout=HEARTBEAT_SECONDS)
        return next(iter(done)).result() if done else None

    async def _beat(self) -> None:
        while True:
            try:
                await self.latest()
                self._announce(self._event)
            except Exception:
                logger.exception("no snapshot could be made")
            await self._rest()

    async def _rest(self) -> None:
        """A beat's time if somebody listens, else longer, until somebody does."""
        if self._num_listeners:
            await asyncio.sleep(self._beat_seconds)
            return
        self._wanted.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), IDLE_SECONDS)

    def _announce(self, beat: bytes | None) -> None:
        waited_for, self._next = self._next, None
        if waited_for is not None and not waited_for.done():
            waited_for.set_result(beat)
