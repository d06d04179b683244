"""The Iceberg mirror."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("iceberg", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE datasets SET iceberg = true WHERE kind = 'union'")
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.alter_column("iceberg", server_default=None)
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_batches_dataset_id_number"), ["dataset_id", "number"], unique=False
        )

    op.create_table(
        "mirrors",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("table_uuid", sa.Text(), nullable=True),
        sa.Column("metadata_location", sa.Text(), nullable=False),
        sa.Column("mirror_time", sa.BigInteger(), nullable=True),
        sa.Column("check_time", sa.BigInteger(), nullable=True),
        sa.Column("drop_asked", sa.Boolean(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("expire_time", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_mirrors_dataset_id")),
        sa.PrimaryKeyConstraint("dataset_id", name=op.f("pk_mirrors")),
    )
    op.create_table(
        "mirrored_batches",
        sa.Column("batch_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["batch_key"], ["batches.key"], name=op.f("fk_mirrored_batches_batch_key")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["mirrors.dataset_id"], name=op.f("fk_mirrored_batches_dataset_id")
        ),
        sa.PrimaryKeyConstraint("batch_key", name=op.f("pk_mirrored_batches")),
    )
    with op.batch_alter_table("mirrored_batches", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_mirrored_batches_dataset_id"), ["dataset_id"], unique=False)
