"""What time ends: batches and jobs kept long enough, silent uploads, deleted datasets, jobs without a lease or time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, select, update

from profile_export.domain.catalog.batches import BatchState, UploadState
from profile_export.domain.catalog.datasets import REMEMBERED, batch_expiry_reason, upload_expiry_reason
from profile_export.domain.job import LEASE_TTL, Job, JobState, Phase, timed_out
from profile_export.store.catalog.tenants import forget_job_revisions, next_job_revision
from profile_export.store.db.database import Store, database_time, uninterruptible
from profile_export.store.db.tables import (
    LOADING,
    UNFINISHED,
    batches,
    datasets,
    expired_jobs,
    job_ranges,
    job_stamps,
    job_transitions,
    jobs,
    leases,
    uploads,
)
from profile_export.store.db.transactions import Transaction
from profile_export.store.files.folders import drop, drop_datasets
from profile_export.store.files.snapshots import drop_compactions
from profile_export.store.jobs.attempts import Fence, end_attempt
from profile_export.store.jobs.jobs import JOB_COLUMNS, job_from, move_job, recorded_of, stamp

MOST_ENDED = 100
"""How many batches, datasets or jobs end before others have their turn: in one transaction or look for timeouts."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Batches that were given up while they were uploaded, and under which names bytes of them are kept."""

    batches: Sequence[str] = ()
    staged: Sequence[str] = ()


class Expiries(Store):
    """Expiries of all tenants. Every server may look for them, as often as it likes.

    Each method ends what is due, but no more than goes into one short transaction, and says what: nothing means that
    nothing was due. A reading transaction looks first, so that the one writing transaction is not held up for nothing.
    """

    @uninterruptible
    async def expire_batches(self) -> Sequence[str]:
        """Hide batches that have counted as long as their dataset says, as a revert does; return their ids."""
        async with self.database.read() as connection:
            keys = await _due_batches(connection, await database_time(connection))
        if not keys:
            return ()
        async with self.database.write() as connection:
            now = await database_time(connection)
            due = await _still_due(connection, keys, now)
            if due:
                expiring = update(batches).where(batches.c.key == bindparam("of_batch"))
                values = [
                    {
                        "of_batch": row.key,
                        "state": BatchState.EXPIRED,
                        "state_reason": batch_expiry_reason(row.batch_retention),
                        "expire_time": now,
                    }
                    for row in due
                ]
                await connection.execute(expiring, values)
                await drop(connection, [row.folder for row in due])
                connection.batches_changed()
        return [row.id for row in due]

    @uninterruptible
    async def expire_uploads(self, kept_for: timedelta) -> GivenUp:
        """Fail batches of which nothing was sent for that long; they can be uploaded again."""
        async with self.database.read() as connection:
            if not await _due_uploads(connection, await database_time(connection) - kept_for):
                return GivenUp()
        async with self.database.write() as connection:
            now = await database_time(connection)
            keys = await _due_uploads(connection, now - kept_for)
            ended = {
                "state": BatchState.FAILED,
                "state_reason": upload_expiry_reason(kept_for),
                "end_time": now,
                "staged_bytes": 0,
            }
            query = update(batches).where(batches.c.key.in_(keys)).values(ended).returning(batches.c.id)
            ids = await connection.values(query)
            # Their rows say by which names the bytes are to be found, until the batch is uploaded again.
            lost = {
                "state": UploadState.OPEN,
                "byte_count": None,
                "sha256": None,
                "facts": None,
                "staged_bytes": 0,
            }
            sent = uploads.c.batch_key.in_(keys) & (uploads.c.state != UploadState.REFUSED)
            gone = update(uploads).where(sent).values(lost).returning(uploads.c.staged_as)
            return GivenUp(ids, await connection.values(gone))

    @uninterruptible
    async def purge_datasets(self) -> Sequence[str]:
        """Give up the folders of deleted datasets that can be brought back no longer; return the datasets' ids."""
        async with self.database.read() as connection:
            if not await _due_datasets(connection):
                return ()
        async with self.database.write() as connection:
            due = await _due_datasets(connection)
            purged = update(datasets).where(datasets.c.id.in_(due))
            await connection.execute(purged.values(purge_time=None, former_request_id=None))
            await drop_compactions(connection, due)
            await drop_datasets(connection, due)
        return list(due)

    @uninterruptible
    async def expire_jobs(self, kept_for: timedelta) -> Sequence[int]:
        """Remove jobs that ended that long ago; their batches and receipts stay. Return the ids."""
        async with self.database.read() as connection:
            if not await _due_jobs(connection, await database_time(connection) - kept_for):
                return ()
        async with self.database.write() as connection:
            now = await database_time(connection)
            due = await _due_jobs(connection, now - kept_for)
            ids = [row.id for row in due]
            for tenant_id, rows in groupby(sorted(due, key=_tenant_and_end), lambda row: row.tenant_id):
                await _remember(connection, tenant_id, tuple(rows), now)
            for table in (job_transitions, job_stamps, job_ranges):
                await connection.execute(delete(table).where(table.c.job_id.in_(ids)))
            await connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
        return ids

    @uninterruptible
    async def forget_jobs(self) -> Sequence[int]:
        """Forget jobs that have been remembered long enough: from now on they never were; return their ids."""
        async with self.database.read() as connection:
            before = await database_time(connection) - REMEMBERED
            query = select(expired_jobs.c.job_id).where(expired_jobs.c.expire_time <= before)
            query = query.order_by(expired_jobs.c.expire_time).limit(MOST_ENDED)
            ids = await connection.values(query)
        if ids:
            async with self.database.write() as connection:
                await connection.execute(delete(expired_jobs).where(expired_jobs.c.job_id.in_(ids)))
        return ids


