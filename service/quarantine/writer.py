"""The one thread that writes: what was captured into database and store, and what is too old or too much out of them.

Trouble with either never reaches a prediction. What is being written is tried again, and what comes meanwhile waits
in the backlog. Where that is full, what comes is dropped, and soon the oldest makes room for it.
"""

import logging
import time
from collections.abc import Callable
from threading import Event, Thread

from service.errors import QuarantineUnavailableError
from service.metrics import Metrics
from service.quarantine.backlog import Backlog, Captured
from service.quarantine.keeping import Kept
from service.quarantine.upkeep import Upkeep

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 64  # images in a transaction
TICK_SECONDS = 2.0  # how long an idle thread waits before it looks after what is there
PATIENCE_SECONDS = 30.0  # with what is being written while others find no room
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0


class Writer:
    def __init__(
        self,
        backlog: Backlog,
        prepare: Callable[[Captured], list[Kept]],
        keep: Callable[[list[Kept]], None],
        upkeep: Upkeep,
        metrics: Metrics,
    ):
        self._backlog, self._prepare, self._keep = backlog, prepare, keep
        self._upkeep, self._metrics = upkeep, metrics
        self._closing = Event()
        # Not waited for at the end of the process: a database that hangs must not hold that up.
        self._thread = Thread(target=self._run, name="lgm-quarantine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Write what waits, each with one try, then end."""
        self._closing.set()
        self._backlog.close()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.error("%d images were not kept before the service ended", self._backlog.num_images)

    def _run(self) -> None:
        self._upkeep.look_after()
        while not self._backlog.ended:
            batch = self._collect()
            if batch:
                self._write(batch)
            self._upkeep.look_after()

    def _collect(self) -> list[Captured]:
        """The oldest, and others that wait behind it."""
        batch: list[Captured] = []
        timeout = TICK_SECONDS
        while sum(map(len, batch)) < MOST_AT_ONCE and (captured := self._backlog.take(timeout)) is not None:
            batch.append(captured)
            timeout = 0
        return batch

    def _write(self, batch: list[Captured]) -> None:
        count = sum(map(len, batch))
        try:
            self._write_patiently([kept for captured in batch for kept in self._prepare(captured)])
        except QuarantineUnavailableError as error:
            logger.error("%d images were not kept: %s", count, error)
            self._metrics.quarantined.labels("failed").inc(count)
        except Exception:
            logger.exception("%d images were not kept", count)
            self._metrics.quarantined.labels("failed").inc(count)
        else:
            self._metrics.quarantined.labels("kept").inc(count)
            self._upkeep.something_changed()

    def _write_patiently(self, batch: list[Kept]) -> None:
        give_up, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._keep(batch)
            except QuarantineUnavailableError:
                is_late = time.monotonic() + pause > give_up
                if self._closing.is_set() or (is_late and self._backlog.had_no_room):
                    raise
            if not self._closing.wait(pause):
                self._upkeep.look_after()  # what expires makes room on a full disk
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
