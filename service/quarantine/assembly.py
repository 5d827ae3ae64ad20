"""The parts of one process's quarantine, put together from its settings."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from service.metrics import Metrics
from service.quarantine.backlog import Backlog, Captured
from service.quarantine.capture import Capture, share_of
from service.quarantine.database import Database
from service.quarantine.keeping import Kept, keep
from service.quarantine.places import place_of
from service.quarantine.preparing import prepare
from service.quarantine.quarantine import Quarantine
from service.quarantine.records import Why
from service.quarantine.retention import Retention
from service.quarantine.store import Store
from service.quarantine.threads import QuarantineThreads
from service.quarantine.upkeep import Upkeep
from service.quarantine.writer import Writer
from service.settings import Settings

CLOSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ward:
    """Capture is the way in, quarantine the way to look at it, in threads; writer is the thread between."""

    quarantine: Quarantine
    capture: Capture
    writer: Writer
    threads: QuarantineThreads

    def close(self) -> None:
        """Write what waits, then let go of the database."""
        self.writer.close(CLOSE_SECONDS)
        self.threads.close()
        self.quarantine.close()


def ward_of(settings: Settings, metrics: Metrics) -> Ward | None:
    """None where nothing is kept. Connects to nothing yet. Raises SettingsError."""
    if settings.quarantine == "off":
        return None
    place = place_of(settings)
    database, store = Database(place.database), Store(place.store)
    quarantine = Quarantine(database, store)
    backlog = Backlog(capacity=settings.quarantine_queue_capacity, max_bytes=settings.quarantine_queue_bytes)
    metrics.quarantine_queue_depth.set_function(lambda: backlog.num_images)
    retention = Retention(
        database, store, max_items=settings.quarantine_max_items, max_bytes=settings.quarantine_max_bytes
    )
    return Ward(
        quarantine=quarantine,
        capture=Capture(backlog, metrics, share=share_of(settings)),
        writer=Writer(
            backlog,
            _preparing(settings),
            partial(keep, database, store),
            Upkeep(quarantine, retention, metrics),
            metrics,
        ),
        threads=QuarantineThreads(),
    )


def _preparing(settings: Settings) -> partial[list[Kept]]:
    return partial(
        _prepared,
        drawn_as=Why.ALL if settings.quarantine == "all" else Why.SAMPLED,
        keeps_bytes=settings.quarantine != "metadata",
        max_age=timedelta(days=settings.quarantine_max_age_days),
    )


def _prepared(captured: Captured, *, drawn_as: Why, keeps_bytes: bool, max_age: timedelta) -> list[Kept]:
    return list(prepare(captured, drawn_as=drawn_as, keeps_bytes=keeps_bytes, max_age=max_age))
