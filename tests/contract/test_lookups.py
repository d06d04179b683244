"""Looking people up in a data directory: what is read, what is kept between look-ups, and what breaks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from profile_export.application import identity_graphs
from profile_export.application.identity_graphs import IdentityGraphs
from profile_export.application.profiles import Asked, ProfileUseCases
from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.errors import (
    ExhaustedError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from profile_export.domain.export.lookup import FoundProfile
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.policy import BUILT_IN_POLICY, IdentityGraph
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.engines.identity.graph import GraphWriter, Keys, OpenGraph, key_records
from profile_export.lake import rows as source_rows
from profile_export.store.catalog.policies import Policies
from tests.contract.house import TENANT, House, children, house, pinned

__all__ = ["children", "house"]  # fixtures

PDG = replace(BUILT_IN_POLICY, id="people", graph=IdentityGraph.PDG)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[DuckDbEngine]:
    started = DuckDbEngine(memory_limit_mb=256, threads=1)
    yield started
    await started.close()


@pytest_asyncio.fixture(autouse=True)
async def policy(house: House) -> None:
    await Policies(house.database).create_policy(TENANT, PDG)


def lookups(house: House, engine: DuckDbEngine) -> ProfileUseCases:
    graphs = IdentityGraphs(engine, house.lake, house.new_id)
    return ProfileUseCases(house.snapshots, Policies(house.database), graphs, house.lake)


async def profile(people: ProfileUseCases, identity: str) -> FoundProfile:
    namespace, _, identity_id = identity.partition(":")
    found, _ = await people.profile(Asked(TENANT, Identity(namespace, identity_id), PDG.id, None, ()))
    return found


@pytest.mark.slow
async def test_who_is_looked_up_is_told_the_same_after_a_compaction(
    house: House, engine: DuckDbEngine
) -> None:
    await house.people(await house.dataset(), *range(12))
    people = lookups(house, engine)
    before = [await profile(people, f"CRM:C{number}") for number in range(12)]

    assert await house.compact() == 1
    assert len(pinned(await house.plan())) == 1

    assert [await profile(people, f"CRM:C{number}") for number in range(12)] == before
    assert [len(found.identities) for found in before] == [3] * 12


async def test_who_is_who_is_found_out_once_until_a_batch_comes_or_goes(
    house: House, engine: DuckDbEngine
) -> None:
    # given people of whom one has been looked up, and an engine that has been closed since
    crm = await house.dataset()
    await house.people(crm, 0, 1)
    people = lookups(house, engine)
    await profile(people, "CRM:C0")
    await engine.close()

    # when the same is asked for by many at once
    found = await asyncio.gather(*(profile(people, "Email:e0") for _ in range(8)))

    # then one answer serves them all, and nothing lies about
    assert {one.ingest_time for one in found} == {found[0].ingest_time}
    assert engine.children == ()
    assert not any(house.lake.staging("mappings").iterdir())
    # and a batch that comes or goes shows at once
    await house.upload(crm, "more", {"crmId": "C9", "email": "e0"})
    assert len((await profile(people, "CRM:C9")).identities) == 4
    await house.ended("more", BatchState.REVERTED)
    assert len((await profile(people, "Email:e0")).identities) == 3


async def test_of_many_identity_graphs_those_asked_for_last_are_kept(
    house: House, engine: DuckDbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_graphs, "_MOST_KEPT", 1)
    crm = await house.dataset()
    await house.people(crm, 0, 1)
    people = lookups(house, engine)

    for batch_id in ("x", "y"):
        await profile(people, "CRM:C0")
        await house.upload(crm, batch_id, {"crmId": batch_id, "email": "e0"})
        assert len((await profile(people, "CRM:C0")).identities) == 4
        await house.ended(batch_id, BatchState.REVERTED)


async def test_an_engine_that_breaks_is_told_as_worth_another_try(house: House, engine: DuckDbEngine) -> None:
    await house.people(await house.dataset(), 0)

    # when every process of the engine is killed as soon as there is one, long before it can have an answer
    looking = asyncio.create_task(profile(lookups(house, engine), "CRM:C0"))
    while not looking.done():
        for child in engine.children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        await asyncio.sleep(0)

    with pytest.raises(UnavailableError) as refused:
        await looking
    assert refused.value.reason == "RESOLUTION_FAILED"
    assert refused.value.retry_after is not None


async def test_a_file_that_cannot_be_read_is_told_by_the_engine(house: House, engine: DuckDbEngine) -> None:
    await house.people(await house.dataset(), 0)
    for path in pinned(await house.plan()):
        (house.lake.root / path).write_bytes(b"no Parquet")

    with pytest.raises(FailedPreconditionError) as refused:
        await profile(lookups(house, engine), "CRM:C0")

    assert refused.value.reason == "SOURCE_UNREADABLE"


async def test_without_any_link_everybody_is_alone(house: House, engine: DuckDbEngine) -> None:
    await house.upload(await house.dataset(), "p", {"crmId": "C0", "name": "Ann"})
    people = lookups(house, engine)

    assert len((await profile(people, "CRM:C0")).identities) == 1
    with pytest.raises(NotFoundError):
        await profile(people, "CRM:C1")


def test_keys_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    # given two profiles of two identities besides their own each, whose keys share halves
    def keys(*pairs: tuple[int, int]) -> Keys:
        high, low = np.array(pairs, dtype=np.int64).T
        return key_records(high, low)

    graph = tmp_path / "graph.parquet"
    identities, profiles = keys((5, 1), (5, 2), (6, 1), (7, 3)), keys((0, 0), (0, 9), (0, 0), (0, 9))
    with GraphWriter(graph) as writer:
        writer.write(identities, profiles)
        writer.finish(2, {})
    opened = OpenGraph(graph)

    assert opened.together((5, 1)) == {(0, 0), (5, 1), (6, 1)}
    assert opened.together((0, 9)) == {(0, 9), (5, 2), (7, 3)}
    assert opened.together((5, 3)) == {(5, 3)}
    assert opened.together((-8, 3)) == {(-8, 3)}


async def test_a_person_whose_rows_take_too_much_memory_is_refused_and_others_are_found(
    house: House, engine: DuckDbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_rows, "MOST_HELD", 100_000)
    crm = await house.dataset()
    for number in range(4):
        nested = {"name": "x" * 10_000, "list": [{"flags": [True] * 200}]}
        await house.upload(crm, f"b{number}", {"crmId": "large", **nested}, {"crmId": "small", "name": "n"})
    people = lookups(house, engine)

    with pytest.raises(ExhaustedError, match="fewer fields") as refused:
        await profile(people, "CRM:large")

    assert refused.value.reason == "REQUEST_TOO_EXPENSIVE"
    assert refused.value.retry_after is None
    assert (await profile(people, "CRM:small")).values["name"] == "n"
    asked = Asked(TENANT, Identity("CRM", "large"), PDG.id, None, ("crmId",))
    found, _ = await people.profile(asked)
    assert found.values["crmId"] == "large"
