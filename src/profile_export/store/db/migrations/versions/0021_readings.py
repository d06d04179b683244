"""An uploaded file says how its sender wants it to be read, and what was left out of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("reading", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("uploads", sa.Column("null_count", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("uploads", sa.Column("notes", sa.Text(), nullable=False, server_default="[]"))
