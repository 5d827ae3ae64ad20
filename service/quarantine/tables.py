"""The tables, as the newest migration leaves them; the triggers that keep the audit as it is stand there alone."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """Moments in UTC, also where a database keeps no zone beside them."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


items = Table(
    "items",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("request_id", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("media_type", String(32)),
    Column("num_bytes", BigInteger, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("class_index", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("probability", Float, nullable=False),
    Column("log_likelihood", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("flagged", Boolean, nullable=False),
    Column("false_alarm_rate", Float, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("why", String(16), nullable=False),
    Column("principal", Text, nullable=False),
    Column("judged_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("state", String(32), nullable=False),
    Column("reviewer", Text),
    Column("reason", Text),
    Column("reviewed_at", UtcDateTime),
    Column("revision", Integer, nullable=False),
    Index("items_by_state", "state", "id"),
    Index("items_by_model", "model_name", "model_version", "id"),
    Index("items_by_digest", "digest"),
    Index("items_by_request", "request_id"),
    Index("items_by_moment", "judged_at"),
    Index("items_by_expiry", "expires_at"),
)

# One row for each file in the store, while any item needs it. put_by: the batch that put it there.
blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("media_type", String(32), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("put_by", String(36), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("item_id", String(36), nullable=False),
    Column("who", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("from_state", String(32), nullable=False),
    Column("to_state", String(32)),
    Column("reason", Text),
    Index("audit_by_item", "item_id", "number"),
)
