"""What time ends, in the store: each test moves a job's times into the past instead of waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from profile_export.domain.batch import BatchState
from profile_export.domain.job import Job, JobError, JobState, Phase
from profile_export.domain.policy import BUILT_IN_POLICY
from profile_export.domain.request import BoundRequest, ExportRequest
from profile_export.store.attempts import LeaseLostError
from profile_export.store.events import Wakeups
from profile_export.store.jobs import NewJob
from profile_export.store.lapses import Lapses
from profile_export.store.tables import job_ranges, jobs
from tests.contract.test_store import RUNNING, TENANT, UNION, Store, range_done

HOUR = timedelta(hours=1)


class Timed(Store):
    """A store whose jobs may take an hour."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.lapses = Lapses(self.database, Wakeups())

    async def limited(self) -> int:
        destination = await self.dataset(UNION)
        bound = BoundRequest(ExportRequest(destination, max_run_time=HOUR), BUILT_IN_POLICY)
        new = NewJob(bound, "", {f"batch-{destination}": f"{destination}/f"})
        return (await self.jobs.create(TENANT, new))[0].job.id

    async def an_hour_passes(self) -> None:
        async with self.database.write() as connection:
            rows = (await connection.execute(select(jobs))).all()
            for row in rows:
                earlier = {"create_time": row.create_time - HOUR, "deadline": row.deadline - HOUR}
                await connection.execute(update(jobs).where(jobs.c.id == row.id).values(earlier))

    async def job(self, job_id: int) -> Job:
        return (await self.jobs.get(TENANT, job_id)).job

    async def recorded(self, job_id: int) -> int:
        async with self.database.read() as connection:
            query = select(job_ranges).where(job_ranges.c.job_id == job_id)
            return len((await connection.execute(query)).all())


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Timed]:
    opened = Timed(tmp_path)
    await opened.database.open()
    yield opened
    await opened.database.close()


async def test_a_job_whose_run_time_is_used_up_before_a_claim_is_not_claimed_and_fails(store: Timed) -> None:
    job_id = await store.limited()
    await store.an_hour_passes()

    claim = await store.attempts.claim("worker")
    ended = await store.lapses.end()

    assert claim is None
    assert ended == [await store.job(job_id)]
    [job] = ended
    assert (job.state, job.attempt, [error.code for error in job.errors]) == (
        JobState.FAILED,
        0,
        ["RUN_TIME_EXCEEDED"],
    )
    assert (await store.batches.get_batch(TENANT, job.batch_id)).state is BatchState.FAILED
    assert await store.lapses.end() == []


async def test_a_running_job_whose_run_time_is_used_up_fails_and_its_worker_may_write_no_more(
    store: Timed,
) -> None:
    job_id = await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    await store.an_hour_passes()

    [job] = await store.lapses.end()

    assert (job.id, job.state, job.metrics.counts.profiles_exported) == (job_id, JobState.FAILED, 3)
    with pytest.raises(LeaseLostError):
        await store.attempts.commit(claim.fence)
    assert (await store.recorded(job_id), await store.succeeded()) == (0, [])


async def test_a_job_that_backs_off_when_its_run_time_is_used_up_keeps_the_error_before(store: Timed) -> None:
    await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    error = JobError("ENGINE_DIED", "It died.", "engine", retryable=True, attempt=1)
    await store.attempts.end_with_error(claim.fence, error)
    await store.an_hour_passes()

    [job] = await store.lapses.end()

    assert [error.code for error in job.errors] == ["ENGINE_DIED", "RUN_TIME_EXCEEDED"]
    phases = (await store.jobs.get(TENANT, job.id)).phases
    assert [phase.phase for phase in phases] == [Phase.QUEUE, Phase.PLAN, Phase.QUEUE]


async def test_a_cancel_that_was_asked_for_before_the_run_time_was_used_up_stays_one(store: Timed) -> None:
    job_id = await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    await store.jobs.cancel(TENANT, job_id, "me", "")
    await store.an_hour_passes()

    assert await store.lapses.end() == []

    await store.attempts.let_go(claim.fence)
    assert (await store.job(job_id)).state is JobState.CANCELLED


async def test_a_job_that_has_time_left_goes_on(store: Timed) -> None:
    job_id = await store.limited()

    assert await store.lapses.end() == []
    assert await store.attempts.claim("worker")
    assert (await store.job(job_id)).state is JobState.PROCESSING
