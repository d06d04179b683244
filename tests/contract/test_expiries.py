"""Retention: what has been kept long enough goes, says so, and takes nothing else with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, update

from profile_export.domain.catalog.batches import MERGED_FROM, BatchState, DataFile
from profile_export.domain.catalog.datasets import REMEMBERED, DatasetChange, Tenant
from profile_export.domain.errors import FailedPreconditionError, NotFoundError
from profile_export.domain.export.plan import ExportCounts, plan_export
from profile_export.domain.export.receipt import Receipt
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import JobError, JobState, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.runner.chores import ExpiryChore
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import (
    batches,
    expired_jobs,
    job_ranges,
    job_stamps,
    job_transitions,
    jobs,
)
from profile_export.store.files.batches import Batches, Receipts
from profile_export.store.files.folders import Named
from profile_export.store.jobs import expiries as expiries_of_store
from profile_export.store.jobs.attempts import Claim, RangeDone
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.jobs import NewJob
from tests.contract.house import NO_GRACE, TENANT, UNION, House, opened
from tests.databases import Place
from tests.pages import page_of

MONTH = timedelta(days=30)
HOUR = timedelta(hours=1)
COMMITTING = Progress(Phase.COMMIT, 1, 1, 1)


class Keeper:
    """A house with retention, and what makes time pass in it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.expiries = Expiries(house.database)
        self.batches, self.receipts = Batches(house.database), Receipts(house.database)

    async def dataset(self, kept_for: timedelta = MONTH, *batch_ids: str) -> str:
        """Make a dataset of batches of one person each."""
        dataset_id = await self.house.dataset()
        change = DatasetChange(batch_retention=kept_for)
        await self.house.catalog.update_dataset(TENANT, dataset_id, change)
        for batch_id in batch_ids:
            await self.house.upload(dataset_id, batch_id, {"crmId": batch_id, "name": batch_id})
        return dataset_id

    async def aged(self, age: timedelta, *batch_ids: str) -> None:
        """Make batches so old."""
        await self._set(batches, batches.c.id.in_(batch_ids), ingest_time=age)

    async def jobs_aged(self, age: timedelta, *job_ids: int) -> None:
        """Make jobs have ended so long ago."""
        await self._set(jobs, jobs.c.id.in_(job_ids), end_time=age)

    async def time_passes(self, age: timedelta) -> None:
        """Make all expired jobs have expired so long ago."""
        await self._set(expired_jobs, expired_jobs.c.job_id > 0, expire_time=age)

    async def _set(self, table: Any, which: Any, **ages: timedelta) -> None:
        async with self.house.database.write() as connection:
            now = await database_time(connection)
            values = {column: now - age for column, age in ages.items()}
            await connection.execute(update(table).where(which).values(values))

    async def states(self, *batch_ids: str) -> list[BatchState]:
        return [(await self.batches.get_batch(TENANT, batch_id)).state for batch_id in batch_ids]

    async def counting(self, dataset_id: str) -> list[str]:
        page = await self.batches.list_batches(TENANT, dataset_id, page_of())
        return [batch.id for batch in page.items]

    async def claimed(self, request_id: str = "") -> Claim:
        """Begin a job that pins what counts now."""
        union = await self.house.dataset(UNION)
        bound = BoundRequest(ExportRequest(union, policy_id=BUILT_IN_POLICY.id), BUILT_IN_POLICY)
        new = NewJob(bound, request_id, {f"{union}-b": f"{union}/b"})
        await self.house.jobs.create(TENANT, new)
        claim = await self.house.attempts.claim("worker")
        assert claim
        plan = plan_export(claim.job.bound, await self.house.snapshots.take(TENANT), claim.job.batch_id)
        await self.house.attempts.begin_phase(claim.fence, COMMITTING, plan)
        return claim

    async def exported(self, request_id: str = "") -> Claim:
        """Carry a job out that writes one file."""
        claim = await self.claimed(request_id)
        [(batch_id, folder)] = claim.folders.items()
        file = DataFile("f", f"{folder}/1/f", 2, 9, "ab")
        done = RangeDone(0, {batch_id: [file]}, ExportCounts(profiles_exported=2), 1)
        await self.house.attempts.record_range(claim.fence, done, COMMITTING)
        await self.house.attempts.commit(claim.fence)
        return claim

    def chore(self, job_retention: timedelta | None) -> ExpiryChore:
        return ExpiryChore(self.expiries, Changes(self.house.database), job_retention, MONTH)

    async def refusal(self, job_id: int, tenant: Tenant = TENANT) -> str:
        """Name a job in every way there is; return the one reason for which it is not found."""
        reasons = set()
        for call in (
            self.house.jobs.get(tenant, job_id),
            self.house.jobs.transitions_after(tenant, job_id, 0),
            self.house.jobs.cancel(tenant, job_id, "me", ""),
        ):
            with pytest.raises(NotFoundError) as refused:
                await call
            assert refused.value.metadata["id"] == str(job_id)
            reasons.add(refused.value.reason)
        [reason] = reasons
        return reason


