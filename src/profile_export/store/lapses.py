"""What time ends: jobs whose run time is used up, and attempts whose worker gives no sign of life any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.job import FINAL_STATES, LEASE_TTL, Job, JobState, Phase
from profile_export.domain.lapse import lapsed
from profile_export.store.database import Database, database_time, whole
from profile_export.store.events import Wakeups
from profile_export.store.job_rows import JOB_COLUMNS, job_from
from profile_export.store.job_tables import job_stamps, jobs, leases
from profile_export.store.leases import Fence, end_attempt
from profile_export.store.metrics import metrics_of
from profile_export.store.moves import move_job, stamp

# As many are ended before it is looked again what is due.
MOST_AT_ONCE = 100


class Lapses:
    """Lapses of the jobs of all tenants. Every server and worker may look for them, as often as it likes."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self.database = database
        self._wakeups = wakeups

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

    @whole
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
            return (await connection.execute(query)).scalars().all()

    @whole
    async def _led(self) -> Sequence[int]:
        async with self.database.read() as connection:
            query = select(leases.c.job_id).order_by(leases.c.job_id)
            return (await connection.execute(query)).scalars().all()

    @whole
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
            lapse = lapsed(job_from(row), now, silent_since)
            if lapse is None:
                return None
            if silent_since and row.state == JobState.PROCESSING:
                await _stamp_lost(connection, row, silent_since)
            row = await move_job(
                connection,
                row,
                lapse.move,
                error=lapse.error,
                not_before=lapse.not_before,
                metrics=await metrics_of(connection, row),
            )
            if lease:
                await end_attempt(connection, _fence_of(lease))
        self._wakeups.job_changed(job_id, row.tenant_id, one_may_be_due=True)
        return job_from(row)


def _fence_of(lease: Row[Any]) -> Fence:
    return Fence(lease.job_id, lease.attempt, lease.worker)


async def _stamp_lost(connection: AsyncConnection, row: Row[Any], silent_since: datetime) -> None:
    """Note since when a dead attempt's time is lost: phases begin without a heartbeat, and none begins before it."""
    query = select(func.max(job_stamps.c.time)).where(job_stamps.c.job_id == row.id)
    last: datetime = (await connection.execute(query)).scalar_one()
    await stamp(connection, row.id, row.attempt, Phase.LOST, max(last, silent_since))
