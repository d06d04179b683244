"""Parts of an engine that the rows of an export alone cannot show to work."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import ibis
import pytest
from ibis.config import Config

from profile_export.domain.export.plan import (
    EventSelection,
    ExportCounts,
    IdentityFindings,
    LinkingIdentity,
)
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.merging.merge import merge_profiles
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    DOUBLE,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    MapType,
    ObjectType,
)
from profile_export.engines.duckdb import session as duckdb_session
from profile_export.engines.expression.expression import export_expression
from profile_export.engines.expression.tables import Shape
from tests.builders import at, events, plan_of, read_export, records, row, rows_of

ITEM = ObjectType({"sku": TEXT, "price": DOUBLE})
FIELDS = ObjectType(
    {
        "person": ObjectType({"name": ObjectType({"first": TEXT}), "age": DOUBLE}),
        "orders": ArrayType(ITEM),
        "consents": MapType(TEXT),
        "segmentMembership": SEGMENT_MEMBERSHIP_TYPE,
    }
)
KEPT = ObjectType({**FIELDS.fields, "orders": ArrayType(ObjectType({"sku": TEXT}))})
EVENT_FIELDS = ObjectType({"_id": TEXT, "timestamp": TIMESTAMP, "segmentMembership": SEGMENT_MEMBERSHIP_TYPE})


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True])
def test_the_engine_finds_what_explains_the_rows_in_whichever_parts_it_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, small: bool
) -> None:
    # given people whom one placeholder links, others whom an address links, and ids that are spelled apart
    if not small:
        monkeypatch.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", 0)
    strangers = [row("crm", f"CRMID:{number}", links=["email:NULL"], number=number) for number in range(25)]
    many = [row("crm", f"ECID:{number}", links=["email:none"], number=100 + number) for number in range(60)]
    known = [
        row("crm", "CRMID:a", links=["email:Ann@x.org", "Phone:1"], number=200),
        row("crm", "CRMID:b", links=["email:ann@x.org "], number=201),
        row("crm", "CRMID:c", links=["Phone:1"], number=202),
    ]
    parts = [
        records("crm", {}, *strangers, *many, *known),
        events("web", {}, row("web", "CRMID:nobody", {"_id": "1", "timestamp": at(0)}, batch="b2")),
    ]

    def told(graph: IdentityGraph) -> tuple[IdentityFindings, ExportCounts]:
        plan = replace(plan_of(parts, graph=graph, lake=tmp_path), values_per_range=200)
        folder = tmp_path / graph
        session = duckdb_session.DuckDbSession(plan, tmp_path, folder, {}, lambda *_: None)
        facts = session.resolve()
        counts = ExportCounts.total(session.run(key_range).counts for key_range in plan.ranges())
        session.close()
        assert counts == merge_profiles(plan, rows_of(parts)).counts
        return facts.findings, counts

    # when they are linked and not
    (apart, _), (together, counts) = told(IdentityGraph.NONE), told(IdentityGraph.PDG)

    # then it says what a graph would link, which identity links most, and what may be meant to be the same
    assert (apart.shared, apart.linked) == (3, 0)
    assert (together.shared, together.linked) == (0, 25 + 1 + 60 + 1 + 6)
    assert apart.spellings == together.spellings == {"email": 2}
    assert counts.links_most == LinkingIdentity("email", "none", 60)
    assert (counts.events_read, counts.events_with_record, counts.too_many_identities) == (1, 0, 1)


@pytest.mark.parametrize("graph", IdentityGraph)
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.slow
def test_what_is_too_large_for_memory_or_one_range_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: IdentityGraph, *, linked: bool
) -> None:
    monkeypatch.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", 0)
    rows = [
        row(
            "crm",
            f"CRMID:{number}",
            {"name": f"{number}"},
            links=[f"Email:{number // 3}"] if linked else [],
            number=number,
        )
        for number in range(60)
    ]
    parts = [
        records("crm", {"name": TEXT}, *rows),
        events("web", {}, row("web", "Email:7", {"_id": "1", "timestamp": at(0)}, batch="b2")),
    ]
    plan = replace(plan_of(parts, graph=graph, lake=tmp_path, event_fields=["_id"]), values_per_range=60)
    session = duckdb_session.DuckDbSession(plan, tmp_path, tmp_path / "attempt", {}, lambda *_: None)

    facts = session.resolve()
    results = [session.run(key_range) for key_range in plan.ranges()]
    session.close()

    assert len(results) > 1
    assert bool(facts.rows_moved) == (linked and graph is IdentityGraph.PDG)
    names = [file.name for result in results for file in result.files]
    found = read_export(tmp_path / "attempt", names, plan.batch_id)
    in_order = functools.partial(sorted, key=functools.partial(json.dumps, sort_keys=True))
    assert in_order(found) == in_order(merge_profiles(plan, rows_of(parts)).profiles)


class _PySparkOptions(Config):  # type: ignore[misc] # Ibis has no types
    """What Ibis' Spark compiler asks for when pyspark itself is not loaded."""

    treat_nan_as_null: bool = False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "linked", "respelled", "upserts"),
    [
        (IdentityGraph.NONE, False, False, False),
        (IdentityGraph.NONE, True, True, True),
        (IdentityGraph.PDG, False, True, True),
        (IdentityGraph.PDG, True, False, True),
        (IdentityGraph.PDG, True, True, False),
    ],
)
def test_the_expression_compiles_for_spark_too(
    monkeypatch: pytest.MonkeyPatch, graph: IdentityGraph, *, linked: bool, respelled: bool, upserts: bool
) -> None:
    monkeypatch.setattr(ibis.options, "pyspark", _PySparkOptions())
    shape = Shape(
        graph=graph,
        record_fields=FIELDS,
        event_fields=EVENT_FIELDS,
        fields=KEPT,
        identities=IdentitySelection(("id",), {"Email": ("primary",)}),
        events=EventSelection(EVENT_FIELDS, IdentitySelection(("id",)), None, None),
        empty_profiles=True,
        has_records=True,
        has_events=True,
        has_others=respelled,
        linked=linked,
        merges=linked or upserts,
        respelled=respelled,
        segments_respelled=respelled,
        upserts=upserts,
        selects_segments=linked,
        selects_newer=linked,
    )

    text = str(ibis.to_sql(export_expression(shape), dialect="pyspark"))

    assert "MAX_BY" in text