@pytest_asyncio.fixture
async def keeper(tmp_path: Path, place: Place) -> AsyncIterator[Keeper]:
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as house:
        yield Keeper(house)


# --- Batches ---


async def test_a_batch_older_than_its_dataset_says_counts_no_longer_and_says_why(keeper: Keeper) -> None:
    # given a dataset that keeps batches for a month, with an older and a younger one, and one that keeps all
    kept = await keeper.dataset(MONTH, "old", "young")
    await keeper.dataset(timedelta(), "ancient")
    await keeper.aged(MONTH, "old")
    await keeper.aged(MONTH - HOUR, "young")
    await keeper.aged(100 * MONTH, "ancient")

    # when retention looks, twice
    first, second = await keeper.expiries.expire_batches(), await keeper.expiries.expire_batches()

    # then the older one is expired, and in no list and no snapshot
    assert (first, second) == (["old"], ())
    assert await keeper.states("old", "young", "ancient") == [
        BatchState.EXPIRED,
        BatchState.SUCCEEDED,
        BatchState.SUCCEEDED,
    ]
    assert await keeper.counting(kept) == ["young"]
    snapshot = await keeper.house.snapshots.take(TENANT)
    assert {batch.id for batch in snapshot.batches} == {"young", "ancient"}
    old = await keeper.batches.get_batch(TENANT, "old")
    assert old.state_reason == "Expired: its dataset keeps batches for 30 days."
    assert old.ingest_time
    assert old.expire_time
    assert MONTH <= old.expire_time - old.ingest_time < MONTH + HOUR
    # and nobody can have its files, or take it back
    for call in (
        keeper.batches.list_files(TENANT, "old", page_of()),
        keeper.batches.revert(TENANT, "old", ""),
    ):
        with pytest.raises(FailedPreconditionError, match="EXPIRED"):
            await call


async def test_a_batch_says_when_it_will_expire(keeper: Keeper) -> None:
    dataset_id = await keeper.dataset(MONTH, "a", "b")
    await keeper.dataset(timedelta(), "c")
    await keeper.batches.revert(TENANT, "b", "wrong")

    shown = [await keeper.batches.get_batch(TENANT, batch_id) for batch_id in "abc"]
    [listed] = (await keeper.batches.list_batches(TENANT, dataset_id, page_of())).items

    assert shown[0].ingest_time
    assert [batch.expire_time for batch in shown] == [shown[0].ingest_time + MONTH, None, None]
    assert listed == shown[0]


async def test_a_retention_that_is_changed_holds_for_what_counts_then(keeper: Keeper) -> None:
    dataset_id = await keeper.dataset(MONTH, "a", "b")
    await keeper.aged(2 * MONTH, "a", "b")
    change = keeper.house.catalog.update_dataset

    await change(TENANT, dataset_id, DatasetChange(batch_retention=timedelta()))
    kept = await keeper.expiries.expire_batches()
    await change(TENANT, dataset_id, DatasetChange(name="renamed"))
    still = await keeper.expiries.expire_batches()
    changed = await change(TENANT, dataset_id, DatasetChange(batch_retention=HOUR))

    assert (kept, still, changed.batch_retention) == ((), (), HOUR)
    assert sorted(await keeper.expiries.expire_batches()) == ["a", "b"]


