"""The quarantine as whoever reviews sees it. Every call may block: off the event loop, by QuarantineThreads."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from service.errors import (
    ChangedMeanwhileError,
    FieldFault,
    InvalidParametersError,
    TransitionError,
    UnknownItemError,
)
from service.judgements import Floats
from service.quarantine.database import Database
from service.quarantine.files import picture_of, read_image
from service.quarantine.identity import is_id
from service.quarantine.records import TRANSITIONS, AuditLine, Filter, Item, Page, State
from service.quarantine.removal import of_sample, remove
from service.quarantine.rows import conditions, item_of
from service.quarantine.store import Store
from service.quarantine.tables import audit, items

EVERYTHING = Filter()
MOST_LISTED = 200


class Quarantine:
    """Thread-safe. Each method raises QuarantineUnavailableError where database or store cannot be reached."""

    def __init__(self, database: Database, store: Store):
        self._database, self._store = database, store

    def list(self, chosen: Filter = EVERYTHING, *, cursor: str | None = None, limit: int = 50) -> Page:
        """The newest first; cursor is a page's next_cursor. Raises InvalidParametersError for another one."""
        if not 1 <= limit <= MOST_LISTED:
            raise InvalidParametersError(FieldFault("limit", f"must lie in [1, {MOST_LISTED}], got {limit}"))
        if cursor is not None and not is_id(cursor):
            raise InvalidParametersError(FieldFault("cursor", "not one that a page gave"))
        query = select(items).where(*conditions(chosen)).order_by(items.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(items.c.id < cursor)
        with self._database.reading() as connection:
            found = [item_of(row) for row in connection.execute(query).mappings()]
        return Page(items=tuple(found[:limit]), next_cursor=found[limit - 1].id if len(found) > limit else None)

    def get(self, item_id: str) -> Item:
        """Raises UnknownItemError."""
        with self._database.reading() as connection:
            return item_of(_row(connection, item_id))

    def image(self, item_id: str) -> bytes:
        """A PNG to look at; of an image beyond 8 bit it is rounded. Raises UnknownItemError."""
        return picture_of(*self._file(item_id))

    def pixels(self, item_id: str) -> Floats:
        """The image (c, h, w) in [0, 1] exactly as it was judged. Raises UnknownItemError."""
        return read_image(*self._file(item_id))

    def review(
        self,
        item_id: str,
        state: State,
        *,
        reviewer: str,
        reason: str | None,
        expected_revisions: Collection[int] | None,
    ) -> Item:
        """The item after the review. expected_revisions: those that it was decided on; None where any will do.

        Raises UnknownItemError, TransitionError, and ChangedMeanwhileError where the item has another revision.
        """
        moment = datetime.now(UTC)
        with self._database.writing() as connection:
            before = item_of(_row(connection, item_id))
            if expected_revisions is not None and before.revision not in expected_revisions:
                raise _changed_meanwhile()
            _check_transition(before, state)
            changed = connection.execute(
                update(items)
                .where(items.c.id == item_id, items.c.revision == before.revision)
                .values(
                    state=state.value,
                    reviewer=reviewer,
                    reason=reason,
                    reviewed_at=moment,
                    revision=before.revision + 1,
                )
            )
            if changed.rowcount != 1:
                raise _changed_meanwhile()
            connection.execute(
                insert(audit).values(
                    at=moment,
                    item_id=item_id,
                    who=reviewer,
                    action="reviewed",
                    from_state=before.state.value,
                    to_state=state.value,
                    reason=reason,
                )
            )
            return item_of(_row(connection, item_id))

    def delete(self, item_id: str, *, who: str) -> None:
        """Row and bytes go, the audit stays. Raises UnknownItemError."""
        with self._database.writing() as connection:
            remove(connection, self._store, [item_of(_row(connection, item_id))], who=who, action="deleted")

    def audit(self, item_id: str) -> tuple[AuditLine, ...]:
        """The oldest first; also of an item that is no more. Raises UnknownItemError where there is neither."""
        query = select(audit).where(audit.c.item_id == item_id).order_by(audit.c.number)
        with self._database.reading() as connection:
            lines = tuple(_line(row) for row in connection.execute(query).mappings()) if is_id(item_id) else ()
            if not lines:
                _row(connection, item_id)
        return lines

    def counts(self, chosen: Filter = EVERYTHING) -> Mapping[State, int]:
        """How many of the chosen items are in each state."""
        query = select(items.c.state, func.count()).where(*conditions(chosen)).group_by(items.c.state)
        with self._database.reading() as connection:
            found = {State(state): count for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in State}

    def last_removed(self, model: str, version: str) -> str | None:
        """The newest item, by its id, that expired so far, or was deleted from this version's blind sample."""
        deleted = (audit.c.action == "deleted") & (audit.c.reason == of_sample(model, version))
        query = select(func.max(audit.c.item_id)).where((audit.c.action == "expired") | deleted)
        with self._database.reading() as connection:
            return connection.execute(query).scalar()

    def close(self) -> None:
        self._database.close()

    def _file(self, item_id: str) -> tuple[bytes, str]:
        item = self.get(item_id)
        if item.media_type is None:
            raise UnknownItemError(f"of item {item_id} only the row was kept, not the image")
        return self._store.read(item.digest, item.media_type), item.media_type


def _row(connection: Connection, item_id: str) -> RowMapping:
    row = (
        connection.execute(select(items).where(items.c.id == item_id)).mappings().first() if is_id(item_id) else None
    )
    if row is None:
        raise UnknownItemError(f"no item {item_id[:64]!r} is in quarantine; it may have expired or been deleted")
    return row


def _check_transition(item: Item, state: State) -> None:
    if state not in TRANSITIONS[item.state]:
        allowed = ", ".join(TRANSITIONS[item.state])
        raise TransitionError(f"an item that is {item.state} can only become {allowed}, not {state}")
    if state is State.FALSE_POSITIVE and not item.flagged:
        raise TransitionError("this item was not flagged, so it is no false positive; released says it is ordinary")


def _changed_meanwhile() -> ChangedMeanwhileError:
    return ChangedMeanwhileError("the item was reviewed meanwhile; read it again and decide anew")


def _line(row: RowMapping) -> AuditLine:
    return AuditLine.model_validate({name: value for name, value in row.items() if name != "number"})
