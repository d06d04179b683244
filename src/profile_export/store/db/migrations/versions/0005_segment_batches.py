"""A batch per segment. Plans have another form now: those made before are made anew, with what was written for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_UNFINISHED = "SELECT id FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("segment_batches", sa.Text(), nullable=False, server_default="[]"))
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_batches_job_id"), ["job_id"], unique=False)
    op.execute(f"DELETE FROM job_ranges WHERE job_id IN ({_UNFINISHED})")  # noqa: S608 - a constant
    op.execute(
        f"DELETE FROM files WHERE batch_key IN (SELECT key FROM batches WHERE job_id IN ({_UNFINISHED}))"  # noqa: S608 - a constant
    )
    op.execute("UPDATE jobs SET plan = NULL")
