"""What time ends, in the store: each test moves times into the past instead of waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import cast

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import LEASE_TTL, MAX_ATTEMPTS, Job, JobError, JobState, Phase
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.store.db.tables import job_ranges, job_stamps, jobs, leases
from profile_export.store.jobs.attempts import Claim, LeaseLostError
from profile_export.store.jobs.expiries import Timeouts
from profile_export.store.jobs.jobs import NewJob
from tests.contract.test_store import (
    FILE,
    RUNNING,
    TENANT,
    UNION,
    Store,
    check_that_nothing_is_written,
    range_done,
)
from tests.databases import Place

HOUR = timedelta(hours=1)


class Timed(Store):
    """A store whose jobs may take an hour."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.timeouts = Timeouts(self.database)

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

    async def lease_runs_out(self, claim: Claim) -> datetime:
        """Move a claimed job's life back until its lease is over; return when its worker was heard of last."""
        async with self.database.write() as connection:
            lease = (await connection.execute(select(leases).where(leases.c.job_id == claim.job.id))).one()
            created = claim.job.create_time - LEASE_TTL
            await connection.execute(
                update(leases)
                .where(leases.c.job_id == claim.job.id)
                .values(expire_time=lease.expire_time - LEASE_TTL)
            )
            await connection.execute(
                update(jobs).where(jobs.c.id == claim.job.id).values(create_time=created)
            )
            await connection.execute(
                update(job_stamps).where(job_stamps.c.job_id == claim.job.id).values(time=created)
            )
        return cast("datetime", lease.expire_time) - 2 * LEASE_TTL

    async def back_off_passes(self) -> None:
        async with self.database.write() as connection:
            await connection.execute(update(jobs).values(not_before=None))

    async def phases(self, job_id: int) -> list[tuple[int, Phase]]:
        view = await self.jobs.get(TENANT, job_id)
        return [(phase.attempt, phase.phase) for phase in view.phases]

    async def job(self, job_id: int) -> Job:
        return (await self.jobs.get(TENANT, job_id)).job

    async def recorded(self, job_id: int) -> int:
        async with self.database.read() as connection:
            query = select(job_ranges).where(job_ranges.c.job_id == job_id)
            return len((await connection.execute(query)).all())


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Timed]:
    opened = Timed(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


async def test_a_job_whose_run_time_is_used_up_before_a_claim_is_not_claimed_and_fails(store: Timed) -> None:
    job_id = await store.limited()
    await store.an_hour_passes()

    claim = await store.attempts.claim("worker")
    ended = await store.timeouts.end()

    assert claim is None
    assert ended == [await store.job(job_id)]
    [job] = ended
    assert (job.state, job.attempt, [error.code for error in job.errors]) == (
        JobState.FAILED,
        0,
        ["RUN_TIME_EXCEEDED"],
    )
    assert (await store.batches.get_batch(TENANT, job.batch_id)).state is BatchState.FAILED
    assert await store.timeouts.end() == []


async def test_a_running_job_whose_run_time_is_used_up_fails_and_its_worker_may_write_no_more(
    store: Timed,
) -> None:
    job_id = await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    await store.an_hour_passes()

    [job] = await store.timeouts.end()

    assert (job.id, job.state, job.metrics.counts.profiles_exported) == (job_id, JobState.FAILED, 3)
    with pytest.raises(LeaseLostError):
        await store.attempts.commit(claim.fence)
    assert (await store.recorded(job_id), await store.succeeded()) == (0, [])


async def test_a_job_that_backs_off_when_its_run_time_is_used_up_keeps_the_error_before(store: Timed) -> None:
    await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    error = JobError("ENGINE_CRASHED", "It died.", "engine", retryable=True, attempt=1)
    await store.attempts.end_with_error(claim.fence, error)
    await store.an_hour_passes()

    [job] = await store.timeouts.end()

    assert [error.code for error in job.errors] == ["ENGINE_CRASHED", "RUN_TIME_EXCEEDED"]
    phases = (await store.jobs.get(TENANT, job.id)).phases
    assert [phase.phase for phase in phases] == [Phase.QUEUE, Phase.PLAN, Phase.QUEUE]


async def test_a_cancel_that_was_asked_for_before_the_run_time_was_used_up_stays_one(store: Timed) -> None:
    job_id = await store.limited()
    claim = await store.attempts.claim("worker")
    assert claim
    await store.jobs.cancel(TENANT, job_id, "me", "")
    await store.an_hour_passes()

    assert await store.timeouts.end() == []

    await store.attempts.let_go(claim.fence)
    assert (await store.job(job_id)).state is JobState.CANCELLED


async def test_a_job_that_has_time_left_goes_on(store: Timed) -> None:
    job_id = await store.limited()

    assert await store.timeouts.end() == []
    assert await store.attempts.claim("worker")
    assert (await store.job(job_id)).state is JobState.PROCESSING


# --- Leases ---


async def test_a_job_whose_worker_has_died_is_taken_over_with_the_ranges_it_recorded(store: Timed) -> None:
    # given an attempt that has recorded a range, and whose lease runs out
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 4), RUNNING)
    heard_of = await store.lease_runs_out(claim)

    # when somebody looks
    [job] = await store.timeouts.end()

    # then it is to be tried again, the lost attempt says why, and its lost time begins with its last sign of life
    assert (job.state, job.attempt) == (JobState.NEW, 1)
    assert [(error.code, error.attempt) for error in job.errors] == [("LEASE_LOST", 1)]
    assert job.not_before
    assert job.not_before > heard_of
    view = await store.jobs.get(TENANT, job.id)
    assert await store.phases(job.id) == [
        (0, Phase.QUEUE),
        (1, Phase.PLAN),
        (1, Phase.LOST),
        (1, Phase.QUEUE),
    ]
    assert [phase.start_time for phase in view.phases][2:] == [heard_of, job.update_time]
    # and another goes on from what it recorded
    await store.back_off_passes()
    again = await store.attempts.claim("another")
    assert again
    assert (again.fence.attempt, again.recorded) == (2, frozenset({4}))
    assert await store.attempts.commit(again.fence) == [FILE]


