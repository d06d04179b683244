"""Several uploads per batch, registered schemas, declared fields, and datasets that can be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ORDERED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("key", _KEY, nullable=False),
        sa.Column("batch_key", _KEY, nullable=False),
        sa.Column("file_name", _ORDERED, nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("max_bad_records", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("staged_as", sa.Text(), nullable=False),
        sa.Column("byte_count", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("rejected_rows", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("field_set_id", _KEY, nullable=True),
        sa.ForeignKeyConstraint(["batch_key"], ["batches.key"], name=op.f("fk_uploads_batch_key")),
        sa.ForeignKeyConstraint(["field_set_id"], ["field_sets.id"], name=op.f("fk_uploads_field_set_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_uploads")),
        sa.UniqueConstraint("batch_key", "file_name", name=op.f("uq_uploads_batch_key_file_name")),
    )
    # Bytes as sent were kept under the name of the batch's folder. What a refused upload was refused for is forgotten.
    op.execute(
        """
        INSERT INTO uploads (batch_key, file_name, format, max_bad_records, state, staged_as, byte_count, sha256,
                             folder, rejected_rows, errors)
        SELECT key, file_name, format, 0,
               CASE state WHEN 'loading' THEN 'open' WHEN 'succeeded' THEN 'complete' ELSE 'refused' END,
               replace(folder, '/', '-'), byte_count, sha256, folder, 0, '[]'
        FROM batches WHERE job_id IS NULL
        """
    )
    op.create_table(
        "schemas",
        sa.Column("tenant_id", _KEY, nullable=False),
        sa.Column("id", _ORDERED, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("class_id", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.Column("identity_fields", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_schemas_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", "version", name=op.f("pk_schemas")),
    )
    with op.batch_alter_table("datasets") as datasets:
        datasets.add_column(sa.Column("declared_fields", sa.Text(), nullable=False, server_default="[]"))
        datasets.add_column(sa.Column("delete_time", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("batches") as batches:
        for name in ("format", "file_name", "sha256", "byte_count", "errors"):
            batches.drop_column(name)
        batches.add_column(
            sa.Column("several_files", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batches.add_column(sa.Column("state_reason", sa.Text(), nullable=False, server_default=""))
        batches.add_column(sa.Column("request_id", sa.Text(), nullable=True))
        batches.add_column(sa.Column("request_digest", sa.Text(), nullable=True))
        batches.create_unique_constraint("uq_batches_tenant_id_request_id", ["tenant_id", "request_id"])
