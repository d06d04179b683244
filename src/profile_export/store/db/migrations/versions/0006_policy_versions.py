"""Merge policies that change, rank datasets, and can be the default."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # A renamed table would keep its key's name, which no other may have.
    op.execute("CREATE TABLE first_merge_policies AS SELECT * FROM merge_policies")
    op.drop_table("merge_policies")
    op.create_table(
        "merge_policies",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("schema_name", sa.Text(), nullable=False),
        sa.Column("newest_version", sa.Integer(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_merge_policies_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_merge_policies")),
    )
    op.create_index(
        op.f("ix_merge_policies_tenant_id_create_time_id"),
        "merge_policies",
        ["tenant_id", "create_time", "id"],
        unique=False,
    )
    op.create_index(
        "uq_merge_policies_default",
        "merge_policies",
        ["tenant_id", "schema_name"],
        unique=True,
        sqlite_where=sa.text("is_default"),
        postgresql_where=sa.text("is_default"),
    )
    op.create_table(
        "merge_policy_versions",
        sa.Column("policy_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("graph", sa.Text(), nullable=False),
        sa.Column("attribute_merge", sa.Text(), nullable=False),
        sa.Column("order", sa.Text(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["policy_id"], ["merge_policies.id"], name=op.f("fk_merge_policy_versions_policy_id")
        ),
        sa.PrimaryKeyConstraint("policy_id", "version", name=op.f("pk_merge_policy_versions")),
    )
    # Until now a policy was made and never changed: each has the one version.
    op.execute(
        """
        INSERT INTO merge_policies (id, tenant_id, schema_name, newest_version, is_default, create_time)
        SELECT id, tenant_id, schema_name, version, false, create_time FROM first_merge_policies
        """
    )
    op.execute(
        """
        INSERT INTO merge_policy_versions (policy_id, version, name, graph, attribute_merge, "order", update_time)
        SELECT id, version, name, graph, attribute_merge, '[]', create_time FROM first_merge_policies
        """
    )
    op.drop_table("first_merge_policies")