async def test_the_files_of_an_expired_batch_go_after_the_grace_and_not_with_the_transaction(
    keeper: Keeper,
) -> None:
    dataset_id = await keeper.dataset(MONTH, "old", "young")
    await keeper.aged(2 * MONTH, "old")

    await keeper.expiries.expire_batches()
    await keeper.house.sweep(HOUR)
    early = keeper.house.on_disk(dataset_id)
    await keeper.house.sweep(NO_GRACE)

    assert early == {f"{dataset_id}/old", f"{dataset_id}/young"}
    assert keeper.house.on_disk(dataset_id) == {f"{dataset_id}/young"}


async def test_what_a_server_expired_before_it_died_leaves_the_disk_with_the_next(
    keeper: Keeper, tmp_path: Path, place: Place
) -> None:
    # given a server that dies between the transaction and the disk
    dataset_id = await keeper.dataset(MONTH, "old", "young")
    await keeper.aged(2 * MONTH, "old")
    await keeper.expiries.expire_batches()
    await keeper.house.database.close()

    # when the next one starts and sweeps
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as later:
        kept = {
            *await Named(later.database).kept_folders(),
            *await later.dropped.folders(),
        }
        named_by_nothing = set(later.lake.untouched(NO_GRACE)) - kept
        at_start = later.on_disk(dataset_id)
        again = await Expiries(later.database).expire_batches()
        await later.sweep()

        # then the grace held at its start, too, and nothing is expired twice or left
        assert at_start == {f"{dataset_id}/old", f"{dataset_id}/young"}
        assert named_by_nothing == set()
        assert again == ()
        assert later.on_disk(dataset_id) == {f"{dataset_id}/young"}


async def test_an_export_that_has_pinned_a_batch_finishes_with_it(keeper: Keeper) -> None:
    # given a running job that has pinned a batch
    dataset_id = await keeper.dataset(MONTH, "old", "young")
    plan = await keeper.house.plan()
    before = keeper.house.run(plan)
    claim = await keeper.claimed()

    # when the batch expires and everything is swept that may be
    await keeper.aged(2 * MONTH, "old")
    await keeper.expiries.expire_batches()
    await keeper.house.sweep()

    # then the job reads what it has pinned, the next one does not, and the files go when the job has ended
    assert keeper.house.run(plan) == before
    assert len(await keeper.house.export()) == len(before) - 1
    await keeper.house.attempts.commit(claim.fence)
    await keeper.house.sweep()
    assert keeper.house.on_disk(dataset_id) == {f"{dataset_id}/young"}


async def test_a_compacted_file_with_an_expired_batch_counts_no_longer(keeper: Keeper) -> None:
    names = [f"b{number}" for number in range(MERGED_FROM)]
    await keeper.dataset(MONTH, *names)
    assert await keeper.house.compact()
    await keeper.aged(2 * MONTH, *names[:3])

    await keeper.expiries.expire_batches()

    assert len(await keeper.house.export()) == MERGED_FROM - 3
    await keeper.house.compact()
    await keeper.house.sweep()
    assert len(await keeper.house.export()) == MERGED_FROM - 3


async def test_a_deleted_dataset_is_left_alone(keeper: Keeper) -> None:
    dataset_id = await keeper.dataset(MONTH, "old")
    await keeper.aged(2 * MONTH, "old")
    await keeper.house.catalog.delete_dataset(TENANT, dataset_id)

    assert await keeper.expiries.expire_batches() == ()


async def test_whoever_waits_for_batches_is_woken(keeper: Keeper) -> None:
    await keeper.dataset(MONTH, "old")
    await keeper.aged(2 * MONTH, "old")

    with keeper.house.wakeups.of_batches() as changed:
        await keeper.expiries.expire_batches()

        assert changed.is_set()


