"""How items come in: file first, then row, so that whatever is listed is there with its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from service.quarantine.database import Database
from service.quarantine.files import ImageFile
from service.quarantine.records import Item
from service.quarantine.rows import row_of
from service.quarantine.store import Store
from service.quarantine.tables import blobs, items


@dataclass(frozen=True, slots=True)
class Kept:
    """An item and its file; the file is None where only the row is to be kept."""

    item: Item
    file: ImageFile | None


def keep(database: Database, store: Store, batch: Sequence[Kept]) -> None:
    """When this returns all of it is kept for good; where it raises, none is, and it may be called again.

    Files are written before the transaction ends. One of a transaction that failed is an orphan, which `retention`
    sweeps up. Raises QuarantineUnavailableError.
    """
    files = {kept.file.digest: kept.file for kept in batch if kept.file is not None}
    with database.writing() as connection:
        for digest in _lock_new(connection, files):
            store.put(digest, files[digest].media_type, files[digest].content)
        # Whoever lost the answer to a commit comes again with the same ids.
        rows = [row_of(kept.item) for kept in batch]
        connection.execute(_insert(connection)(items).values(rows).on_conflict_do_nothing())


def _lock_new(connection: Connection, files: dict[str, ImageFile]) -> list[str]:
    """Lock a row for each file; the digests that had none. In order, so that two writers cannot wait in a circle."""
    if not files:
        return []
    batch = str(uuid4())
    rows = [
        {"digest": digest, "media_type": file.media_type, "num_bytes": len(file.content), "put_by": batch}
        for digest, file in sorted(files.items())
    ]
    statement = _insert(connection)(blobs).values(rows)
    statement = statement.on_conflict_do_update(
        index_elements=[blobs.c.digest], set_={"media_type": statement.excluded.media_type}
    ).returning(blobs.c.digest, blobs.c.put_by)
    return [digest for digest, put_by in connection.execute(statement) if put_by == batch]


def _insert(connection: Connection) -> Any:
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
