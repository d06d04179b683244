"""A batch says which export has replaced it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("batches", sa.Column("replaced_by", sa.BigInteger()))