# --- Jobs ---


async def test_a_job_that_ended_long_ago_is_removed_and_what_it_has_made_stays(keeper: Keeper) -> None:
    # given an old job, a younger one, and one that has not ended
    await keeper.dataset(MONTH, "in")
    old, young = await keeper.exported(), await keeper.exported()
    running = await keeper.claimed()
    await keeper.jobs_aged(MONTH, old.job.id)
    await keeper.jobs_aged(MONTH - HOUR, young.job.id)

    # when jobs are kept for a month
    first, second = await keeper.expiries.expire_jobs(MONTH), await keeper.expiries.expire_jobs(MONTH)

    # then nothing of the old one is left but that it has expired
    assert (first, second) == ([old.job.id], ())
    assert await keeper.refusal(old.job.id) == "EXPIRED"
    listed = await keeper.house.jobs.list(TENANT, page_of())
    assert [view.job.id for view in listed.items] == [running.job.id, young.job.id]
    async with keeper.house.database.read() as connection:
        for table in (job_transitions, job_stamps, job_ranges):
            left = await connection.execute(select(table.c.job_id).where(table.c.job_id == old.job.id))
            assert left.all() == []
    # and its batch counts, with its file and its receipt
    batch = await keeper.batches.get_batch(TENANT, old.job.batch_id)
    assert (batch.state, batch.job_id, batch.rows) == (BatchState.SUCCEEDED, old.job.id, 2)
    files = await keeper.batches.list_files(TENANT, old.job.batch_id, page_of())
    assert [file.name for file in files.items] == ["f"]
    receipt: Receipt = (await keeper.receipts.get(TENANT, old.job.batch_id)).receipt
    assert (receipt.job_id, receipt.metrics.counts.profiles_exported) == (old.job.id, 2)


async def test_an_expired_job_says_when(keeper: Keeper) -> None:
    job_id = (await keeper.exported()).job.id
    await keeper.jobs_aged(MONTH, job_id)
    async with keeper.house.database.read() as connection:
        before = await database_time(connection)

    await keeper.expiries.expire_jobs(MONTH)

    with pytest.raises(NotFoundError, match=f"The job {job_id} has expired") as refused:
        await keeper.house.jobs.get(TENANT, job_id)
    when = datetime.fromisoformat(refused.value.metadata["expire_time"])
    assert timedelta() <= when - before.replace(microsecond=0) < HOUR


async def test_the_expired_job_of_another_tenant_was_never_there(keeper: Keeper) -> None:
    job_id = (await keeper.exported()).job.id
    await keeper.jobs_aged(MONTH, job_id)

    await keeper.expiries.expire_jobs(MONTH)

    assert await keeper.refusal(job_id, Tenant("other")) == "JOB_NOT_FOUND"


@pytest.mark.parametrize(("age", "reason"), [(REMEMBERED - HOUR, "EXPIRED"), (REMEMBERED, "JOB_NOT_FOUND")])
async def test_an_expired_job_is_remembered_for_thirty_days(
    keeper: Keeper, age: timedelta, reason: str
) -> None:
    job_id = (await keeper.exported()).job.id
    await keeper.jobs_aged(MONTH, job_id)
    await keeper.expiries.expire_jobs(MONTH)
    await keeper.time_passes(age)

    forgotten = await keeper.expiries.forget_jobs()

    assert forgotten == ([job_id] if reason == "JOB_NOT_FOUND" else [])
    assert await keeper.refusal(job_id) == reason


