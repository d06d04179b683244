"""Leases: who holds a job, and until when; their renewal from a thread, and what ends the jobs whose time is over."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from profile_export.domain.catalog.batches import attempt_folder
from profile_export.domain.job import (
    FINAL_STATES,
    LEASE_TTL,
    Job,
    JobState,
    Phase,
    Progress,
    timed_out,
)
from profile_export.store.db.database import (
    Database,
    Store,
    database_time,
    database_time_within,
    uninterruptible,
)
from profile_export.store.db.tables import job_stamps, jobs, leases
from profile_export.store.db.transactions import Transaction
from profile_export.store.files.folders import drop_written
from profile_export.store.jobs.jobs import JOB_COLUMNS, batches_of_job, job_from, metrics_of, move_job, stamp


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may write to a job: this worker, for this attempt."""

    job_id: int
    attempt: int
    worker: str


class LeaseLostError(Exception):
    """The job is not this attempt's any more: whatever it wanted to write is void."""


def _of(fence: Fence) -> tuple[ColumnElement[bool], ...]:
    return (
        leases.c.job_id == fence.job_id,
        leases.c.attempt == fence.attempt,
        leases.c.worker == fence.worker,
    )


async def held(connection: Transaction, fence: Fence) -> Row[Any]:
    """Return the row of the job that a fence holds.

    Raises:
        LeaseLostError: It does not hold.
    """
    query = select(*JOB_COLUMNS).join(leases, leases.c.job_id == jobs.c.id).where(*_of(fence))
    row = await connection.first(query)
    if row is None:
        message = f"attempt {fence.attempt} of job {fence.job_id} is no longer {fence.worker}'s"
        raise LeaseLostError(message)
    return row


async def carry(
    connection: Transaction, job: Row[Any], progress: Progress, expire_time: datetime | None = None
) -> None:
    """Write the progress of a held job down, and perhaps until when its lease holds now."""
    its_lease = update(leases).where(leases.c.job_id == job.id)
    if expire_time:
        await connection.execute(its_lease.values(expire_time=expire_time))
    # A heartbeat that was under way may come after the range that was done meanwhile, and knows less.
    newer = its_lease.where(leases.c.progress_rank <= progress.rank)
    await connection.execute(newer.values(progress=progress, progress_rank=progress.rank))
    connection.job_changed(job.id, job.tenant_id)


async def end_attempt(connection: Transaction, fence: Fence) -> None:
    """Take the lease of an attempt away, after the move that ends it, and have the sweeper look where it wrote."""
    await connection.execute(delete(leases).where(leases.c.job_id == fence.job_id))
    await drop_attempt(connection, fence)


async def drop_attempt(connection: Transaction, fence: Fence) -> None:
    """Have the sweeper look where an attempt wrote."""
    filled = await batches_of_job(connection, fence.job_id)
    await drop_written(
        connection, {attempt_folder(batch.folder, fence.attempt): batch.key for batch in filled}
    )


class Renewals:
    """Renewals of the leases of all jobs. Calls block."""

    def __init__(self, database: Database) -> None:
        self._engine = database.renewer

    def renew(self, fence: Fence) -> bool:
        """Renew a lease; False where the attempt has it no longer, or the database does not answer.

        One that is over, but that nobody has ended, is renewed as by a heartbeat: it may have run out while a
        transaction of this process kept out all that would have renewed it. What the attempt had reached stays as its
        heartbeat has told it.
        """
        try:
            with self._engine.begin() as connection:
                now = database_time_within(connection)
                renewal = update(leases).where(*_of(fence)).values(expire_time=now + LEASE_TTL)
                return connection.execute(renewal).rowcount == 1
        except SQLAlchemyError as error:
            # A transaction of this process is under way, and no other process could take the job over.
            cause = getattr(error, "orig", None)
            return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


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
            return await connection.values(query)

    @uninterruptible
    async def _led(self) -> Sequence[int]:
        async with self.database.read() as connection:
            query = select(leases.c.job_id).order_by(leases.c.job_id)
            return await connection.values(query)

    @uninterruptible
    async def _end(self, job_id: int, is_kept: Callable[[Fence], bool] | None = None) -> Job | None:
        """Make the move that is due, if it still is: whoever was faster has made another one.

        Without `is_kept`, the worker that holds the job is known to be dead, however long its lease.
        """
        async with self.database.write() as connection:
            row = await connection.one(select(*JOB_COLUMNS).where(jobs.c.id == job_id).with_for_update())
            lease = await connection.first(select(leases).where(leases.c.job_id == job_id))
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


async def _stamp_lost(connection: Transaction, row: Row[Any], silent_since: datetime) -> None:
    """Note since when a dead attempt's time is lost: phases begin without a heartbeat, and none begins before it."""
    query = select(func.max(job_stamps.c.time)).where(job_stamps.c.job_id == row.id)
    last: datetime = await connection.value(query)
    await stamp(connection, row.id, row.attempt, Phase.LOST, max(last, silent_since))
