"""Tenants take turns, and each has its share."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for name in ("schema_revision", "last_claim"):
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_tenants_last_claim"), "tenants", ["last_claim"])
    op.drop_index(op.f("ix_jobs_state_not_before"), "jobs")
    columns = ["state", "tenant_id", "id", "not_before", "deadline"]
    op.create_index(op.f("ix_jobs_" + "_".join(columns)), "jobs", columns)
    op.add_column("batches", sa.Column("active_time", sa.BigInteger()))
    for table in ("batches", "uploads"):
        op.add_column(table, sa.Column("staged_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    loading = sa.text("state = 'loading' AND job_id IS NULL")
    op.create_index(
        "ix_batches_loading",
        "batches",
        ["tenant_id", "active_time"],
        sqlite_where=loading,
        postgresql_where=loading,
    )
    # When bytes came last is not known: what is being uploaded has its time from now on.
    now = int(time.time() * 1_000_000)
    batches = sa.table("batches", sa.column("active_time", sa.BigInteger()))
    op.execute(sa.update(batches).where(loading).values(active_time=now))
    op.create_index(op.f("ix_datasets_tenant_id_delete_time"), "datasets", ["tenant_id", "delete_time"])
