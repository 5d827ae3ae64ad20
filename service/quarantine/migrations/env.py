"""Alembic's entry: runs within the connection that `database.upgrade` hands over."""

from alembic import context

from service.quarantine.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
