"""The lease of an attempt: who holds a job, and until when; and its renewal from a thread."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.batches import attempt_folder
from profile_export.domain.job import LEASE_TTL, Progress
from profile_export.store.db.database import Database, database_time_within
from profile_export.store.db.tables import jobs, leases
from profile_export.store.db.wakeups import Transaction
from profile_export.store.files.dropped import drop_written
from profile_export.store.jobs.rows import JOB_COLUMNS, batches_of_job


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


async def held(connection: AsyncConnection, fence: Fence) -> Row[Any]:
    """Return the row of the job that a fence holds.

    Raises:
        LeaseLostError: It does not hold.
    """
    query = select(*JOB_COLUMNS).join(leases, leases.c.job_id == jobs.c.id).where(*_of(fence))
    row: Row[Any] | None = (await connection.execute(query)).first()
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


async def end_attempt(connection: AsyncConnection, fence: Fence) -> None:
    """Take the lease of an attempt away, after the move that ends it, and have the sweeper look where it wrote."""
    await connection.execute(delete(leases).where(leases.c.job_id == fence.job_id))
    await drop_attempt(connection, fence)


async def drop_attempt(connection: AsyncConnection, fence: Fence) -> None:
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
