"""The changes of a tenant's jobs are numbered, so that a watch of all of them resumes; progress never falls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for name in ("job_revision", "forgotten_job_revision"):
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("leases", sa.Column("progress_rank", sa.BigInteger(), nullable=False, server_default="0"))
    # What is there already has no number: nobody can have seen less than all of it.
    with op.batch_alter_table("job_transitions") as table:
        tenant_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
        table.add_column(sa.Column("tenant_id", tenant_id))
        table.add_column(sa.Column("tenant_revision", sa.BigInteger()))
        table.create_foreign_key(op.f("fk_job_transitions_tenant_id"), "tenants", ["tenant_id"], ["id"])
    for name, kind in (
        ("tenant_revision", sa.BigInteger()),
        ("state", sa.Text()),
        ("destination_id", sa.Text()),
        ("create_time", sa.BigInteger()),
    ):
        op.add_column("expired_jobs", sa.Column(name, kind))
    op.create_index(op.f("ix_jobs_tenant_id_id"), "jobs", ["tenant_id", "id"])
    for table_name in ("job_transitions", "expired_jobs"):
        op.create_index(
            op.f(f"ix_{table_name}_tenant_id_tenant_revision"),
            table_name,
            ["tenant_id", "tenant_revision"],
            unique=True,
        )
