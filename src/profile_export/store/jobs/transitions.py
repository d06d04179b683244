"""Transitions of jobs, each with its log entry; and those that time brings about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.job import (
    FINAL_STATES,
    LEASE_TTL,
    Job,
    JobState,
    Move,
    Phase,
    Transition,
    timed_out,
)
from profile_export.store.catalog.tenants import next_job_revision
from profile_export.store.db.columns import columns_of
from profile_export.store.db.database import Store, database_time, uninterruptible
from profile_export.store.db.tables import job_ranges, job_stamps, job_transitions, jobs, leases
from profile_export.store.db.wakeups import Transaction
from profile_export.store.jobs.leases import Fence, end_attempt
from profile_export.store.jobs.rows import JOB_COLUMNS, drop_batches_of_job, job_from, metrics_of

_MOVED = (
    "state",
    "revision",
    "attempt",
    "update_time",
    "end_time",
    "not_before",
    "cancellation",
    "errors",
    "metrics",
)


async def move_job(connection: Transaction, row: Row[Any], move: Move, **changes: Any) -> Row[Any]:
    """Make a move and its log entry, and what follows from the state it leads to; return the job's new row.

    `changes` are those of `Move.apply`. The update is a compare-and-set on the revision; it always meets its row, since
    whoever moves a job writes alone or has locked the row.

    Raises:
        FailedPreconditionError: The job is not in a state that the move starts from.
    """
    now = await database_time(connection)
    job, transition = move.apply(job_from(row), now, **changes)
    query = update(jobs).where(jobs.c.id == job.id, jobs.c.revision == row.revision)
    values = {name: getattr(job, name) for name in _MOVED}
    moved: Row[Any] = (await connection.execute(query.values(values).returning(*JOB_COLUMNS))).one()
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
    row = {"job_id": job_id, "attempt": attempt, "phase": phase, "time": now}
    await connection.execute(insert(job_stamps).values(row))


async def log(connection: Transaction, tenant_id: int, job_id: int, transition: Transition) -> None:
    """Write an entry of a job's log, number it among the changes of the tenant's jobs, and tell of it."""
    values = columns_of(transition, job_transitions) | {
        "tenant_id": tenant_id,
        "tenant_revision": await next_job_revision(connection, tenant_id),
        "job_id": job_id,
    }
    await connection.execute(insert(job_transitions).values(values))
    is_held = transition.to_state in {JobState.PROCESSING, JobState.CANCELLING}
    connection.job_changed(job_id, tenant_id, one_may_be_due=not is_held)


# As many are ended before it is looked again what is due.
MOST_AT_ONCE = 100


class Timeouts(Store):
    """Timeouts of the jobs of all tenants. Every server and worker may look for them, as often as it likes."""

    async def end(self, is_kept: Callable[[Fence], bool] = lambda _fence: False) -> Sequence[Job]:
        """End what time has ended, or a part of it that is fair to all tenants; return the jobs as they are then.

        `is_kept` says which leases are known to be held, however late their heartbeat is.
        """
        return [job for job_id in await self._due() if (job := await self._end(job_id, is_kept))]

    async def lose_all(self) -> Sequence[Job]:
        """End the attempts of a former process; only one that has just locked the data directory may say so.

        Returns the jobs as they are then.
        """
        return [job for job_id in await self._led() if (job := await self._end(job_id))]

    @uninterruptible
    async def _due(self) -> Sequence[int]:
        # Named one by one, so that an index finds the few among all that have ended: this is asked every second.
        unfinished = [state.value for state in JobState if state not in FINAL_STATES]
        async with self.database.read() as connection:
            now = await database_time(connection)
            silent = select(leases.c.job_id).where(leases.c.expire_time <= now)
            over = (
                select(jobs.c.id, jobs.c.tenant_id)
                .where(jobs.c.state.in_(unfinished), (jobs.c.deadline <= now) | jobs.c.id.in_(silent))
                .subquery()
            )
            # Each tenant's first one goes before any tenant's second.
            turn = func.row_number().over(partition_by=over.c.tenant_id, order_by=over.c.id)
            query = select(over.c.id).order_by(turn, over.c.id).limit(MOST_AT_ONCE)
            return (await connection.scalars(query)).all()

    @uninterruptible
    async def _led(self) -> Sequence[int]:
        async with self.database.read() as connection:
            query = select(leases.c.job_id).order_by(leases.c.job_id)
            return (await connection.scalars(query)).all()

    @uninterruptible
    async def _end(self, job_id: int, is_kept: Callable[[Fence], bool] | None = None) -> Job | None:
        """Make the move that is due, if it still is: whoever was faster has made another one.

        Without `is_kept`, the worker that holds the job is known to be dead, however long its lease.
        """
        async with self.database.write() as connection:
            row = (
                await connection.execute(select(*JOB_COLUMNS).where(jobs.c.id == job_id).with_for_update())
            ).one()
            lease = (await connection.execute(select(leases).where(leases.c.job_id == job_id))).first()
            now = await database_time(connection)
            silent_since = None
            if lease and (is_kept is None or (lease.expire_time <= now and not is_kept(_fence_of(lease)))):
                silent_since = lease.expire_time - LEASE_TTL
            timeout = timed_out(job_from(row), now, silent_since)
            if timeout is None:
                return None
            if silent_since and row.state == JobState.PROCESSING:
                await _stamp_lost(connection, row, silent_since)
            row = await move_job(
                connection,
                row,
                timeout.move,
                error=timeout.error,
                not_before=timeout.not_before,
                metrics=await metrics_of(connection, row),
            )
            if lease:
                await end_attempt(connection, _fence_of(lease))
            return job_from(row)


def _fence_of(lease: Row[Any]) -> Fence:
    return Fence(lease.job_id, lease.attempt, lease.worker)


async def _stamp_lost(connection: AsyncConnection, row: Row[Any], silent_since: datetime) -> None:
    """Note since when a dead attempt's time is lost: phases begin without a heartbeat, and none begins before it."""
    query = select(func.max(job_stamps.c.time)).where(job_stamps.c.job_id == row.id)
    last: datetime = (await connection.execute(query)).scalar_one()
    await stamp(connection, row.id, row.attempt, Phase.LOST, max(last, silent_since))
