"""Runs migrations on the connection that `store.db.database.migrate` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from profile_export.store.db.columns import Instant, Json, Span
from profile_export.store.db.tables import metadata


def plain_type(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write our own column types as what they are in the database: a migration outlives the code it was made by."""
    if kind == "type" and isinstance(item, Instant | Span):
        return "sa.BigInteger()"
    if kind == "type" and isinstance(item, Json):
        return "sa.Text()"
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, render_item=plain_type
)
with context.begin_transaction():
    context.run_migrations()
