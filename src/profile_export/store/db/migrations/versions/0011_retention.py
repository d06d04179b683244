"""Datasets say how long their batches are kept, and jobs that are removed are remembered for a while."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("batch_retention", sa.BigInteger()))
    op.add_column("batches", sa.Column("expire_time", sa.BigInteger()))
    op.create_table(
        "expired_jobs",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_expired_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_expired_jobs")),
    )
    op.create_index(op.f("ix_expired_jobs_expire_time"), "expired_jobs", ["expire_time"])
    # What is asked again and again: has anything become old enough?
    op.create_index(op.f("ix_jobs_end_time"), "jobs", ["end_time"])
    op.create_index(
        op.f("ix_batches_dataset_id_state_ingest_time"), "batches", ["dataset_id", "state", "ingest_time"]
    )
