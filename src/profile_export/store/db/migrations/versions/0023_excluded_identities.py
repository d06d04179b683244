"""A version of a merge policy says which identities link nobody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.add_column(
        "merge_policy_versions",
        sa.Column("excluded_identities", sa.Text(), nullable=False, server_default="[]"),
    )
