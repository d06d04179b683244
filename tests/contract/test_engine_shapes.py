"""Deep, wide and nested rows: they come out exactly, with every null, and cost what they hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.domain.catalog.batches import BATCH_ID, PROFILE_ID
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.merging.merge import merge_profiles
from profile_export.domain.schemas.types import (
    LONG,
    TEXT,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
)
from profile_export.engines.duckdb.query import compiled
from profile_export.engines.duckdb.session import DuckDbSession
from profile_export.engines.expression.tables import shape_of
from tests.builders import Part, at, events, plan_of, records, row, rows_of

LEVELS = 62
"""With the field and the item that hold them, as many as an upload takes."""
NAMES = 5_000
in_order = functools.partial(sorted, key=functools.partial(json.dumps, sort_keys=True))


def exact(kind: FieldType, value: Any) -> Any:
    """Write a value as files have it: every member of its type is there, and null where it has no value (S13)."""
    match kind:
        case ObjectType(fields):
            members = {name: exact(member, (value or {}).get(name)) for name, member in fields.items()}
            return members if any(member is not None for member in members.values()) else None
        case ArrayType(item) if value is not None:
            return [exact(item, one) for one in value]
        case MapType(entry) if value is not None:
            return {key: exact(entry, one) for key, one in value.items()}
    return value


def read(file: Path) -> pa.Table:
    return pq.ParquetFile(file, schema_depth_limit=1_000).read()


def exported(plan: ExportPlan, lake: Path) -> list[dict[str, Any]]:
    session = DuckDbSession(plan, lake, lake / "attempt", {"threads": 2}, lambda *_: None)
    results = [session.run(key_range) for key_range in plan.ranges()]
    session.close()
    files = [lake / "attempt" / file.name for result in results for file in result.files]
    rows = [line for file in files for line in read(file).to_pylist(maps_as_pydicts="strict")]
    return [{name: row[name] for name in row if name not in {BATCH_ID, PROFILE_ID}} for row in rows]


def expected(plan: ExportPlan, parts: Sequence[Part]) -> list[dict[str, Any]]:
    kinds = plan.exported_fields.fields
    return [
        {name: exact(kind, profile.get(name)) for name, kind in kinds.items()}
        for profile in merge_profiles(plan, rows_of(parts)).profiles
    ]


def within(levels: int, end: Any, wrap: Any) -> Any:
    for level in reversed(range(levels)):
        end = wrap(level, end)
    return end


DEEP = within(
    LEVELS, ObjectType({"end": TEXT}), lambda level, inner: ObjectType({f"in{level}": inner, "text": TEXT})
)
WIDE = ObjectType({f"name{number}": LONG for number in range(NAMES)})


def deep(levels: int, *, texts: bool) -> dict[str, Any]:
    """A value that ends on a level, with texts on all above it or only there."""
    end = {"text": "end"} if levels < LEVELS else {"end": "end"}
    return within(  # type: ignore[no-any-return]
        levels, end, lambda level, inner: {f"in{level}": inner} | ({"text": f"{level}"} if texts else {})
    )


def maps(count: int, values: Callable[[int], Sequence[Any]]) -> dict[str, Any]:
    """Maps of three types by turns, with two of five keys each."""
    return {
        f"in{place}": {f"k{place % 5}": values(place)[place % 3], "k0": values(0)[place % 3]}
        for place in range(count)
    }


def wide(first: int, step: int) -> dict[str, Any]:
    return {f"name{number}": number for number in range(first, NAMES, step)}


_MEMBERS: dict[str, FieldType] = {
    "number": LONG,
    "text": TEXT,
    "texts": ArrayType(TEXT),
    "within": ObjectType({"end": TEXT}),
}
_KINDS: Sequence[FieldType] = (LONG, TEXT, ArrayType(TEXT))
_MAPS: dict[str, FieldType] = {f"in{place}": MapType(_KINDS[place % 3]) for place in range(300)}
SLOW = {"deep", "wide"}
BODIES: dict[str, tuple[FieldType, list[Any]]] = {
    "deep": (DEEP, [deep(LEVELS, texts=True), deep(LEVELS, texts=False), deep(5, texts=False), None]),
    "wide": (WIDE, [wide(0, 1), wide(1, 2), wide(NAMES, 1), {"name0": 1}]),
    "many objects": (
        ObjectType({f"in{group}": ObjectType(_MEMBERS) for group in range(100)}),
        [
            {f"in{group}": {"number": group, "texts": [None, "x"]} for group in range(100)},
            {f"in{group}": {"text": "y", "within": {"end": "z"}} for group in range(0, 100, 3)},
            {"in7": {"texts": []}},
        ],
    ),
    "many maps": (
        ObjectType(_MAPS),
        [
            maps(300, lambda key: (key, f"{key}", [None, "x"])),
            {"in299": {"k1": ["z"]}},
            {"in299": {"k1": [], "k2": ["y"]}, "in298": {"k1": "only"}},
            maps(200, lambda key: (-key, "y", [])),
        ],
    ),
    "arrays of objects": (
        within(30, TEXT, lambda level, inner: ObjectType({f"in{level}": ArrayType(inner), "text": TEXT})),
        [
            within(30, "end", lambda level, inner: {f"in{level}": [inner, None][: 1 + level % 2]}),
            {"text": "x"},
        ],
    ),
    "arrays of arrays": (
        ObjectType({"rows": within(58, ObjectType({"end": TEXT}), lambda _level, inner: ArrayType(inner))}),
        [{"rows": within(58, {"end": "x"}, lambda _level, inner: [inner])}, None],
    ),
    "maps of objects": (
        within(15, TEXT, lambda level, inner: MapType(ObjectType({f"in{level}": inner, "text": TEXT}))),
        [within(15, "end", lambda level, inner: {"a": {f"in{level}": inner}, "b": {"text": "x"}}), None],
    ),
}


@pytest.mark.parametrize(
    "body", [pytest.param(body, marks=pytest.mark.slow if body in SLOW else ()) for body in BODIES]
)
def test_records_of_any_shape_come_out_exactly_whether_or_not_they_are_merged(
    tmp_path: Path, body: str
) -> None:
    kind, values = BODIES[body]
    fields = {"body": kind}
    one = records(
        "crm",
        fields,
        *(row("crm", f"CRM:{n}", {"body": v} if v else {}, number=n) for n, v in enumerate(values)),
    )
    other = records(
        "web",
        fields,
        *(
            row("web", f"CRM:{n}", {"body": v} if v else {}, batch="b2", number=n)
            for n, v in enumerate(values[::-1])
        ),
    )

    for parts in ([one], [one, other]):
        lake = tmp_path / f"{len(parts)}"
        plan = plan_of(parts, lake=lake)

        assert in_order(exported(plan, lake)) == in_order(expected(plan, parts))


@pytest.mark.parametrize(
    "body", [pytest.param(body, marks=pytest.mark.slow if body in SLOW else ()) for body in BODIES]
)
def test_events_of_any_shape_come_out_exactly(tmp_path: Path, body: str) -> None:
    kind, values = BODIES[body]
    web = events(
        "web",
        {"body": kind},
        *(
            row("web", "CRM:1", {"_id": f"{n}", "timestamp": at(n)} | ({"body": v} if v else {}), number=n)
            for n, v in enumerate(values)
        ),
    )
    for selected in ([], ["body"]):
        lake = tmp_path / f"{len(selected)}"
        plan = plan_of([web], lake=lake, event_fields=selected, empty_profiles=True, fields=["identities.id"])

        (found,), (right,) = exported(plan, lake), expected(plan, [web])

        times = [event.pop("timestamp", None) for event in found["timeSeriesEvents"] if event]
        assert times == [event.pop("timestamp", None) for event in right["timeSeriesEvents"] if event]
        assert found == right


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (
            within(30, TEXT, lambda level, inner: ArrayType(ObjectType({f"in{level}": inner, "text": TEXT}))),
            within(30, "end", lambda level, inner: [{f"in{level}": inner, "text": "x"}, {"text": "x"}]),
            [".".join(f"in{level}" for level in range(30))],
        ),
        (
            within(12, TEXT, lambda level, inner: MapType(ObjectType({f"in{level}": inner, "text": TEXT}))),
            within(
                12, "end", lambda level, inner: {"a": {f"in{level}": inner, "text": "x"}, "b": {"text": "x"}}
            ),
            [
                ".".join(f"{'ab'[number >> level & 1]}.in{level}" for level in range(12))
                for number in range(690)
            ],
        ),
        (
            MapType(MapType(ObjectType({"m": TEXT, "n": TEXT}))),
            {f"a{number}": {f"b{number}": {"m": "x", "n": "y"}} for number in range(0, 3_000, 3)},
            [f"a{number}.b{number}.m" for number in range(2_000)],
        ),
    ],
    ids=["30 arrays of objects", "690 paths through 12 maps", "2,000 paths through 2 maps"],
)
def test_paths_through_arrays_and_maps_keep_what_they_name_on_all_levels(
    tmp_path: Path, kind: FieldType, value: Any, path: list[str]
) -> None:
    fields: dict[str, FieldType] = {"body": kind, "other": TEXT}
    crm = records(
        "crm", fields, row("crm", "CRM:1", {"body": value, "other": "x"}), row("crm", "CRM:2", number=1)
    )
    web = events(
        "web", fields, row("web", "CRM:1", {"_id": "1", "timestamp": at(0), "body": value}, batch="b2")
    )
    paths = [f"body.{one}" for one in path]
    plan = plan_of([crm, web], lake=tmp_path, fields=paths, event_fields=paths)

    assert in_order(exported(plan, tmp_path)) == in_order(expected(plan, [crm, web]))


@pytest.mark.parametrize("with_events", [False, True])
def test_the_query_grows_as_the_levels_and_the_names_do(tmp_path: Path, *, with_events: bool) -> None:
    def length(kind: ObjectType) -> int:
        parts = [
            records("crm", {"body": kind}, row("crm", "CRM:1")),
            records("web", {"body": kind}, row("web", "CRM:1", batch="b2")),
            events("app", {"body": kind}, row("app", "CRM:1", {"_id": "1", "timestamp": at(0)}, batch="b3")),
        ]
        lake = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        plan = plan_of(parts, lake=lake, event_fields=[] if with_events else None)
        return len(compiled(shape_of(plan, linked=False)))

    def of_levels(levels: int) -> ObjectType:
        return within(levels, WIDE_END, lambda level, inner: ObjectType({f"in{level}": inner, "text": TEXT}))  # type: ignore[no-any-return]

    nothing = length(ObjectType({"text": TEXT}))
    few, many = (length(of_levels(levels)) - nothing for levels in (15, 60))
    narrow, broad = (
        length(ObjectType({f"name{number:04}": TEXT for number in range(names)})) - nothing
        for names in (500, 2_000)
    )

    assert many < 6 * few
    assert broad < 6 * narrow


WIDE_END = ObjectType({f"name{number}": TEXT for number in range(20)})
