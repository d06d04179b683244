"""Numbers widen only where every value stays exact (S27), also from dataset to dataset."""

from __future__ import annotations

import io
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.v1 import dataset_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller, Refusal, declarations, refusal_of

LONG, DOUBLE = dataset_pb2.SCALAR_TYPE_LONG, dataset_pb2.SCALAR_TYPE_DOUBLE
APART = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
LARGE = 9_223_372_036_650_888_703
EVENT = {"_id": "e1", "timestamp": "2026-01-01T00:00:00Z"}
PARQUET = ds.UPLOAD_FORMAT_PARQUET
PLACES: dict[str, Callable[[Any], Any]] = {
    "top": lambda value: value,
    "object": lambda value: {"inner": value},
    "array": lambda value: [value],
    "objects": lambda value: [{"inner": value}],
}
TYPES: dict[str, Callable[[pa.DataType], pa.DataType]] = {
    "top": lambda kind: kind,
    "object": lambda kind: pa.struct([("inner", kind)]),
    "array": pa.list_,
    "objects": lambda kind: pa.list_(pa.struct([("inner", kind)])),
    "map": lambda kind: pa.map_(pa.string(), kind),
}
PATHS = {"top": "n", "object": "n.inner", "array": "n[]", "objects": "n[].inner", "map": "n.*"}


def parquet(value: Any, kind: pa.DataType, identity: str = "1") -> bytes:
    about = {"id": [identity], "_id": ["e1"], "timestamp": ["2026-01-01T00:00:00Z"]}
    columns = {name: pa.array(values) for name, values in about.items()}
    table = pa.table({**columns, "n": pa.array([value], kind)})
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


def told(refusal: Refusal) -> tuple[grpc.StatusCode, str, str]:
    return refusal.code, refusal.reason, refusal.metadata.get("path", "")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["record", "event"])
async def test_s27_a_json_number_beside_longs_that_no_double_holds_is_refused_with_both_names(
    caller: Caller, kind: str, place: str
) -> None:
    # given a dataset with an integer that a double does not hold
    wrap, path = PLACES[place], PATHS[place]
    longs = await caller.dataset(kind, {"id": "CRM"}, name="Longs")
    await caller.send(longs, "long", parquet(wrap(LARGE), TYPES[place](pa.int64())), PARQUET)
    numbers = await caller.dataset(kind, {"id": "CRM"}, name="Numbers")

    # when another one sends a number of the same field
    refusal = await refusal_of(caller.upload(numbers, "json", [{**EVENT, "id": "2", "n": wrap(1)}]))

    # then nothing of it is kept, and the message says who, what, and the way out
    assert told(refusal) == (PRECONDITION, "FIELD_TYPE_CONFLICT", path)
    assert (refusal.metadata["dataset_id"], refusal.metadata["other_dataset_id"]) == (numbers, longs)
    assert f"is double in 'Numbers' ({numbers}), but long in 'Longs' ({longs})" in refusal.message
    assert "with the field declared as long" in refusal.message
    assert await caller.visible_batches(numbers) == []

    # and the way out is one
    if place == "top":
        declared = await caller.dataset(kind, {"id": "CRM"}, declared={"n": LONG})
        await caller.upload(declared, "declared", [{**EVENT, "id": "2", "n": LARGE - 1}])
        assert (await caller.rows("declared"))[0]["n"] == LARGE - 1


@pytest.mark.parametrize("place", TYPES)
@pytest.mark.parametrize("kind", ["record", "event"])
async def test_s27_an_integer_that_no_double_holds_is_refused_beside_doubles(
    caller: Caller, kind: str, place: str
) -> None:
    # given integers and doubles that go together
    wrap: Callable[[Any], Any] = PLACES.get(place, lambda value: [("k", value)])
    longs, doubles = [await caller.dataset(kind, {"id": "CRM"}) for _ in range(2)]
    await caller.send(longs, "long", parquet(wrap(2**53), TYPES[place](pa.int64())), PARQUET)
    await caller.send(doubles, "double", parquet(wrap(0.5), TYPES[place](pa.float64()), "2"), PARQUET)

    # when an integer comes that the double of both would not hold
    refusal = await refusal_of(
        caller.send(longs, "large", parquet(wrap(LARGE), TYPES[place](pa.int64()), "3"), PARQUET)
    )

    # then it is refused, and what was there is exported as it was
    assert told(refusal) == (PRECONDITION, "NUMBER_NOT_EXACT", PATHS[place])
    assert await caller.visible_batches(longs) == ["long"]
    everybody = job_pb2.ExportFilter(empty_profiles=True)
    events = job_pb2.EventList() if kind == "event" else None
    job = await caller.export(await caller.dataset("union"), events=events, filter=everybody)
    rows = await caller.rows(job.batch_id)
    found = [row["timeSeriesEvents"][0]["n"] if kind == "event" else row["n"] for row in rows]
    assert sorted(map(str, found)) == sorted(str(wrap(value)) for value in (2.0**53, 0.5))


