"""Jobs, their logs, their batches and their metrics as read from rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.batches import BatchState, DataFile
from profile_export.domain.catalog.datasets import Tenant, expired_job
from profile_export.domain.errors import NotFoundError
from profile_export.domain.export.plan import ExportCounts, ExportPlan
from profile_export.domain.job import (
    Job,
    JobMetrics,
    JobState,
    JobView,
    PhaseTime,
    Pinned,
    Progress,
    Resolved,
    Stamp,
    phase_times,
)
from profile_export.processes.computing import compute_if
from profile_export.store.catalog.tenants import id_by_name, id_of
from profile_export.store.db.columns import value_of
from profile_export.store.db.database import database_time, fetch_all, fetch_first, slices
from profile_export.store.db.pages import characters
from profile_export.store.db.tables import batches, expired_jobs, files, job_ranges, job_stamps, jobs, leases
from profile_export.store.files.batches import file_from
from profile_export.store.files.dropped import drop_written


async def batches_of_job(connection: AsyncConnection, job_id: int) -> Sequence[Row[Any]]:
    """Return the batches that a job fills, in the order of its segments if each has one."""
    query = select(batches).where(batches.c.job_id == job_id).order_by(batches.c.key)
    return (await connection.execute(query)).all()


async def files_of_job(connection: AsyncConnection, job_id: int) -> Mapping[int, Sequence[DataFile]]:
    """Return the recorded files of the batches that a job fills, by the batches' keys."""
    query = select(files).join(batches, batches.c.key == files.c.batch_key).where(batches.c.job_id == job_id)
    found: dict[int, list[DataFile]] = defaultdict(list)
    for row in await connection.execute(query.order_by(files.c.batch_key, files.c.name)):
        found[row.batch_key].append(file_from(row))
    return found


async def drop_batches_of_job(
    connection: AsyncConnection, job_id: int, state: BatchState, now: datetime
) -> None:
    """End the batches that a job fills without effect, and give their files up."""
    rows = await batches_of_job(connection, job_id)
    keys = select(batches.c.key).where(batches.c.job_id == job_id)
    await connection.execute(delete(files).where(files.c.batch_key.in_(keys)))
    await drop_written(connection, {row.folder: row.key for row in rows})
    values = {"state": state, "end_time": now}
    await connection.execute(update(batches).where(batches.c.job_id == job_id).values(values))


# Each range may count thousands of namespaces.
_MANY = 20


async def metrics_of(connection: AsyncConnection, row: Row[Any]) -> JobMetrics:
    """Add up what the job has recorded, over all its attempts."""
    by_batch = await files_of_job(connection, row.id)
    files = [file for of_batch in by_batch.values() for file in of_batch]
    ranges = await fetch_all(connection, select(job_ranges).where(job_ranges.c.job_id == row.id))
    [brought] = await fetch_all(connection, select(jobs.c.plan, jobs.c.resolved).where(jobs.c.id == row.id))
    sources = brought.plan.sources if brought.plan else ()
    return JobMetrics(
        counts=await compute_if(len(ranges) > _MANY, ExportCounts.total, [found.counts for found in ranges]),
        rows_written=sum(file.rows for file in files),
        bytes_written=sum(file.bytes for file in files),
        files_written=len(files),
        peak_memory_bytes=max((found.peak_memory_bytes for found in ranges), default=0),
        pinned=Pinned(
            sum(source.rows for source in sources),
            sum(source.bytes for source in sources),
            sum(len(part.files) for source in sources for part in source.parts),
        ),
        resolved=brought.resolved or Resolved(),
    )


JOB_COLUMNS = tuple(column for column in jobs.c if column.name not in {"plan", "resolved"})
"""What a job is to its callers; its plan may name any number of files."""
JOB_CHARACTERS = characters(jobs.c.bound, jobs.c.segment_batches, jobs.c.errors, jobs.c.metrics, jobs.c.notes)
"""How much of a row that is, about."""
_NEVER = datetime.max.replace(tzinfo=UTC)


# Made once: to put it together takes as long as to run it.
_JOB = select(*JOB_COLUMNS).where(jobs.c.id == bindparam("job_id"), jobs.c.tenant_id == id_by_name())


async def existing_job(connection: AsyncConnection, tenant: Tenant, job_id: int) -> Row[Any]:
    """Return the row of a job, within a transaction.

    Raises:
        NotFoundError: It has expired, or the tenant never had one of that id.
    """
    named = {"job_id": job_id, "org": tenant.org, "sandbox": tenant.sandbox}
    row: Row[Any] | None = (await connection.execute(_JOB, named)).first()
    if row:
        return row
    remembered = select(expired_jobs.c.expire_time).where(
        expired_jobs.c.job_id == job_id, expired_jobs.c.tenant_id == id_of(tenant)
    )
    expire_time = (await connection.execute(remembered)).scalar_one_or_none()
    raise expired_job(job_id, expire_time) if expire_time else NotFoundError.of("job", job_id)


def job_from(row: Row[Any]) -> Job:
    """Make a job of its row."""
    return value_of(Job, row, request_id=row.request_id or "")


async def plan_of(connection: AsyncConnection, job_id: int) -> ExportPlan | None:
    """Return the plan of a job; None if no attempt has made it yet."""
    row = await fetch_first(connection, select(jobs.c.plan).where(jobs.c.id == job_id))
    return row and row.plan


async def views_of(
    connection: AsyncConnection, rows: Sequence[Row[Any]], kept_for: timedelta | None
) -> Sequence[JobView]:
    """Return jobs as callers see them, in the order of their rows.

    `kept_for` is how long jobs are kept after their end; None: for ever.
    """
    running = [row.id for row in rows if row.state == JobState.PROCESSING]
    progress: dict[int, Progress] = {}
    for some in slices(running):
        found = await connection.execute(
            select(leases.c.job_id, leases.c.progress).where(leases.c.job_id.in_(some))
        )
        progress.update({lease.job_id: lease.progress for lease in found})
    of = [job_from(row) for row in rows]
    phases = await phases_of(connection, of)
    # What has ended needs no clock: one statement less.
    now = await database_time(connection) if any(job.end_time is None for job in of) else _NEVER
    return [
        JobView(
            job,
            phases[job.id],
            progress.get(job.id),
            job.end_time or now,
            job.end_time + kept_for if job.end_time and kept_for else None,
        )
        for job in of
    ]


async def view_of(connection: AsyncConnection, row: Row[Any], kept_for: timedelta | None) -> JobView:
    """Return one job as callers see it."""
    (view,) = await views_of(connection, [row], kept_for)
    return view


# Made once: to put it together takes as long as to run it.
_STAMPS = (
    select(job_stamps)
    .where(job_stamps.c.job_id.in_(bindparam("job_ids", expanding=True)))
    .order_by(job_stamps.c.key)
)


async def phases_of(connection: AsyncConnection, of: Sequence[Job]) -> Mapping[int, tuple[PhaseTime, ...]]:
    """Return where the time of jobs went so far, by their ids."""
    stamps: dict[int, list[Stamp]] = defaultdict(list)
    for some in slices([job.id for job in of]):
        for row in await connection.execute(_STAMPS, {"job_ids": some}):
            stamps[row.job_id].append(Stamp(row.attempt, row.phase, row.time))
    return {job.id: tuple(phase_times(stamps[job.id], job.end_time)) for job in of}
