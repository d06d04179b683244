"""The table of expired jobs, beside `tables`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Table

from profile_export.store.column_types import Instant
from profile_export.store.tables import metadata

# What is left of a job that retention has removed, for a while: that it has expired, and when.
expired_jobs = Table(
    "expired_jobs",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("expire_time", Instant, nullable=False, index=True),
)
