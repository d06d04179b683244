"""Who waits for the one writer is let in by turns: nobody stands behind all that another tenant writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from profile_export.domain.errors import UnavailableError
from profile_export.processes.turns import FairTurns, Whose, compute, computed_for, present_whose
from profile_export.store.db.database import Database, database_time
from profile_export.store.db.transactions import WriterTurns
from tests.databases import Place

MANY = 30


class Writing:
    """Transactions of tenants and of nobody, in the order in which they got the writer."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.order: list[str] = []

    async def write(self, whose: Whose, name: str) -> None:
        with computed_for(whose):
            await self.database.to_its_end(self._write(name))

    async def _write(self, name: str) -> None:
        async with self.database.write() as connection:
            self.order.append(name)
            await database_time(connection)


@pytest_asyncio.fixture
async def writing(place: Place) -> AsyncIterator[Writing]:
    database = Database(place)
    await database.open()
    yield Writing(database)
    await database.close()


async def until_they_wait() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_burst_of_one_tenant_stands_before_nobody_else(writing: Writing) -> None:
    async with writing.database.write():
        waiting = [asyncio.create_task(writing.write("A", f"A{number}")) for number in range(MANY)]
        await until_they_wait()
        waiting.append(asyncio.create_task(writing.write("B", "B")))
        waiting.append(asyncio.create_task(writing.write(None, "nobody")))
        await until_they_wait()
    await asyncio.gather(*waiting)

    assert writing.order[:3] == ["A0", "nobody", "B"]
    assert writing.order[3:] == [f"A{number}" for number in range(1, MANY)]


async def test_what_is_nobodys_does_not_keep_tenants_waiting_either(writing: Writing) -> None:
    async with writing.database.write():
        waiting = [asyncio.create_task(writing.write(None, "nobody")) for _ in range(MANY)]
        await until_they_wait()
        waiting.append(asyncio.create_task(writing.write("A", "A")))
        await until_they_wait()
    await asyncio.gather(*waiting)

    assert writing.order.index("A") == 0


async def test_who_is_gone_before_its_turn_keeps_nobody_waiting(writing: Writing) -> None:
    async def forgetting() -> None:
        with suppress(asyncio.CancelledError):
            async with writing.database.write():
                writing.order.append("gone")

    async with writing.database.write():
        gone = asyncio.create_task(forgetting())
        after = asyncio.create_task(writing.write(None, "after"))
        await until_they_wait()
        gone.cancel()
        await until_they_wait()
    await asyncio.gather(gone, after)

    assert writing.order == ["after"]


@pytest.mark.parametrize("whose", ["A", "B", None])
async def test_who_waits_too_long_for_a_turn_is_told_that_the_database_is_busy(whose: Whose) -> None:
    turns = WriterTurns(wait_seconds=0)

    with computed_for("A"):
        async with turns.taken():
            with computed_for(whose), pytest.raises(UnavailableError) as refused:
                async with turns.taken():
                    pass

    assert refused.value.reason == "DATABASE_BUSY"
    async with turns.taken():
        pass  # nobody holds it any more


async def test_a_timeout_within_a_transaction_stays_what_it_is(writing: Writing) -> None:
    with pytest.raises(TimeoutError):
        async with writing.database.write():
            raise TimeoutError


async def test_who_has_the_writer_does_not_wait_for_what_its_tenant_computes(writing: Writing) -> None:
    go_on = threading.Event()
    with computed_for("A"):
        computing = [asyncio.create_task(compute(go_on.wait)) for _ in range(3)]
        await until_they_wait()
        async with writing.database.write():
            assert await compute(lambda: "computed") == "computed"
        assert present_whose() == "A"
        go_on.set()
        await asyncio.gather(*computing)


async def test_tenants_that_come_again_and_again_leave_a_turn_to_who_waits() -> None:
    turns, order = FairTurns(1), list[str]()

    async def use(whose: str, times: int) -> None:
        for _ in range(times):
            async with turns.taken(whose):
                order.append(whose)
                await asyncio.sleep(0)

    waiting = [asyncio.create_task(use("A", 1)) for _ in range(3)]
    coming_again = [asyncio.create_task(use(whose, 20)) for whose in ("B", "C")]
    await asyncio.gather(*waiting, *coming_again)

    assert order[:9].count("A") == 3
