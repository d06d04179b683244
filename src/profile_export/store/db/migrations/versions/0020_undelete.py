"""A deleted dataset can be brought back for a while; those of before are gone for good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("purge_time", sa.BigInteger(), nullable=True))
    op.add_column("datasets", sa.Column("former_request_id", sa.Text(), nullable=True))
    op.create_index(op.f("ix_datasets_purge_time"), "datasets", ["purge_time"])
