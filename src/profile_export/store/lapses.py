"""What time ends: jobs whose run time is used up."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from profile_export.domain.job import FINAL_STATES, Job
from profile_export.domain.lapse import lapsed
from profile_export.store.attempts import end_attempt, metrics_of
from profile_export.store.database import Database, database_time, whole
from profile_export.store.events import Wakeups
from profile_export.store.jobs import job_from, move_job
from profile_export.store.tables import jobs


class Lapses:
    """Lapses of the jobs of all tenants. Every server and worker may look for them, as often as it likes."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self.database = database
        self._wakeups = wakeups

    async def end(self) -> Sequence[Job]:
        """End what time has ended; return the jobs as they are then."""
        return [job for job_id in await self._due() if (job := await self._end(job_id))]

    @whole
    async def _due(self) -> Sequence[int]:
        final = [state.value for state in FINAL_STATES]
        async with self.database.read() as connection:
            now = await database_time(connection)
            query = select(jobs.c.id).where(jobs.c.state.not_in(final), jobs.c.deadline <= now)
            return (await connection.execute(query.order_by(jobs.c.id))).scalars().all()

    @whole
    async def _end(self, job_id: int) -> Job | None:
        """Make the move that is due, if it still is: whoever was faster has made another one."""
        async with self.database.write() as connection:
            query = select(jobs).where(jobs.c.id == job_id).with_for_update()
            row = (await connection.execute(query)).one()
            lapse = lapsed(job_from(row), await database_time(connection))
            if lapse is None:
                return None
            metrics = await metrics_of(connection, row)
            row = await move_job(connection, row, lapse.move, error=lapse.error, metrics=metrics)
            await end_attempt(connection, job_id)
        self._wakeups.job_changed(job_id)
        return job_from(row)
