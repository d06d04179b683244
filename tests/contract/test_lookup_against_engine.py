"""Whoever is looked up is told what an export writes: the same files, read by the engine and by the look-up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from profile_export.api.convert.values import plain
from profile_export.application.identity_graphs import IdentityGraphs
from profile_export.domain.catalog.batches import PROFILE_ID
from profile_export.domain.errors import NotFoundError
from profile_export.domain.export.lookup import EventListing, FoundProfile, events_of, profile_of
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.merging.identity import Identity, identity_key
from profile_export.domain.merging.merge import SourceRow
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import TIME_SERIES_EVENTS
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.lake.local import LocalLake
from profile_export.lake.rows import source_rows
from tests.builders import plan_of, rows_of
from tests.contract.strategies import (
    Export,
    exports,
    exports_of_events,
    exports_of_segments,
    exports_of_upserts,
)
from tests.contract.test_engine_against_merge import Exporter, lines
from tests.pages import page_of

pytestmark = pytest.mark.timeout(600)

# Nobody is left out but for too many identities, which so few rows do not have.
EVERYBODY = {
    "empty_profiles": True,
    "segments": None,
    "segment_batches": (),
    "newer_than": None,
    "window": (None, None),
}


class House:
    """One warm engine, for exports and for look-ups."""

    def __init__(self, runner: asyncio.Runner, engine: DuckDbEngine) -> None:
        self._runner, self._engine = runner, engine
        self.exporter = Exporter(runner, engine)

    def rows(
        self, plan: ExportPlan, lake: Path, identities: set[Identity]
    ) -> dict[Identity, list[SourceRow]]:
        """Read the rows that each identity needs."""
        return self._runner.run(self._rows(plan, lake, identities))

    async def _rows(
        self, plan: ExportPlan, lake: Path, identities: set[Identity]
    ) -> dict[Identity, list[SourceRow]]:
        numbers = count()
        where = LocalLake(lake)
        where.root = lake
        graphs = IdentityGraphs(self._engine, where, lambda: str(next(numbers)))
        found = {}
        for identity in identities:
            key = identity_key(identity)
            keys = await graphs.together("tenant", plan, key) if plan.graph is IdentityGraph.PDG else {key}
            found[identity] = source_rows(lake, plan, keys)
        assert not any((lake / "mappings").glob("*"))
        return found


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with asyncio.Runner() as runner:
        engine = DuckDbEngine(memory_limit_mb=512, threads=2)
        runner.run(engine.start())
        yield House(runner, engine)
        runner.run(engine.close())


def check(house: House, export: Export) -> None:
    """Look everybody up by each of their identities, spelled as sent and otherwise."""
    with TemporaryDirectory() as folder:
        lake = Path(folder)
        plan = plan_of(export.parts, **{**export.options, **EVERYBODY}, lake=lake)
        identities = {
            spelled
            for row in rows_of(export.parts)
            for stated in (row.primary, *row.links)
            for spelled in (
                stated.identity,
                Identity(stated.identity.namespace.swapcase(), stated.identity.id),
            )
        }
        exported, _ = house.exporter.export(plan, lake, export.ranges)
        rows = house.rows(plan, lake, identities)
    told: dict[Any, FoundProfile] = {}
    for identity, of_person in rows.items():
        try:
            found = profile_of(plan, of_person, identity)
        except NotFoundError:
            continue
        person: Any = found.identities if plan.graph is IdentityGraph.PDG else identity_key(identity)
        assert told.setdefault(person, found) == found
        check_events(plan, of_person, identity, found)

    profiles = [found.values | {PROFILE_ID: found.id} for found in told.values()]
    written = exported[plan.batch_id]
    note(f"looked up: {profiles}")
    assert lines(profiles) == lines(written)
    assert on_the_wire(profiles) == on_the_wire(written)


def check_events(plan: ExportPlan, rows: list[SourceRow], identity: Identity, found: FoundProfile) -> None:
    """List the person's events, two at a time: they are those that the profile has attached."""
    listing, token, values = EventListing.of(None, None, "", ""), "", list[Any]()
    while plan.events:
        page = events_of(plan, rows, identity, listing, page_of(2, token))
        values += [event.values or None for event in page.items]
        token = page.next_token
        if not token:
            break
    assert values == found.values.get(TIME_SERIES_EVENTS, [])


def on_the_wire(profiles: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(plain(profile), sort_keys=True) for profile in profiles)


QUICK = settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(exports())
@settings(QUICK, max_examples=3)
def test_whoever_is_looked_up_is_told_what_an_export_writes(house: House, export: Export) -> None:
    check(house, export)


@pytest.mark.slow
@given(st.one_of(exports_of_segments(), exports_of_upserts()))
@QUICK
def test_a_look_up_patches_records_and_merges_segments_as_an_export_does(
    house: House, export: Export
) -> None:
    check(house, export)


@pytest.mark.slow
@given(exports_of_events())
@QUICK
def test_the_events_listed_of_a_person_are_those_that_an_export_attaches(
    house: House, export: Export
) -> None:
    check(house, export)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(st.one_of(exports(), exports_of_segments(), exports_of_events(), exports_of_upserts()))
@settings(QUICK, max_examples=12)
def test_whoever_is_looked_up_is_told_what_an_export_writes_in_many_more_cases(
    house: House, export: Export
) -> None:
    check(house, export)
