"""What the quarantine forgets by itself: what is too old, what is too much, and files that no row names."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Select, case, func, select

from service.quarantine.database import Database
from service.quarantine.records import UNREVIEWED, Item
from service.quarantine.removal import remove
from service.quarantine.rows import item_of
from service.quarantine.store import Store
from service.quarantine.tables import blobs, items

WHO = "retention"
AT_ONCE = 64  # items in a transaction: others must get their turn
ORPHAN_AGE = timedelta(hours=1)  # younger, and its row may still be on its way


@dataclass(frozen=True, slots=True)
class Extent:
    num_items: int
    num_bytes: int


class Retention:
    """Each method raises QuarantineUnavailableError."""

    def __init__(self, database: Database, store: Store, *, max_items: int, max_bytes: int):
        self._database, self._store = database, store
        self._max_items, self._max_bytes = max_items, max_bytes

    def extent(self) -> Extent:
        """How much there is: items, and bytes of their files."""
        with self._database.reading() as connection:
            num_items = connection.execute(select(func.count()).select_from(items)).scalar_one()
            num_bytes = connection.execute(select(func.coalesce(func.sum(blobs.c.num_bytes), 0))).scalar_one()
        return Extent(int(num_items), int(num_bytes))

    def expire(self) -> int:
        """Delete what is past its time, then what is beyond the limits; how many items."""
        return self._expire_old() + self._expire_surplus()

    def sweep(self, *, older_than: timedelta = ORPHAN_AGE) -> int:
        """Delete files that no row names, as a killed process leaves them; how many."""
        return self._store.delete_orphans(self._known, before=datetime.now(UTC) - older_than)

    def _expire_old(self) -> int:
        due = select(items).where(items.c.expires_at <= datetime.now(UTC)).order_by(items.c.expires_at)
        total = 0
        while count := self._remove(due.limit(AT_ONCE)):
            total += count
        return total

    def _expire_surplus(self) -> int:
        """Those reviewed first, since somebody has looked at them already; the oldest first of both."""
        waiting = items.c.state.in_([state.value for state in UNREVIEWED])
        order = select(items).order_by(case((waiting, 1), else_=0), items.c.id)
        total = 0
        while surplus := self._surplus():
            total += self._remove(order.limit(min(surplus, AT_ONCE)))
        return total

    def _surplus(self) -> int:
        """How many items must go at least; of those beyond the bytes, one at a time, since sizes differ."""
        extent = self.extent()
        too_many = extent.num_items - self._max_items
        return max(too_many, int(extent.num_bytes > self._max_bytes and extent.num_items > 0))

    def _remove(self, query: Select[tuple[Item]]) -> int:
        """Other replicas that expire at this moment take others."""
        with self._database.writing() as connection:
            found = connection.execute(query.with_for_update(skip_locked=True)).mappings()
            leaving = [item_of(row) for row in found]
            if leaving:
                remove(connection, self._store, leaving, who=WHO, action="expired")
        return len(leaving)

    def _known(self, digests: list[str]) -> set[str]:
        found: set[str] = set()
        with self._database.reading() as connection:
            for start in range(0, len(digests), 500):
                part = digests[start : start + 500]
                found.update(connection.execute(select(blobs.c.digest).where(blobs.c.digest.in_(part))).scalars())
        return found
