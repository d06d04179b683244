"""Claims: tenants by turns, the oldest first within one, and no more of one at a time than it may run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from itertools import chain, count
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import event, insert, select, text, update

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas
from profile_export.domain.catalog.datasets import NewDataset, SchemaRef, Tenant
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import JobError
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database, database_time
from profile_export.store.db.tables import job_stamps, jobs
from profile_export.store.jobs.attempts import Attempts, Claim
from profile_export.store.jobs.expiries import MOST_ENDED, Timeouts
from profile_export.store.jobs.jobs import Jobs, NewJob
from tests.databases import Place

NUMBERS = count()
UNION = SchemaRef("https://ns.adobe.com/xdm/context/profile__union")
A, B, C = (Tenant(name, "prod") for name in "abc")
RETRYABLE = JobError("X", "x", "engine", retryable=True, attempt=1)


class Queue:
    """Jobs of several tenants, and workers that take them."""

    def __init__(self, place: Place) -> None:
        self.database = Database(place)
        self.catalog = Catalog(self.database)
        self.jobs = Jobs(self.database)
        self.attempts = self.workers(DEFAULT_QUOTAS)
        self.destinations: dict[Tenant, str] = {}

    def workers(self, quotas: Quotas) -> Attempts:
        return Attempts(self.database, quotas)

    async def add(self, *of: Tenant, max_run_time: timedelta | None = None) -> list[int]:
        """Make a job of each of these tenants, one after the other; return their ids."""
        return [await self._add(tenant, max_run_time) for tenant in of]

    async def _add(self, tenant: Tenant, max_run_time: timedelta | None) -> int:
        if tenant not in self.destinations:
            new = NewDataset("d", "", UNION, {}, ())
            made, _ = await self.catalog.create_dataset(tenant, new, f"{next(NUMBERS):024x}", "")
            self.destinations[tenant] = made.id
        request = ExportRequest(self.destinations[tenant], max_run_time=max_run_time)
        folders = {f"batch-{next(NUMBERS)}": f"folder-{next(NUMBERS)}"}
        view, _ = await self.jobs.create(tenant, NewJob(BoundRequest(request, BUILT_IN_POLICY), "", folders))
        return view.job.id

    async def many(self, tenant: Tenant, number: int, max_run_time: timedelta | None = None) -> None:
        """Make so many jobs of a tenant that wait, copies of one; none can be made after them."""
        [first] = await self.add(tenant, max_run_time=max_run_time)
        async with self.database.write() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.id == first))).one()._asdict()
            copies = [{**row, "id": first + more} for more in range(1, number)]
            await connection.execute(insert(jobs), copies)

    async def taken(self, claims: int, attempts: Attempts | None = None) -> list[str]:
        """Take so many jobs, one after the other; return whose they were, in one word."""
        return [claim.tenant.org for claim in await self.claims(claims, attempts)]

    async def claims(self, number: int, attempts: Attempts | None = None) -> list[Claim]:
        found = [await (attempts or self.attempts).claim("worker") for _ in range(number)]
        return [claim for claim in found if claim]


@pytest_asyncio.fixture
async def queue(place: Place) -> AsyncIterator[Queue]:
    opened = Queue(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        ("aaaaab", "abaaaa"),
        ("aabbc", "abcab"),
        ("cba", "cba"),
        ("abab", "abab"),
        ("a", "a"),
    ],
)
async def test_tenants_take_turns(queue: Queue, made: str, taken: str) -> None:
    of = {tenant.org: tenant for tenant in (A, B, C)}
    await queue.add(*(of[name] for name in made))

    assert "".join(await queue.taken(len(made) + 1)) == taken


async def test_of_one_tenant_the_oldest_job_goes_first(queue: Queue) -> None:
    made = await queue.add(A, B, A, B, A)

    claims = await queue.claims(5)

    assert [claim.job.id for claim in claims if claim.tenant == A] == [made[0], made[2], made[4]]
    assert [claim.job.id for claim in claims if claim.tenant == B] == [made[1], made[3]]


async def test_who_comes_later_waits_for_one_turn_of_each_other_at_most(queue: Queue) -> None:
    await queue.add(*[A] * 20, *[C] * 20)
    await queue.taken(9)

    await queue.add(B)

    assert "b" in await queue.taken(1)
    await queue.add(B)
    assert "b" in await queue.taken(3)


async def test_a_tenant_with_many_jobs_is_not_starved_by_those_with_few(queue: Queue) -> None:
    """Newcomers go before it once each, and then behind it."""
    await queue.add(*[A] * 10)
    turns: list[str] = []
    for _ in range(5):
        await queue.add(B, C)
        turns += await queue.taken(3)

    assert Counter(turns) == {"a": 5, "b": 5, "c": 5}


async def test_a_job_in_its_back_off_costs_its_tenant_no_turn(queue: Queue) -> None:
    first, second, _ = await queue.add(A, A, B)
    claim = await queue.attempts.claim("worker")
    assert claim
    await queue.attempts.end_with_error(claim.fence, RETRYABLE)

    claims = await queue.claims(3)

    assert [claim.tenant for claim in claims] == [B, A]
    assert claims[1].job.id == second
    async with queue.database.write() as connection:
        now = await database_time(connection)
        await connection.execute(update(jobs).where(jobs.c.id == first).values(not_before=now))
    again = await queue.attempts.claim("worker")
    assert again
    assert (again.job.id, again.job.attempt) == (first, 2)


async def test_a_job_whose_run_time_is_over_is_not_taken(queue: Queue) -> None:
    over, _ = await queue.add(A, A, max_run_time=timedelta(hours=1))
    async with queue.database.write() as connection:
        now = await database_time(connection)
        await connection.execute(update(jobs).where(jobs.c.id == over).values(deadline=now))

    claims = await queue.claims(2)

    assert [claim.job.id for claim in claims] == [over + 1]


@pytest.mark.parametrize("workers", [2, 4])
async def test_several_workers_at_once_share_the_turns(queue: Queue, workers: int) -> None:
    await queue.add(*[A] * 12, *[B] * 3, *[C] * 3)

    async def work() -> list[str]:
        return await queue.taken(12 // workers)

    taken = await asyncio.gather(*(work() for _ in range(workers)))

    # Nine turns are enough for all of B and C; at once, one or the other takes a turn that was passed over.
    assert Counter(chain.from_iterable(taken)) == {"a": 6, "b": 3, "c": 3}


async def test_many_workers_take_the_jobs_of_one_tenant_at_once_each_another(queue: Queue) -> None:
    made = await queue.add(*[A] * 8)

    claims = await asyncio.gather(*(queue.attempts.claim(f"worker {number}") for number in range(8)))

    assert sorted(claim.job.id for claim in claims if claim) == made


@pytest.mark.parametrize("most", [1, 3])
async def test_a_tenant_runs_no_more_jobs_at_once_than_it_may(queue: Queue, most: int) -> None:
    limited = queue.workers(Quotas(running_jobs=most))
    await queue.add(*[A] * 6, B)

    claims = [one for one in await asyncio.gather(*(limited.claim("w") for _ in range(8))) if one]

    assert Counter(claim.tenant.org for claim in claims) == {"a": most, "b": 1}
    assert await limited.claim("w") is None
    # One that was asked to end runs until its worker has let it go.
    one = next(claim for claim in claims if claim.tenant == A)
    await queue.jobs.cancel(A, one.job.id, "me", "")
    assert await limited.claim("w") is None
    await limited.let_go(one.fence)
    further = await limited.claim("w")
    assert further
    assert further.tenant == A


async def test_without_a_limit_all_run(queue: Queue) -> None:
    await queue.add(*[A] * 4)

    assert len(await queue.taken(5, queue.workers(Quotas(running_jobs=None)))) == 4


async def test_turns_go_on_over_a_restart(place: Place) -> None:
    before = Queue(place)
    await before.database.open()
    await before.add(*[A] * 3, *[B] * 3)
    assert await before.taken(1) == ["a"]
    await before.database.close()

    after = Queue(place)
    await after.database.open()

    assert await after.taken(2) == ["b", "a"]
    await after.database.close()


class Plans:
    """Explains each statement of a database that reads jobs, as it runs."""

    def __init__(self, queue: Queue) -> None:
        self.statements: list[tuple[str, Any]] = []
        for engine in (queue.database._place.reader, queue.database._place.writer_beside):  # noqa: SLF001
            event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, *of: Any) -> None:
        _, _, statement, parameters, _, _ = of
        if "FROM jobs" in statement and statement.lstrip().startswith(("SELECT", "WITH")):
            self.statements.append((statement, parameters))

    async def explained(self, queue: Queue) -> list[str]:
        statements, self.statements = self.statements, []
        plans = []
        async with queue.database.read() as connection:
            explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
            for statement, parameters in statements:
                rows = await connection.exec_driver_sql(f"{explain} {statement}", parameters)
                plans.append("\n".join(" ".join(map(str, row)) for row in rows))
        return plans


async def test_with_ten_thousand_jobs_waiting_a_claim_reads_no_table_through(queue: Queue) -> None:
    await queue.add(B)
    await queue.many(A, 10_000)
    async with queue.database.write() as connection:
        await connection.execute(text("ANALYZE"))
    plans = Plans(queue)

    assert await queue.taken(2) == ["b", "a"]

    explained = await plans.explained(queue)
    assert len(explained) >= 3
    for plan in explained:
        assert "Seq Scan on jobs" not in plan, plan
        assert "SCAN jobs" not in plan, plan
        assert "SCAN held" not in plan, plan


async def test_timeouts_of_one_tenant_do_not_keep_those_of_another_waiting(queue: Queue) -> None:
    hour = timedelta(hours=1)
    await queue.add(A, max_run_time=hour)
    [other] = await queue.add(B, max_run_time=hour)
    await queue.many(A, 3 * MOST_ENDED, hour)
    async with queue.database.write() as connection:
        ago = await database_time(connection) - hour
        await connection.execute(update(jobs).values(deadline=ago + hour, create_time=ago))
    await _with_logs(queue)

    ended = await Timeouts(queue.database).end()

    assert len(ended) == MOST_ENDED
    assert other in {job.id for job in ended}


async def _with_logs(queue: Queue) -> None:
    """Give copied jobs the stamp that every job has."""
    async with queue.database.write() as connection:
        stamp = (await connection.execute(select(job_stamps))).first()
        assert stamp
        ids: Sequence[int] = (await connection.execute(select(jobs.c.id))).scalars().all()
        have = set((await connection.execute(select(job_stamps.c.job_id))).scalars())
        rows = [
            {"job_id": job_id, "attempt": 0, "phase": stamp.phase, "time": stamp.time}
            for job_id in ids
            if job_id not in have
        ]
        await connection.execute(insert(job_stamps), rows)
