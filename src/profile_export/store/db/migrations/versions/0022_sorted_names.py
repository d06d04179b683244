"""What lists are filtered and sorted by compares by code points on PostgreSQL, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, column in (
        ("datasets", "name"),
        ("datasets", "schema_id"),
        ("schemas", "class_id"),
        ("merge_policy_versions", "name"),
    ):
        op.alter_column(table, column, type_=sa.Text(collation="C"), existing_nullable=False)
