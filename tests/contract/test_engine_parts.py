"""Parts of an engine that the rows of an export alone cannot show to work."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import ibis
import pytest
from ibis.config import Config

from profile_export.domain.export.plan import EventSelection
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
        respelled=respelled,
        segments_respelled=respelled,
        upserts=upserts,
        selects_segments=linked,
        selects_newer=linked,
    )

    text = str(ibis.to_sql(export_expression(shape), dialect="pyspark"))

    assert "MAX_BY" in text
