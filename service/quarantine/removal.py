"""How items leave: their rows, and their files unless another item needs them; the audit says so."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, func, insert, select

from service.quarantine.records import Item, Why
from service.quarantine.store import Store
from service.quarantine.tables import audit, blobs, items

BLIND = (Why.SAMPLED, Why.ALL)  # kept whatever its score


def of_sample(model: str, version: str) -> str:
    """What the audit says of an image that left a blind sample, which is then none any more."""
    return f"was of the blind sample of {model} {version}"


def remove(connection: Connection, store: Store, leaving: Sequence[Item], *, who: str, action: str) -> None:
    """Within a transaction that writes. A file goes before its row does: what was to be forgotten is never left.

    Raises QuarantineUnavailableError; then nothing has changed in the database.
    """
    connection.execute(delete(items).where(items.c.id.in_([item.id for item in leaving])))
    files = {item.digest: item.media_type for item in leaving if item.media_type is not None}
    for digest, media_type in sorted(files.items()):
        _remove_file(connection, store, digest, media_type)
    moment = datetime.now(UTC)
    connection.execute(
        insert(audit),
        [
            {
                "at": moment,
                "item_id": item.id,
                "who": who,
                "action": action,
                "from_state": item.state.value,
                "to_state": None,
                "reason": of_sample(item.model_name, item.model_version) if item.why in BLIND else None,
            }
            for item in leaving
        ],
    )


def _remove_file(connection: Connection, store: Store, digest: str, media_type: str) -> None:
    """The lock on its row is what a writer that keeps the same bytes at this moment waits for."""
    connection.execute(select(blobs.c.digest).where(blobs.c.digest == digest).with_for_update())
    needing = select(func.count()).where(items.c.digest == digest, items.c.media_type.is_not(None))
    if connection.execute(needing).scalar_one() == 0:
        store.delete(digest, media_type)
        connection.execute(delete(blobs).where(blobs.c.digest == digest))