async def test_a_request_id_stands_for_its_job_as_long_as_that_is_kept(keeper: Keeper) -> None:
    # given a finished job that was made with a request id
    first = (await keeper.exported("mine")).job
    new = NewJob(first.bound, "mine", {"other": "other"})
    kept, replayed = await keeper.house.jobs.create(TENANT, new)
    await keeper.jobs_aged(MONTH, first.id)

    # when it has expired, and the request comes again
    await keeper.expiries.expire_jobs(MONTH)
    found = await keeper.house.jobs.made_by(TENANT, "mine", first.bound.request)
    made, replayed_again = await keeper.house.jobs.create(TENANT, new)

    # then it is a new job
    assert (kept.job.id, replayed) == (first.id, True)
    assert (found, replayed_again) == (None, False)
    assert made.job.id > first.id
    assert await keeper.refusal(first.id) == "EXPIRED"


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
async def test_a_job_that_had_no_effect_expires_too(keeper: Keeper, state: JobState) -> None:
    claim = await keeper.claimed()
    if state is JobState.CANCELLED:
        await keeper.house.jobs.cancel(TENANT, claim.job.id, "me", "")
        await keeper.house.attempts.let_go(claim.fence)
    else:
        error = JobError("X", "x", "engine", retryable=False, attempt=1)
        await keeper.house.attempts.end_with_error(claim.fence, error)
    ended = (await keeper.house.jobs.get(TENANT, claim.job.id)).job.state
    await keeper.jobs_aged(MONTH, claim.job.id)

    expired = await keeper.expiries.expire_jobs(MONTH)

    assert (ended, expired) == (state, [claim.job.id])
    assert await keeper.refusal(claim.job.id) == "EXPIRED"


# --- In the background ---


async def run(chore: ExpiryChore) -> int:
    """Take steps until nothing more is waiting; return how many there were."""
    steps = 1
    while await chore.step():
        steps += 1
    return steps


async def test_each_step_is_a_short_transaction_and_a_crash_between_two_leaves_the_rest_to_the_next_server(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given more than goes into one step
    monkeypatch.setattr(expiries_of_store, "MOST_ENDED", 2)
    names = [f"b{number}" for number in range(5)]
    dataset_id = await keeper.dataset(MONTH, *names)
    ended = [(await keeper.exported()).job.id for _ in range(3)]
    await keeper.aged(2 * MONTH, *names)
    await keeper.jobs_aged(2 * MONTH, *ended)

    # when one server takes a step and is gone, and another goes on
    await keeper.chore(MONTH).step()
    left = await keeper.counting(dataset_id), await keeper.house.jobs.list(TENANT, page_of())
    steps = await run(keeper.chore(MONTH))

    # then each job and batch was there whole, or is gone whole
    assert (left[0], [view.job.id for view in left[1].items]) == (names[2:], ended[2:])
    assert steps == 3
    assert await keeper.states(*names) == [BatchState.EXPIRED] * 5
    assert {await keeper.refusal(job_id) for job_id in ended} == {"EXPIRED"}


async def test_two_servers_that_look_at_once_expire_everything_once(keeper: Keeper) -> None:
    await keeper.dataset(MONTH, "a", "b")
    job_id = (await keeper.exported()).job.id
    await keeper.aged(2 * MONTH, "a", "b")
    await keeper.jobs_aged(2 * MONTH, job_id)

    batches_of_each = await asyncio.gather(*(keeper.expiries.expire_batches() for _ in range(2)))
    jobs_of_each = await asyncio.gather(*(keeper.expiries.expire_jobs(MONTH) for _ in range(2)))

    assert sorted(batch_id for expired in batches_of_each for batch_id in expired) == ["a", "b"]
    assert [one for expired in jobs_of_each for one in expired] == [job_id]


async def test_without_a_retention_jobs_stay_for_ever_and_former_ones_are_still_forgotten(
    keeper: Keeper,
) -> None:
    # given a job that expired while jobs were kept for a month, and another as old
    former, other = (await keeper.exported()).job.id, (await keeper.exported()).job.id
    await keeper.jobs_aged(MONTH, former)
    await keeper.expiries.expire_jobs(MONTH)
    await keeper.jobs_aged(1_000 * MONTH, other)
    await keeper.time_passes(REMEMBERED)

    # when the server is told of no retention any more
    await run(keeper.chore(None))

    # then
    assert await keeper.refusal(former) == "JOB_NOT_FOUND"
    assert (await keeper.house.jobs.get(TENANT, other)).job.state is JobState.SUCCEEDED