async def _remember(
    connection: Transaction, tenant_id: int, expiring: Sequence[Row[Any]], now: datetime
) -> None:
    """Note that jobs of a tenant are removed; what happened up to their ends cannot be told from then on."""
    last = await next_job_revision(connection, tenant_id, len(expiring))
    remembered = [
        {
            "job_id": row.id,
            "tenant_id": tenant_id,
            "expire_time": now,
            "tenant_revision": revision,
            "state": row.state,
            "destination_id": row.destination_id,
            "create_time": row.create_time,
        }
        for revision, row in enumerate(expiring, start=last - len(expiring) + 1)
    ]
    await connection.execute(insert(expired_jobs), remembered)
    theirs = job_transitions.c.job_id.in_([row.id for row in expiring])
    newest = await connection.execute(select(func.max(job_transitions.c.tenant_revision)).where(theirs))
    await forget_job_revisions(connection, tenant_id, newest.scalar_one() or 0)
    for row in expiring:
        connection.job_changed(row.id, tenant_id)


def _tenant_and_end(row: Row[Any]) -> tuple[int, datetime]:
    return row.tenant_id, row.end_time


async def _due_batches(connection: Transaction, now: datetime) -> Sequence[int]:
    """Return the keys of batches that are due, the oldest of each dataset first."""
    keeping = select(datasets.c.id, datasets.c.batch_retention).where(
        datasets.c.batch_retention.is_not(None), datasets.c.delete_time.is_(None)
    )
    due: list[int] = []
    # One by one: joined, SQLite reads all batches there are to find those of the few datasets.
    for dataset in await connection.all(keeping.order_by(datasets.c.id)):
        query = select(batches.c.key).where(
            batches.c.dataset_id == dataset.id,
            batches.c.state == BatchState.SUCCEEDED,
            batches.c.ingest_time <= now - dataset.batch_retention,
        )
        left = MOST_ENDED - len(due)
        due += await connection.scalars(query.order_by(batches.c.ingest_time).limit(left))
        if len(due) == MOST_ENDED:
            break
    return due


async def _still_due(connection: Transaction, keys: Sequence[int], now: datetime) -> Sequence[Row[Any]]:
    """Return batches that were due and still are, with how long their datasets keep them."""
    query = (
        select(
            batches.c.key, batches.c.id, batches.c.folder, batches.c.ingest_time, datasets.c.batch_retention
        )
        .join(datasets, datasets.c.id == batches.c.dataset_id)
        .where(
            batches.c.key.in_(keys),
            batches.c.state == BatchState.SUCCEEDED,
            datasets.c.batch_retention.is_not(None),
            datasets.c.delete_time.is_(None),
        )
    )
    rows = await connection.all(query.order_by(batches.c.key))
    return [row for row in rows if row.ingest_time + row.batch_retention <= now]


async def _due_uploads(connection: Transaction, before: datetime) -> Sequence[int]:
    """Return the keys of batches that nothing was sent of since, the longest silent first."""
    query = select(batches.c.key).where(LOADING, batches.c.active_time <= before)
    return await connection.values(query.order_by(batches.c.active_time).limit(MOST_ENDED))


async def _due_datasets(connection: Transaction) -> Mapping[str, datetime]:
    """Return when the deleted datasets were deleted that are due, by their ids."""
    query = select(datasets.c.id, datasets.c.delete_time)
    query = query.where(datasets.c.purge_time <= await database_time(connection))
    rows = await connection.all(query.order_by(datasets.c.purge_time).limit(MOST_ENDED))
    return {row.id: row.delete_time for row in rows}


async def _due_jobs(connection: Transaction, before: datetime) -> Sequence[Row[Any]]:
    # Only a job that has ended has an end time.
    columns = (
        jobs.c.id,
        jobs.c.tenant_id,
        jobs.c.state,
        jobs.c.destination_id,
        jobs.c.create_time,
        jobs.c.end_time,
    )
    query = select(*columns).where(jobs.c.end_time <= before)
    return await connection.all(query.order_by(jobs.c.end_time).limit(MOST_ENDED))


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
        async with self.database.read() as connection:
            now = await database_time(connection)
            silent = select(leases.c.job_id).where(leases.c.expire_time <= now)
            over = (
                select(jobs.c.id, jobs.c.tenant_id)
                .where(UNFINISHED, (jobs.c.deadline <= now) | jobs.c.id.in_(silent))
                .subquery()
            )
            # Each tenant's first one goes before any tenant's second.
            turn = func.row_number().over(partition_by=over.c.tenant_id, order_by=over.c.id)
            query = select(over.c.id).order_by(turn, over.c.id).limit(MOST_ENDED)
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
            recorded = await recorded_of(connection, row.id)
            row = await move_job(
                connection,
                row,
                timeout.move,
                error=timeout.error,
                not_before=timeout.not_before,
                metrics=recorded.metrics,
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