@pytest.mark.parametrize("number", [pa.decimal128(10, 2), pa.decimal128(38, 38)], ids=str)
async def test_s27_decimals_and_doubles_never_go_together(caller: Caller, number: pa.DataType) -> None:
    value = Decimal("0.25")
    decimals, doubles = [await caller.dataset("record", {"id": "CRM"}) for _ in range(2)]
    await caller.send(decimals, "decimal", parquet(value, number), PARQUET)

    beside = await refusal_of(caller.upload(doubles, "json", [{"id": "2", "n": 0.5}]))
    within = await refusal_of(caller.send(decimals, "double", parquet(0.5, pa.float64()), PARQUET))

    assert told(beside) == (PRECONDITION, "FIELD_TYPE_CONFLICT", "n")
    assert f"declared as decimal({number.precision},{number.scale})" in beside.message
    assert told(within)[1:] == ("ROW_REJECTED", "n") or told(within)[1] == "FIELD_TYPE_CONFLICT"
    assert "whose digits no double keeps" in within.message
    assert await caller.visible_batches(decimals) == ["decimal"]


async def test_s27_decimals_widen_with_integers_while_digits_last(caller: Caller) -> None:
    sources = [await caller.dataset("record", {"id": "CRM"}) for _ in range(4)]
    await caller.send(sources[0], "a", parquet(LARGE, pa.int64(), "1"), PARQUET)
    await caller.send(sources[1], "b", parquet(Decimal("0.0001"), pa.decimal128(9, 4), "2"), PARQUET)
    await caller.send(sources[2], "c", parquet(Decimal(10**30), pa.decimal128(34, 0), "3"), PARQUET)

    refusal = await refusal_of(
        caller.send(sources[3], "d", parquet(Decimal("0.00001"), pa.decimal128(9, 5), "4"), PARQUET)
    )
    job = await caller.export(await caller.dataset("union"), fields=["id", "n"])

    assert told(refusal) == (PRECONDITION, "FIELD_TYPE_CONFLICT", "n")
    assert "more than 38 digits" in refusal.message
    rows = {row["id"]: row["n"] for row in await caller.rows(job.batch_id)}
    assert rows == {"1": LARGE, "2": Decimal("0.0001"), "3": Decimal(10**30)}
    assert (await caller.profile("CRM:1")).values["n"] in {str(LARGE), f"{LARGE}.0000"}


async def test_s27_no_declaration_schema_or_tag_costs_a_digit(caller: Caller) -> None:
    longs = await caller.dataset("record", {"id": "CRM"}, name="Longs", declared={"n": LONG})
    await caller.upload(longs, "long", [{"id": "1", "n": LARGE}])
    apart = await caller.dataset("record", {"id": "CRM"}, declared={"n": DOUBLE}, tags=APART)
    document = {
        "$id": "https://example.com/numbers",
        "type": "object",
        "meta:class": "https://ns.adobe.com/xdm/context/profile",
        "meta:extends": ["https://ns.adobe.com/xdm/context/profile"],
        "properties": {"id": {"type": "string"}, "n": {"type": "number"}},
    }

    refusals = [
        await refusal_of(caller.dataset("record", {"id": "CRM"}, declared={"n": DOUBLE})),
        await refusal_of(caller.update(longs, add_declared_fields=declarations({"n": DOUBLE}))),
        await refusal_of(caller.update(apart, tags=ds.DatasetTags())),
        await refusal_of(caller.schema(document, identities={"id": "CRM"})),
    ]

    assert [told(refusal) for refusal in refusals] == [
        (INVALID, "FIELD_TYPE_CONFLICT", "n"),
        (PRECONDITION, "FIELD_TYPE_CONFLICT", "n"),
        (PRECONDITION, "FIELD_TYPE_CONFLICT", "n"),
        (PRECONDITION, "FIELD_TYPE_CONFLICT", "n"),
    ]
    job = await caller.export(await caller.dataset("union"), fields=["n"])
    assert [row["n"] for row in await caller.rows(job.batch_id)] == [LARGE]
    # and a declaration of what is known is none that widens
    again = await caller.update(longs, add_declared_fields=declarations({"n": LONG}))
    assert [field.type.scalar for field in again.fields if field.name == "n"] == [LONG]


async def test_s27_a_refused_row_teaches_nothing(caller: Caller) -> None:
    longs, doubles = [await caller.dataset("record", {"id": "CRM"}) for _ in range(2)]
    table = pa.table({"id": ["1", ""], "n": pa.array([1, LARGE], pa.int64())})
    target = io.BytesIO()
    pq.write_table(table, target)

    await caller.send(longs, "long", target.getvalue(), PARQUET, max_bad_records=1)
    await caller.upload(doubles, "double", [{"id": "2", "n": 0.5}])

    job = await caller.export(await caller.dataset("union"), fields=["n"])
    assert sorted(row["n"] for row in await caller.rows(job.batch_id)) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0.5, pa.float64()), (Decimal("1.5"), pa.decimal128(2, 1))),
        ((Decimal("1.5"), pa.decimal128(2, 1)), (0.5, pa.float64())),
        (("x", pa.string()), (1, pa.int64())),
    ],
)
async def test_a_refusal_within_a_dataset_names_its_way_out_once(
    caller: Caller, first: tuple[Any, pa.DataType], second: tuple[Any, pa.DataType]
) -> None:
    dataset = await caller.dataset("record", {"id": "CRM"})
    await caller.send(dataset, "first", parquet(*first), PARQUET)

    refusal = await refusal_of(caller.send(dataset, "second", parquet(*second), PARQUET))

    assert told(refusal) == (PRECONDITION, "FIELD_TYPE_CONFLICT", "n")
    assert refusal.message.count("another name") == refusal.message.count("Send it as") == 1
