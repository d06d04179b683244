"""The engine and the reference get the same plan and must give the same profiles and the same counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, currently_in_test_context, given, note, settings
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import PROFILE_ID
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LOWEST_KEY,
    ExportCounts,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
)
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.merge import merge_profiles
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import TEXT
from profile_export.engines.duckdb import session as duckdb_session
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.engines.duckdb.session import DuckDbSession
from tests.builders import at, events, plan_of, read_export, records, row, rows_of
from tests.contract.strategies import (
    Export,
    exports,
    exports_of_events,
    exports_of_segments,
    exports_of_upserts,
)

# A failing comparison is worth the minutes that shrinking it takes.
pytestmark = pytest.mark.timeout(600)

EVERYTHING = (KeyRange(0, LOWEST_KEY, HIGHEST_KEY),)


class Exporter:
    """One warm engine and the loop it runs on, since starting one costs more than all exports here."""

    def __init__(self, runner: asyncio.Runner, engine: DuckDbEngine) -> None:
        self._runner = runner
        self._engine = engine

    def export(
        self, plan: ExportPlan, lake: Path, ranges: tuple[KeyRange, ...]
    ) -> tuple[dict[str, list[dict[str, Any]]], ExportCounts]:
        """Carry out a plan, range by range; return the profiles of each batch, with their ids."""
        return self._runner.run(self._export(plan, lake, ranges))

    async def _export(
        self, plan: ExportPlan, lake: Path, ranges: tuple[KeyRange, ...]
    ) -> tuple[dict[str, list[dict[str, Any]]], ExportCounts]:
        folder = lake / "attempt"
        counts = ExportCounts()
        folders = {batch: lake / batch for batch in plan.segment_batches} or {plan.batch_id: folder}
        profiles: dict[str, list[dict[str, Any]]] = {batch: [] for batch in folders}
        of_segments = tuple(folders.values()) if plan.segment_batches else ()
        async with self._engine.attempt(plan, lake, folder, lambda *_: None, of_segments) as attempt:
            await attempt.resolve()
            for key_range in ranges:
                result = await attempt.run(key_range)
                counts += result.counts
                for file in result.files:
                    written = read_export(folders[file.batch_id], [file.name], file.batch_id, with_ids=True)
                    assert len(written) == file.rows
                    profiles[file.batch_id] += written
        return profiles, counts


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with asyncio.Runner() as runner:
        engine = DuckDbEngine(memory_limit_mb=512, threads=2)
        runner.run(engine.start())
        yield Exporter(runner, engine)
        runner.run(engine.close())


def lines(profiles: list[dict[str, Any]]) -> list[str]:
    """Profiles in an order of their own, with types that differ written differently."""
    return sorted(
        json.dumps(profile, sort_keys=True, ensure_ascii=False, default=_text) for profile in profiles
    )


def _text(value: Decimal | date) -> str:
    return f"decimal {value.normalize()}" if isinstance(value, Decimal) else f"{type(value).__name__} {value}"


def check(exporter: Exporter, export: Export) -> None:
    with TemporaryDirectory() as folder:
        plan = plan_of(export.parts, **export.options, lake=Path(folder))
        check_plan(exporter, plan, export, Path(folder))


def check_plan(exporter: Exporter, plan: ExportPlan, export: Export, lake: Path) -> list[dict[str, Any]]:
    """Hold what the engine makes of a plan to what the reference makes of the rows, batch by batch.

    Returns:
        The profiles that the engine exported, of all batches, with their ids.
    """
    expected = merge_profiles(plan, rows_of(export.parts))
    if currently_in_test_context():  # of random data; what is published has no use for a note of 30,000 rows
        note(f"expected: {expected}")
    named = [
        {**profile, PROFILE_ID: own} for profile, own in zip(expected.profiles, expected.ids, strict=True)
    ]
    every = list(zip(named, expected.segments, strict=True))
    if plan.segment_batches:
        wanted = {
            batch: lines([profile for profile, admitted in every if position in admitted])
            for position, batch in enumerate(plan.segment_batches)
        }
    else:
        wanted = {plan.batch_id: lines(named)}

    profiles, counts = exporter.export(plan, lake, export.ranges)

    assert {batch: lines(found) for batch, found in profiles.items()} == wanted
    assert counts == expected.counts
    return [profile for found in profiles.values() for profile in found]


QUICK = settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(exports())
@settings(QUICK, max_examples=5)
def test_the_engine_exports_what_the_reference_says(exporter: Exporter, export: Export) -> None:
    check(exporter, export)


@pytest.mark.slow
@given(exports_of_segments())
@QUICK
def test_s15_the_engine_merges_segment_memberships_as_the_reference_does(
    exporter: Exporter, export: Export
) -> None:
    check(exporter, export)


@pytest.mark.slow
@given(exports_of_events())
@QUICK
def test_s16_to_s19_the_engine_attaches_events_as_the_reference_does(
    exporter: Exporter, export: Export
) -> None:
    check(exporter, export)


@pytest.mark.slow
@given(exports_of_upserts())
@QUICK
def test_s9_the_engine_patches_records_as_the_reference_does(exporter: Exporter, export: Export) -> None:
    check(exporter, export)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(st.one_of(exports(), exports_of_segments(), exports_of_events(), exports_of_upserts()))
@settings(QUICK, max_examples=25)
def test_the_engine_exports_what_the_reference_says_in_many_more_cases(
    exporter: Exporter, export: Export
) -> None:
    check(exporter, export)


@pytest.mark.slow
@given(
    kind=st.sampled_from([DatasetKind.RECORD, DatasetKind.EVENT]),
    identities=st.integers(49, 52),
    on_one=st.integers(1, 60),
    options=st.fixed_dictionaries(
        {
            "graph": st.sampled_from(IdentityGraph),
            "empty_profiles": st.booleans(),
            "event_fields": st.sampled_from([None, ["_id"]]),
        }
    ),
)
@settings(QUICK, max_examples=5)
def test_s7_the_engine_leaves_out_who_has_more_than_fifty_identities(
    exporter: Exporter, kind: DatasetKind, identities: int, on_one: int, options: dict[str, Any]
) -> None:
    # Each row has `on_one` identities and shares one with the next, so that all are a chain.
    names = [f"CRMID:{number}" for number in range(identities)]
    chain = [names[start : start + on_one + 1] for start in range(0, identities - 1, on_one)]
    rows = [
        row(kind, primary, {"_id": "1", "timestamp": at(0)}, links=links, number=number)
        for number, (primary, *links) in enumerate(chain)
    ]
    other = records("other", {}, row("other", "CRMID:of somebody else", batch="b2"))
    build = events if kind is DatasetKind.EVENT else records

    check(exporter, Export((build(kind, {}, *rows), other), options, EVERYTHING))


SIXTY = [
    row("crm", f"CRM:{number}", {"email": "NULL"}, links=["Email:NULL"], number=number)
    for number in range(60)
]
PLACEHOLDERS = (
    records("crm", {"email": TEXT}, *SIXTY),
    # Linked beside it, and the placeholder itself: as the primary identity of two rows with further links.
    records(
        "shop",
        {"city": TEXT},
        row("shop", "Loyalty:a", {"city": "Oslo"}, links=["EMAIL:NULL", "CRM:0"], batch="b2", number=0),
        row("shop", "email:NULL", {"city": "Bergen"}, links=["CRM:1", "CRM:2"], batch="b2", number=1),
        row("shop", "Email:NULL", {"city": "Rome"}, links=["CRM:3"], batch="b2", number=2),
    ),
    events(
        "web", {}, row("web", "CRM:4", {"_id": "1", "timestamp": at(0)}, links=["Email:NULL"], batch="b3")
    ),
)


@pytest.mark.parametrize("rows_at_once", [100_000, 0], ids=["rows in tables", "rows in files"])
@pytest.mark.parametrize("graph", IdentityGraph)
def test_s4_an_excluded_identity_links_none_of_the_sixty_people_who_have_it(
    graph: IdentityGraph, rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given people who share a placeholder, and a plan that excludes it, spelled otherwise
    monkeypatch.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", rows_at_once)
    plan = plan_of(
        PLACEHOLDERS,
        graph=graph,
        event_fields=["identityMap"],
        excluded=[Identity("eMail", "NULL"), Identity("Email", "nobody's")],
        lake=tmp_path,
    )
    expected = merge_profiles(plan, rows_of(PLACEHOLDERS))

    # when it is carried out
    facts, result, profiles = carried_out(plan, tmp_path)

    # then each is a profile of its own, the placeholder is another, and no other profile has it
    linked = 1 if graph is IdentityGraph.PDG else 0
    assert lines(profiles) == lines(list(expected.profiles))
    assert result.counts == expected.counts
    assert len(profiles) == 62 - linked
    assert (facts.components, facts.findings.shared) == (linked, 1 - linked)
    assert result.counts.links_most is None
    having = [profile for profile in profiles if "NULL" in str(profile["identityMap"])]
    assert having == [{"city": "Rome", "identityMap": {"Email": [{"id": "NULL", "primary": True}]}}]
    (event,) = (line for profile in profiles for line in profile.get("timeSeriesEvents", ()))
    assert event == {"identityMap": {"CRM": [{"id": "4", "primary": True}]}}
    # and the field keeps its value
    assert sum(profile.get("email") == "NULL" for profile in profiles) == 60


@pytest.mark.parametrize("rows_at_once", [100_000, 0], ids=["rows in tables", "rows in files"])
def test_s4_where_all_that_is_linked_is_excluded_each_primary_identity_is_a_profile(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", rows_at_once)
    excluded = [Identity("Email", "NULL"), *(Identity("CRM", str(number)) for number in range(999))]
    plan = plan_of(PLACEHOLDERS, graph=IdentityGraph.PDG, excluded=excluded, lake=tmp_path)

    facts, result, profiles = carried_out(plan, tmp_path)

    expected = merge_profiles(plan, rows_of(PLACEHOLDERS))
    assert (facts.identities, facts.rows_moved, len(profiles)) == (0, 0, 62)
    assert lines(profiles) == lines(list(expected.profiles))
    assert result.counts == expected.counts


def carried_out(plan: ExportPlan, lake: Path) -> tuple[ResolutionFacts, RangeResult, list[dict[str, Any]]]:
    """Carry out a plan in this process; return the profiles, too."""
    session = DuckDbSession(plan, lake, lake / "attempt", {}, lambda *_: None)
    facts, result = session.resolve(), session.run(*EVERYTHING)
    session.close()
    return facts, result, read_export(lake / "attempt", [file.name for file in result.files], plan.batch_id)
