"""A job says which engine runs it; there was one."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("UPDATE jobs SET bound = json_set(bound, '$.engine', 'duckdb')")
    else:
        op.execute("UPDATE jobs SET bound = jsonb_set(bound::jsonb, '{engine}', '\"duckdb\"')::text")
