"""What the writing thread does between two batches: forget what is due, and tell the metrics how much there is."""

import logging
import time
from collections.abc import Callable

from service.errors import QuarantineUnavailableError
from service.metrics import Metrics
from service.quarantine.quarantine import Quarantine
from service.quarantine.retention import Retention

logger = logging.getLogger(__name__)

BUSY_SECONDS = 5.0  # at least between two looks while items come in
IDLE_SECONDS = 30.0
SWEEP_SECONDS = 24 * 3600.0


class Upkeep:
    """Knows when what is due; never raises."""

    def __init__(
        self,
        quarantine: Quarantine,
        retention: Retention,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._quarantine, self._retention, self._metrics, self._clock = quarantine, retention, metrics, clock
        self._changed = True
        self._next_look, self._next_sweep = 0.0, 0.0

    def something_changed(self) -> None:
        self._changed = True

    def look_after(self) -> None:
        now = self._clock()
        if now < self._next_look + (0 if self._changed else IDLE_SECONDS - BUSY_SECONDS):
            return
        self._next_look, self._changed = now + BUSY_SECONDS, False
        try:
            self._look(now)
        except QuarantineUnavailableError as error:
            logger.warning("nothing expires for now: %s", error)
        except Exception:
            logger.exception("the quarantine could not be looked after")

    def _look(self, now: float) -> None:
        num_expired = self._retention.expire()
        self._metrics.quarantined.labels("expired").inc(num_expired)
        self._metrics.quarantine_bytes.set(self._retention.extent().num_bytes)
        for state, count in self._quarantine.counts().items():
            self._metrics.quarantine_items.labels(state.value).set(count)
        if now >= self._next_sweep:
            num_swept = self._retention.sweep()
            self._next_sweep = now + SWEEP_SECONDS
            if num_swept:
                logger.info("deleted %d files that no row of the quarantine named", num_swept)
