"""Several processes on one store: each has a `Database` of its own, as far as the database lets it have one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import text

from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.errors import UnavailableError
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import JobState
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import TEXT, ObjectType
from profile_export.store.db.transactions import ChangedJob
from profile_export.store.db.wakeups import Notices, Wakeups
from profile_export.store.jobs.attempts import Claim, RangeDone
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.jobs import NewJob
from tests.contract.test_store import RUNNING, TENANT, UNION, Store, facts
from tests.databases import Place, Postgres
from tests.pages import page_of

JOBS = 24
FEW = 6
CUT_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def open_stores(*places: Place) -> list[Store]:
    stores = [Store(place) for place in places]
    for store in stores:
        await store.database.open()
    return stores


@pytest_asyncio.fixture
async def stores(place: Place) -> AsyncIterator[list[Store]]:
    """One store where only one process may have it, else three on the same database."""
    opened = await open_stores(*([place] * (3 if isinstance(place, str) else 1)))
    yield opened
    for store in opened:
        await store.database.close()


@pytest_asyncio.fixture
async def url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database(with_tables=True) as made:
        yield made


@pytest_asyncio.fixture
async def pair(url: str) -> AsyncIterator[list[Store]]:
    """Two stores on one PostgreSQL database."""
    opened = await open_stores(url, url)
    yield opened
    for store in opened:
        await store.database.close()


async def new_job(store: Store, destination: str, batch_id: str) -> None:
    bound = BoundRequest(ExportRequest(destination), BUILT_IN_POLICY)
    await store.jobs.create(TENANT, NewJob(bound, "", {batch_id: f"{destination}/{batch_id}"}))


async def carry_out(store: Store, worker: str) -> list[Claim]:
    """Claim and commit jobs until there is none; return the claims."""
    claims = []
    while claim := await store.attempts.claim(worker):
        claims.append(claim)
        file = DataFile("0-0.parquet", f"x/{claim.job.id}", 3, 300, "ab")
        done = RangeDone(0, {claim.job.batch_id: [file]}, ExportCounts(profiles_exported=3), 1)
        await store.attempts.begin_phase(claim.fence, RUNNING)
        await store.attempts.record_range(claim.fence, done, RUNNING)
        await store.attempts.heartbeat(claim.fence, RUNNING)
        await store.attempts.commit(claim.fence)
    return claims


@pytest.mark.slow
async def test_jobs_are_each_claimed_once_by_many_workers_and_their_batches_count_in_order(
    stores: list[Store],
) -> None:
    # given jobs that are made while workers of all processes claim
    destination = await stores[0].dataset(UNION)
    homes = cycle(stores)
    made = [new_job(next(homes), destination, f"b{number}") for number in range(JOBS)]
    await asyncio.gather(*made)

    # when they are all carried out
    workers = (carry_out(next(homes), f"w{number}") for number in range(8))
    claimed = [claim for claims in await asyncio.gather(*workers) for claim in claims]

    # then each was one worker's, once, and the batches are numbered without a gap
    assert len({claim.job.id for claim in claimed}) == len(claimed) == JOBS
    jobs = (await stores[0].jobs.list(TENANT, page_of())).items
    assert {view.job.state for view in jobs} == {JobState.SUCCEEDED}
    batches = (await stores[0].batches.list_batches(TENANT, "", page_of())).items
    assert [batch.number for batch in batches] == list(range(1, JOBS + 1))


@pytest.mark.slow
async def test_a_reader_never_sees_a_batch_before_one_with_a_lower_number(stores: list[Store]) -> None:
    # given batches that are committed by all processes at once, into datasets of their own
    homes = cycle(stores)
    sent = [(next(homes), await stores[0].dataset(), f"b{number}") for number in range(JOBS)]
    uploads = asyncio.gather(
        *(store.upload(dataset, batch, facts(ObjectType({"id": TEXT}))) for store, dataset, batch in sent)
    )

    # when they are listed meanwhile
    seen: list[list[int | None]] = []
    while not uploads.done() or not seen or len(seen[-1]) < JOBS:
        listed = await stores[-1].batches.list_batches(TENANT, "", page_of())
        seen.append([batch.number for batch in listed.items])
    await uploads

    # then every list was all up to some number
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)


async def test_a_reader_never_sees_a_change_of_jobs_before_one_with_a_lower_number(
    stores: list[Store],
) -> None:
    # given jobs that all processes make, claim and end at once
    destination = await stores[0].dataset(UNION)
    homes = cycle(stores)

    async def live(number: int) -> None:
        store = next(homes)
        await new_job(store, destination, f"b{number}")
        await carry_out(store, f"w{number}")

    lives = asyncio.gather(*(live(number) for number in range(FEW)))

    # when their changes are read meanwhile
    changes = Changes(stores[-1].database)
    seen: list[list[int]] = []
    while not lives.done() or not seen or len(seen[-1]) < 3 * FEW:
        newest = (await changes.head(TENANT)).revision
        seen.append([change.revision for change in await changes.between(TENANT, 0, newest)])
    await lives

    # then every reading was all up to some number, and no job's moves are out of their order
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)
    revisions: dict[int, list[int]] = {}
    for change in await changes.between(TENANT, 0, 3 * FEW):
        assert change.transition
        revisions.setdefault(change.job_id, []).append(change.transition.revision)
    assert all(numbers == [1, 2, 3] for numbers in revisions.values())


async def test_progress_that_comes_late_does_not_go_back(stores: list[Store]) -> None:
    # given a job that is half done
    destination = await stores[0].dataset(UNION)
    await new_job(stores[0], destination, "b")
    claim = await stores[0].attempts.claim("worker")
    assert claim
    await stores[0].attempts.begin_phase(claim.fence, RUNNING)
    half = replace(RUNNING, done=RUNNING.done + 5)
    await stores[0].attempts.heartbeat(claim.fence, half)

    # when a heartbeat comes through that was sent before
    await stores[-1].attempts.heartbeat(claim.fence, RUNNING)

    # then the job is where it was
    assert (await stores[0].jobs.get(TENANT, claim.job.id)).progress == half


async def test_a_claim_waits_for_no_other_claim(pair: list[Store]) -> None:
    # given two jobs, the older of which another process is about to take
    destination = await pair[0].dataset(UNION)
    await new_job(pair[0], destination, "older")
    await new_job(pair[0], destination, "newer")
    async with pair[0].database.write_beside() as taking:
        await taking.execute(text("SELECT * FROM jobs WHERE batch_id = 'older' FOR UPDATE"))

        # when a worker claims
        async with asyncio.timeout(30):
            claim = await pair[1].attempts.claim("worker")

    # then it has the other one
    assert claim
    assert claim.job.batch_id == "newer"


@pytest.mark.slow  # it waits for PostgreSQL to lose patience
async def test_a_process_that_stops_within_a_transaction_holds_the_others_up_for_seconds_only(
    pair: list[Store],
) -> None:
    stopped = pair[0].database.write()
    await stopped.__aenter__()

    async with asyncio.timeout(30):
        await pair[1].dataset()

    with pytest.raises(UnavailableError):
        await stopped.__aexit__(None, None, None)


async def test_a_cut_connection_costs_the_call_that_it_interrupts_and_no_other(
    pair: list[Store], url: str
) -> None:
    admin: Any = await asyncpg.connect(url)

    async def interrupted() -> None:
        async with pair[0].database.write() as connection:
            await admin.execute(CUT_OTHERS)
            await connection.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError):
        await interrupted()

    await admin.close()
    for store in pair:
        await store.dataset()
        assert await store.succeeded() == []


@pytest.mark.slow
async def test_processes_that_open_an_empty_database_together_make_its_tables_once(
    postgres: Postgres,
) -> None:
    code = "import asyncio, sys; from profile_export.store.db.database import Database"
    code += "; asyncio.run(Database(sys.argv[1]).open())"

    async with postgres.database(with_tables=False) as url:
        started = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, url) for _ in range(3)]
        codes = [await process.wait() for process in started]

    assert codes == [0, 0, 0]


# --- Notices ---


class Ear:
    """What a process hears of others, and the task that makes it hear."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self.task: asyncio.Task[None] | None = None

    async def listen(self, url: str) -> None:
        """Begin; everybody is woken once it hears."""
        with self.wakeups.of_batches() as listens:
            self.task = asyncio.create_task(Notices(url, self.wakeups).run())
            await woken(listens)

    async def close(self) -> None:
        if self.task:
            self.task.cancel()
            await asyncio.wait([self.task])


