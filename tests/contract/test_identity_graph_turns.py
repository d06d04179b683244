"""Identity graphs of several tenants: nobody's keep another's waiting, or cost another the ones that are kept."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from profile_export.application import identity_graphs as lookups
from profile_export.application.identity_graphs import IdentityGraphs
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key
from profile_export.engines.duckdb.engine import DuckDbEngine
from tests.contract.house import House, children, house
from tests.contract.test_lookups import engine

__all__ = ["children", "engine", "house"]  # fixtures

SOMEBODY = identity_key(Identity("CRM", "C0"))
GREEDY, MODEST = "greedy", "modest"


class Counted:
    """Identity graphs of a house, and how many have been begun."""

    def __init__(self, house: House, engine: DuckDbEngine) -> None:
        self._house = house
        self.begun, self.began = 0, asyncio.Event()
        self._graphs = IdentityGraphs(engine, house.lake, self._begin)

    def _begin(self) -> str:
        self.begun += 1
        self.began.set()
        return self._house.new_id()

    async def together(self, whose: str, plan: ExportPlan) -> frozenset[IdentityKey]:
        return await self._graphs.together(whose, plan, SOMEBODY)


async def plans_of(house: House, count: int) -> list[ExportPlan]:
    """Make plans of one batch more each: each has a graph of its own."""
    crm, plans = await house.dataset(), []
    for number in range(count):
        await house.people(crm, number)
        plans.append(await house.plan())
    return plans


@pytest.mark.slow
async def test_who_makes_many_keeps_nobody_else_waiting(house: House, engine: DuckDbEngine) -> None:
    # given a tenant of whose graphs one takes long, and others wait, also for the same one
    plans, graphs = await plans_of(house, 4), Counted(house, engine)
    await engine.start()
    [held] = engine.children
    os.kill(held, signal.SIGSTOP)
    greedy = [asyncio.create_task(graphs.together(GREEDY, plans[0]))]
    await graphs.began.wait()
    greedy += [asyncio.create_task(graphs.together(GREEDY, plan)) for plan in plans]

    # when another wants one
    found = await graphs.together(MODEST, plans[0])

    # then it is made while those wait
    assert found == {SOMEBODY, identity_key(Identity("Email", "e0"))}
    assert graphs.begun == 2
    assert not any(task.done() for task in greedy)
    # and each of those is made once
    os.kill(held, signal.SIGCONT)
    assert [len(people) for people in await asyncio.gather(*greedy)] == [2, 2, 3, 3, 3]
    assert graphs.begun == 5


@pytest.mark.slow
async def test_who_wants_one_that_is_being_made_begins_it_anew_when_its_maker_has_gone(
    house: House, engine: DuckDbEngine
) -> None:
    [plan], graphs = await plans_of(house, 1), Counted(house, engine)
    await engine.start()
    os.kill(engine.children[0], signal.SIGSTOP)
    maker = asyncio.create_task(graphs.together(GREEDY, plan))
    await graphs.began.wait()
    waiting = asyncio.create_task(graphs.together(GREEDY, plan))

    maker.cancel()

    assert len(await waiting) == 2
    assert graphs.begun == 2


@pytest.mark.slow
async def test_who_has_more_kept_than_others_loses_his_own_first(
    house: House, engine: DuckDbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_MOST_KEPT", 3)
    plans, graphs = await plans_of(house, 4), Counted(house, engine)
    await graphs.together(MODEST, plans[0])

    for plan in plans:
        await graphs.together(GREEDY, plan)

    assert graphs.begun == 5
    for whose, plan in ((MODEST, plans[0]), (GREEDY, plans[3]), (GREEDY, plans[2])):
        await graphs.together(whose, plan)
    assert graphs.begun == 5
    await graphs.together(GREEDY, plans[1])
    assert graphs.begun == 6