async def test_a_former_holder_writes_nothing_after_the_take_over(store: Timed) -> None:
    claim = await store.claimed()
    await store.lease_runs_out(claim)
    await store.timeouts.end()
    await store.back_off_passes()
    again = await store.attempts.claim("another")
    assert again

    await check_that_nothing_is_written(store, claim)

    job = await store.job(claim.job.id)
    assert (job.state, job.attempt, await store.recorded(job.id)) == (JobState.PROCESSING, 2, 0)


async def test_a_job_whose_workers_all_die_fails_when_no_attempt_is_left(store: Timed) -> None:
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    for _ in range(MAX_ATTEMPTS - 1):
        await store.lease_runs_out(claim)
        await store.timeouts.end()
        await store.back_off_passes()
        again = await store.attempts.claim("another")
        assert again
        claim = again

    await store.lease_runs_out(claim)
    [job] = await store.timeouts.end()

    assert job.state is JobState.FAILED
    assert [(error.code, error.attempt) for error in job.errors] == [("LEASE_LOST", n) for n in (1, 2, 3)]
    assert (await store.recorded(job.id), await store.succeeded()) == (0, [])
    assert (await store.phases(job.id))[-1] == (3, Phase.LOST)


async def test_a_cancelled_job_whose_worker_has_died_ends_cancelled(store: Timed) -> None:
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    await store.jobs.cancel(TENANT, claim.job.id, "me", "")
    await store.lease_runs_out(claim)

    [job] = await store.timeouts.end()

    assert (job.state, job.errors, await store.recorded(job.id)) == (JobState.CANCELLED, (), 0)
    assert (await store.phases(job.id))[-1] == (1, Phase.CANCEL)
    with pytest.raises(LeaseLostError):
        await store.attempts.let_go(claim.fence)


async def test_a_heartbeat_keeps_a_lease(store: Timed) -> None:
    claim = await store.claimed()
    await store.lease_runs_out(claim)
    await store.attempts.heartbeat(claim.fence, RUNNING)

    assert await store.timeouts.end() == []


async def test_attempts_of_a_former_process_are_lost_however_long_their_leases(store: Timed) -> None:
    going = await store.claimed()
    cancelling = await store.claimed()
    await store.jobs.cancel(TENANT, cancelling.job.id, "me", "")

    ended = await store.timeouts.lose_all()

    assert [(job.id, job.state) for job in ended] == [
        (going.job.id, JobState.NEW),
        (cancelling.job.id, JobState.CANCELLED),
    ]
    assert [error.code for error in ended[0].errors] == ["LEASE_LOST"]
    assert await store.timeouts.lose_all() == []


async def test_a_cancel_between_two_attempts_forgets_what_was_recorded(store: Timed) -> None:
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    await store.attempts.release(claim.fence)

    view = await store.jobs.cancel(TENANT, claim.job.id, "me", "")

    assert (view.job.state, await store.recorded(claim.job.id)) == (JobState.CANCELLED, 0)
