"""Compacted files, and folders that have been dropped."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "compactions",
        sa.Column("key", _SERIAL, nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("field_set_id", _SERIAL, nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_compactions_dataset_id")),
        sa.ForeignKeyConstraint(
            ["field_set_id"], ["field_sets.id"], name=op.f("fk_compactions_field_set_id")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_compactions")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_compactions_dataset_id"), "compactions", ["dataset_id"])
    op.create_table(
        "drops",
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("drop_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("folder", name=op.f("pk_drops")),
    )
    op.add_column("batches", sa.Column("compaction_key", sa.BigInteger(), nullable=True))
    op.drop_index(op.f("ix_batches_dataset_id_state"), "batches")
    op.create_index(
        op.f("ix_batches_dataset_id_state_compaction_key"),
        "batches",
        ["dataset_id", "state", "compaction_key"],
    )
    op.create_index(op.f("ix_batches_compaction_key_state"), "batches", ["compaction_key", "state"])