async def woken(flag: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await flag.wait()
    flag.clear()


@pytest_asyncio.fixture
async def ears(url: str) -> AsyncIterator[list[Ear]]:
    made = [Ear(), Ear()]
    for ear in made:
        await ear.listen(url)
    yield made
    for ear in made:
        await ear.close()


async def test_what_changes_in_one_process_wakes_those_who_wait_in_another(ears: list[Ear]) -> None:
    here, there = (ear.wakeups for ear in ears)
    with (
        there.of_job(7) as job,
        there.of_job(8) as other_job,
        there.of_any_job() as any_job,
        there.of_due_jobs() as due,
        there.of_tenant(1) as tenant,
        there.of_tenant(2) as other_tenant,
        there.of_batches() as batches,
    ):
        here.fire([ChangedJob(7, 1)])
        await woken(job)
        await woken(any_job)
        await woken(tenant)
        assert not batches.is_set()
        assert not due.is_set()
        assert not other_job.is_set()
        assert not other_tenant.is_set()
        here.fire([ChangedJob(8, 2, one_may_be_due=True)])
        await woken(due)
        await woken(other_tenant)
        here.fire([None])
        await woken(batches)


async def test_after_a_cut_connection_everybody_is_woken_and_notices_go_on(ears: list[Ear], url: str) -> None:
    here, there = (ear.wakeups for ear in ears)
    admin: Any = await asyncpg.connect(url)
    with there.of_job(7) as job, here.of_batches() as batches:
        await admin.execute(CUT_OTHERS)
        await woken(job)
        await woken(batches)

        here.fire([ChangedJob(7, 1)])

        await woken(job)
    await admin.close()
