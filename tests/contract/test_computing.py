"""Computing beside the loop: in turn for everybody, answered in time, and long JSON in columns read and written so."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import TypeAdapter
from sqlalchemy import insert, select

from profile_export.domain.catalog.datasets import FieldDeclaration
from profile_export.domain.errors import ExhaustedError
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    LONG,
    TEXT,
    TIMESTAMP,
    WIDE,
    ArrayType,
    DecimalType,
    MapSelection,
    MapType,
    ObjectType,
    is_wide,
)
from profile_export.processes import turns
from profile_export.processes.turns import Computing, compute_for, compute_if
from profile_export.store.db.columns import digest_of, read_type, write_type
from profile_export.store.db.database import Database
from profile_export.store.db.tables import datasets, field_sets
from tests.contract.test_store import Store
from tests.databases import Place

BROAD = ObjectType({f"field_{number}": TEXT for number in range(2_000)})
DEEP = ObjectType(
    {"a": ArrayType(MapType(ObjectType({"b": BROAD, "kind": TEXT, "item": LONG, "keys": DOUBLE})))}
)
TYPES = {
    "scalars": ObjectType(
        {
            "t": TEXT,
            "b": BOOLEAN,
            "l": LONG,
            "d": DOUBLE,
            "on": DATE,
            "at": TIMESTAMP,
            "n": DecimalType(38, 6),
        }
    ),
    "nothing": EMPTY,
    "names that types have": ObjectType(
        {
            "kind": TEXT,
            "fields": ObjectType({"value": TEXT}),
            "item": ArrayType(TEXT),
            "precision": MapType(TEXT),
        }
    ),
    "a selection": ObjectType(
        {"m": MapSelection(TEXT, {"k": TEXT}), "o": MapSelection(DEEP, {"k": DEEP}, DEEP)}
    ),
    "broad": BROAD,
    "deep": DEEP,
}


# --- In turn ---


async def test_who_has_much_to_compute_keeps_nobody_else_waiting() -> None:
    # given a tenant that computes, and has more to compute
    computing_here, begun, passed = Computing(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        passed.wait(60)

    compute_for("greedy")
    greedy = [asyncio.create_task(computing_here.run(long)) for _ in range(5)]
    await asyncio.to_thread(begun.wait)

    # when another comes
    compute_for("modest")
    assert await computing_here.run(threading.get_ident) != threading.get_ident()

    # then it was not made to wait
    assert not any(task.done() for task in greedy)
    passed.set()
    await asyncio.gather(*greedy)


async def test_a_call_that_takes_too_long_to_compute_is_answered_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "MOST_SECONDS", 0.01)
    passed = threading.Event()
    with pytest.raises(ExhaustedError) as refused:
        await Computing().run(passed.wait)
    passed.set()

    assert refused.value.reason == "REQUEST_TOO_EXPENSIVE"
    assert refused.value.retry_after is not None


async def test_what_the_work_raises_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await Computing().run(lambda: 1 // 0)


async def test_what_the_work_raises_for_a_caller_that_is_gone_is_no_fault_of_the_loop() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    begun, passed, here = threading.Event(), threading.Event(), Computing()

    def fail() -> None:
        begun.set()
        passed.wait(60)
        raise ValueError

    call = asyncio.create_task(here.run(fail))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    await asyncio.wait([call])
    passed.set()
    for _ in range(2):  # both threads are free again
        await here.run(int)
    del call
    gc.collect()  # where the loop would hear of it
    asyncio.get_running_loop().set_exception_handler(None)

    assert complaints == []


async def test_small_work_stays_where_it_is() -> None:
    assert await compute_if(False, threading.get_ident) == threading.get_ident()
    assert await compute_if(True, threading.get_ident) != threading.get_ident()


# --- Width ---


@pytest.mark.parametrize(
    ("schemas", "wide"),
    [
        ([], False),
        ([EMPTY] * WIDE, False),
        ([EMPTY] * (WIDE + 1), True),
        ([ObjectType({str(number): TEXT for number in range(WIDE - 1)})], False),
        ([ObjectType({str(number): TEXT for number in range(WIDE)})], True),
        ([ObjectType({str(number): ArrayType(TEXT) for number in range(WIDE // 2)})], True),
        ([DEEP], True),
        ([ObjectType({str(number): TEXT for number in range(WIDE // 2)})] * 2, True),
    ],
)
def test_schemas_are_wide_by_all_types_that_they_hold_together(
    schemas: list[ObjectType], *, wide: bool
) -> None:
    assert is_wide(iter(schemas)) is wide


# --- JSON ---


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_types_are_read_as_they_were_written(kind: ObjectType) -> None:
    adapter = TypeAdapter(ObjectType)

    assert read_type(write_type(kind)) == kind
    assert adapter.validate_json(adapter.dump_json(kind)) == kind


def test_the_json_of_types_is_what_it_has_always_been() -> None:
    written = TypeAdapter(tuple[FieldDeclaration, ...]).dump_json(
        (FieldDeclaration(("a", "b"), ObjectType({"n": DecimalType(3, 1), "m": MapType(ArrayType(TEXT))})),)
    )

    assert written == (
        b'[{"path":["a","b"],"type":{"fields":{"n":{"precision":3,"scale":1},"m":{"value":{"item":{"kind":"string"}}}}}}]'
    )
    assert digest_of(ObjectType({"a": TEXT})) == (
        "b097630e75eedd90f7d410f5a51eb2a75aee866660907b79fa57b6b6be532dc3"
    )


@pytest_asyncio.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    store = Store(place)
    await store.database.open()
    await store.dataset()
    yield store.database
    await store.database.close()


@pytest.mark.parametrize("kind", [BROAD, DEEP, TYPES["scalars"]], ids=["broad", "deep", "small"])
async def test_types_of_any_width_come_back_from_the_database(database: Database, kind: ObjectType) -> None:
    async with database.write() as connection:
        [dataset_id] = (await connection.execute(select(datasets.c.id))).scalars()
        row = {"dataset_id": dataset_id, "digest": "d", "fields": kind}
        await connection.execute(insert(field_sets).values(row))
    query = select(field_sets.c.fields)

    async with database.read() as connection:
        [first] = await connection.all(query)
        again = await connection.first(query)
        at_once = (await connection.execute(query)).scalar_one()

    assert first.fields == at_once == kind
    assert again is not None
    # What is long is read once.
    assert (again.fields is first.fields) is is_wide([kind])
