"""Moves of jobs: each with its log entry, and what follows from the state that it leads to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.batch import BatchState
from profile_export.domain.job import JobState, Move, Phase, Transition
from profile_export.store.database import database_time
from profile_export.store.job_batches import drop_batches_of_job
from profile_export.store.job_rows import JOB_COLUMNS, job_from
from profile_export.store.job_tables import job_ranges, job_stamps, job_transitions, jobs
from profile_export.store.tenants import next_job_revision


async def move_job(connection: AsyncConnection, row: Row[Any], move: Move, **changes: Any) -> Row[Any]:
    """Make a move and its log entry, and what follows from the state it leads to; return the job's new row.

    `changes` are those of `Move.apply`. The update is a compare-and-set on the revision; it always meets its row, since
    whoever moves a job writes alone or has locked the row.

    Raises:
        FailedPreconditionError: The job is not in a state that the move starts from.
    """
    now = await database_time(connection)
    job, transition = move.apply(job_from(row), now, **changes)
    values = {
        "state": job.state.value,
        "revision": job.revision,
        "attempt": job.attempt,
        "update_time": job.update_time,
        "end_time": job.end_time,
        "not_before": job.not_before,
        "cancellation": job.cancellation,
        "errors": job.errors,
        "metrics": job.metrics,
    }
    query = (
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.revision == row.revision)
        .values(values)
        .returning(*JOB_COLUMNS)
    )
    moved: Row[Any] = (await connection.execute(query)).one()
    await log(connection, row.tenant_id, job.id, transition)
    phase = _PHASE_OF.get(job.state)
    if phase:
        await stamp(connection, job.id, job.attempt, phase, now)
    if job.is_final:
        await connection.execute(delete(job_ranges).where(job_ranges.c.job_id == job.id))
    if job.state in _BATCH_ENDS:
        await drop_batches_of_job(connection, job.id, _BATCH_ENDS[job.state], now)
    return moved


# The phase that begins with a state; an attempt stamps the ones within PROCESSING itself.
_PHASE_OF = {JobState.NEW: Phase.QUEUE, JobState.PROCESSING: Phase.PLAN, JobState.CANCELLING: Phase.CANCEL}
_BATCH_ENDS = {JobState.CANCELLED: BatchState.ABORTED, JobState.FAILED: BatchState.FAILED}


async def stamp(connection: AsyncConnection, job_id: int, attempt: int, phase: Phase, now: datetime) -> None:
    """Note that a phase begins."""
    row = {"job_id": job_id, "attempt": attempt, "phase": phase.value, "time": now}
    await connection.execute(insert(job_stamps).values(row))


async def log(connection: AsyncConnection, tenant_id: int, job_id: int, transition: Transition) -> None:
    """Write an entry of a job's log, and number it among the changes of the tenant's jobs."""
    values = {
        "tenant_id": tenant_id,
        "tenant_revision": await next_job_revision(connection, tenant_id),
        "job_id": job_id,
        "revision": transition.revision,
        "from_state": transition.from_state.value if transition.from_state else None,
        "to_state": transition.to_state.value,
        "time": transition.time,
        "attempt": transition.attempt,
        "reason": transition.reason,
        "metrics": transition.metrics,
    }
    await connection.execute(insert(job_transitions).values(values))
