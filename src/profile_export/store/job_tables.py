"""The tables of jobs, beside `tables`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from profile_export.domain.job import Cancellation, JobError, JobMetrics, Progress, Resolved
from profile_export.domain.plan import ExportCounts, ExportPlan
from profile_export.domain.request import BoundRequest
from profile_export.store.column_types import Instant, Json
from profile_export.store.tables import Serial, metadata

jobs = Table(
    "jobs",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("bound", Json(BoundRequest), nullable=False),
    Column("request_id", Text),
    Column("request_digest", Text),
    Column("destination_id", ForeignKey("datasets.id"), nullable=False),
    Column("batch_id", Text, nullable=False),
    # One per segment, if each has a batch of its own; then `batch_id` is empty.
    Column("segment_batches", Json(tuple[str, ...]), nullable=False, server_default="[]"),
    Column("state", Text, nullable=False),
    # Counts the job's moves from 1: optimistic lock, fence and watch cursor in one.
    Column("revision", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    Column("end_time", Instant, index=True),
    Column("not_before", Instant),
    # When its run time is used up; null: it has no limit.
    Column("deadline", Instant),
    Column("cancellation", Json(Cancellation)),
    Column("errors", Json(tuple[JobError, ...]), nullable=False),
    Column("metrics", Json(JobMetrics), nullable=False),
    Column("notes", Json(tuple[str, ...]), nullable=False),
    # Pinned by the first attempt, the same for every other.
    Column("plan", Json(ExportPlan)),
    # What finding out who is one person took, of the last attempt that did; null before that.
    Column("resolved", Json(Resolved)),
    UniqueConstraint("tenant_id", "request_id"),
    Index(None, "tenant_id", "id"),
    # All that claims and lapses decide by: a job's request may be long, and thousands may wait.
    Index(None, "state", "tenant_id", "id", "not_before", "deadline"),
    sqlite_autoincrement=True,  # an id is never given twice
)

job_transitions = Table(
    "job_transitions",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("from_state", Text),
    Column("to_state", Text, nullable=False),
    Column("time", Instant, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("metrics", Json(JobMetrics), nullable=False),
    # The tenant's revision that it made; null: older than watches of all jobs.
    Column("tenant_id", ForeignKey("tenants.id")),
    Column("tenant_revision", BigInteger),
    Index(None, "tenant_id", "tenant_revision", unique=True),
)

job_stamps = Table(
    "job_stamps",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("time", Instant, nullable=False),
)

# The right to move a job, apart from the job so that a heartbeat and a move never overwrite each other.
leases = Table(
    "leases",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("expire_time", Instant, nullable=False),
    Column("progress", Json(Progress)),
    # The rank of `progress`, which never falls.
    Column("progress_rank", BigInteger, nullable=False, default=0, server_default="0"),
)

job_ranges = Table(
    "job_ranges",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("range_index", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("counts", Json(ExportCounts), nullable=False),
    Column("peak_memory_bytes", BigInteger, nullable=False),
)

# What is left of a job that retention has removed, for a while: that it has expired, and when.
expired_jobs = Table(
    "expired_jobs",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("expire_time", Instant, nullable=False, index=True),
    # The tenant's revision that its removal made, and what a watch of all jobs asks of a job; null: older than those.
    Column("tenant_revision", BigInteger),
    Column("state", Text),
    Column("destination_id", Text),
    Column("create_time", Instant),
    Index(None, "tenant_id", "tenant_revision", unique=True),
)
