"""Jobs and their logs as read from their rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.job import (
    Job,
    JobState,
    Phase,
    PhaseTime,
    Progress,
    Stamp,
    Transition,
    phase_times,
)
from profile_export.domain.plan import ExportPlan
from profile_export.store.database import database_time, fetch_first, slices
from profile_export.store.job_tables import job_stamps, jobs, leases
from profile_export.store.page_rows import characters

JOB_COLUMNS = tuple(column for column in jobs.c if column.name not in {"plan", "resolved"})
"""What a job is to its callers; its plan may name any number of files."""
JOB_CHARACTERS = characters(jobs.c.bound, jobs.c.segment_batches, jobs.c.errors, jobs.c.metrics, jobs.c.notes)
"""How much of a row that is, about."""
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a caller sees it: with its phases so far, and the progress of a running attempt (else None).

    `until` is the moment that the view is of: the job's end, or the present by the database's clock. `expire_time` is
    when retention will remove it; None while it has not ended, or never.
    """

    job: Job
    phases: tuple[PhaseTime, ...]
    progress: Progress | None
    until: datetime
    expire_time: datetime | None


def job_from(row: Row[Any]) -> Job:
    """Make a job of its row."""
    return Job(
        id=row.id,
        bound=row.bound,
        request_id=row.request_id or "",
        batch_id=row.batch_id,
        segment_batches=row.segment_batches,
        state=JobState(row.state),
        revision=row.revision,
        attempt=row.attempt,
        create_time=row.create_time,
        update_time=row.update_time,
        end_time=row.end_time,
        not_before=row.not_before,
        cancellation=row.cancellation,
        errors=row.errors,
        metrics=row.metrics,
        notes=row.notes,
    )


async def plan_of(connection: AsyncConnection, job_id: int) -> ExportPlan | None:
    """Return the plan of a job; None if no attempt has made it yet."""
    row = await fetch_first(connection, select(jobs.c.plan).where(jobs.c.id == job_id))
    return row and row.plan


def transition_from(row: Row[Any]) -> Transition:
    """Make an entry of a job's log of its row."""
    return Transition(
        revision=row.revision,
        from_state=JobState(row.from_state) if row.from_state else None,
        to_state=JobState(row.to_state),
        time=row.time,
        attempt=row.attempt,
        reason=row.reason,
        metrics=row.metrics,
    )


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
            stamps[row.job_id].append(Stamp(row.attempt, Phase(row.phase), row.time))
    return {job.id: tuple(phase_times(stamps[job.id], job.end_time)) for job in of}
