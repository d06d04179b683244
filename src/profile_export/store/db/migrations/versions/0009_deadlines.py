"""Jobs have a deadline: the moment at which their run time is used up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deadline", sa.BigInteger()))
