"""Profiles have other keys now: what was written for unfinished jobs, range by range of the old ones, is made anew.

Their plans stay: what they pin is the same, whatever the keys.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

_UNFINISHED = "SELECT id FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    op.execute(f"DELETE FROM job_ranges WHERE job_id IN ({_UNFINISHED})")  # noqa: S608 - a constant
    op.execute(
        f"DELETE FROM files WHERE batch_key IN (SELECT key FROM batches WHERE job_id IN ({_UNFINISHED}))"  # noqa: S608 - a constant
    )
