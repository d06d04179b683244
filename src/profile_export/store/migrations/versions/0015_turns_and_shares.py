"""Tenants take turns."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("last_claim", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_tenants_last_claim"), "tenants", ["last_claim"])
    op.drop_index(op.f("ix_jobs_state_not_before"), "jobs")
    columns = ["state", "tenant_id", "id", "not_before", "deadline"]
    op.create_index(op.f("ix_jobs_" + "_".join(columns)), "jobs", columns)
