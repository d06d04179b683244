"""What attempts at exports leave on the disk is dropped, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("drops", sa.Column("batch_key", sa.BigInteger()))
