"""Items, their files, and the audit that nobody changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
REFUSE_SQLITE = """
CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END
"""
REFUSE_POSTGRESQL = (
    """
CREATE FUNCTION lgm_refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$
""",
    """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION lgm_refuse_audit_change()
""",
)


def upgrade() -> None:
    """Make the tables."""
    _create_items()
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("media_type", sa.String(32), nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("put_by", sa.String(36), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("item_id", sa.String(36), nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("from_state", sa.String(32), nullable=False),
        sa.Column("to_state", sa.String(32)),
        sa.Column("reason", sa.Text),
    )
    op.create_index("audit_by_item", "audit", ["item_id", "number"])
    _protect_audit()


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(32)),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.String(64), nullable=False),
        sa.Column("class_index", sa.Integer, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("log_likelihood", sa.Float, nullable=False),
        sa.Column("p_value", sa.Float, nullable=False),
        sa.Column("flagged", sa.Boolean, nullable=False),
        sa.Column("false_alarm_rate", sa.Float, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("why", sa.String(16), nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("judged_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("reviewer", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("reviewed_at", MOMENT),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    for name, columns in (
        ("items_by_state", ["state", "id"]),
        ("items_by_model", ["model_name", "model_version", "id"]),
        ("items_by_digest", ["digest"]),
        ("items_by_request", ["request_id"]),
        ("items_by_moment", ["judged_at"]),
        ("items_by_expiry", ["expires_at"]),
    ):
        op.create_index(name, "items", columns)


def _protect_audit() -> None:
    if op.get_bind().dialect.name == "sqlite":
        statements = [REFUSE_SQLITE.format(verb=verb) for verb in ("UPDATE", "DELETE")]
    else:
        statements = list(REFUSE_POSTGRESQL)
    for statement in statements:
        op.execute(statement)
