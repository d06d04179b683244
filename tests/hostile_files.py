"""Files and schema documents that are small to send and dear to read, and damage done to sound ones."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PERSON = {"crmId": "1", "name": {"first": "Ann", "tags": ["a", "b"]}, "n": 1.5, "at": "2026-01-01T00:00:00Z"}

OPENING = {name: f'{{"{name}": ' for name in ("a", "not")}


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def zeros(count: int) -> bytes:
    """One row with a list of so many zeros, in less than a kilobyte."""
    items = pa.repeat(pa.scalar(0, pa.int64()), count)
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), items)
    return parquet(pa.table({"crmId": ["1"], "list": lists}), compression="zstd")


def repeated_text(rows: int, length: int, *, store_schema: bool = False) -> bytes:
    """Rows that share one text, which a dictionary holds once."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * length]))
    table = pa.table({"crmId": [str(number) for number in range(rows)], "text": texts})
    return parquet(table, compression="zstd", store_schema=store_schema)


def wide_csv(columns: int, rows: int) -> bytes:
    header = ",".join(["crmId", *(f"c{number}" for number in range(columns))])
    return (header + "\n" + ("1" + ",1" * columns + "\n") * rows).encode()


def sound_files(rows: int = 40) -> dict[str, bytes]:
    """One file of each format with the same people."""
    people = [{**PERSON, "crmId": str(number)} for number in range(rows)]
    table = pa.table(
        {
            "crmId": [person["crmId"] for person in people],
            "name": pa.array([person["name"] for person in people]),
            "n": pa.array([1.5] * rows),
            "map": pa.array([[("k", "v")]] * rows, pa.map_(pa.string(), pa.string())),
            "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        }
    )
    csv = "crmId,name.first,n\n" + "".join(f'{number},"Ann, ""A""",1.5\n' for number in range(rows))
    return {
        "json_lines": "".join(json.dumps(person) + "\n" for person in people).encode(),
        "json_array": json.dumps(people).encode(),
        "csv": csv.encode(),
        "parquet": parquet(table, row_group_size=16, compression="zstd"),
    }


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Flip, cut, repeat or put in some bytes; of Parquet most often in the footer."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(found))
        if dice.random() < 0.5:
            at = max(0, len(found) - 1 - dice.randrange(min(len(found), 900)))
        match dice.randrange(5):
            case 0:
                found[at] ^= 1 << dice.randrange(8)
            case 1:
                found[at] = dice.choice((0, 0xFF, 0x80, 0x22, 0x7B, 0x5B, dice.randrange(256)))
            case 2:
                del found[at : at + dice.choice((1, 4, 100))]
            case 3:
                found[at:at] = found[at : at + dice.randrange(1, 200)]
            case _:
                found[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        found = found or bytearray(b"\0")
    return bytes(found)


def document(**said: Any) -> str:
    return json.dumps({"$id": "https://ns.example.com/hostile", "type": "object", **said})


def dear_documents() -> Iterator[tuple[str, str]]:
    """Documents that broke a reader, or held one up: a name, and the text."""
    whole = '{"$id": "https://ns.example.com/hostile", "type": "object", %s}'
    names = ", ".join(f'"n{number}": {{}}' for number in range(60_000))
    yield "last key twice", whole % f'"properties": {{{names}, "n59999": {{}}}}'
    for depth in (200, 900, 5_000, 80_000):
        yield f"enum of {depth} arrays", whole % f'"enum": [{"[" * depth}{"]" * depth}]'
        yield f"{depth} objects", whole % f'"properties": {depth * OPENING["a"]}1{"}" * depth}'
        yield f"{depth} allOf", whole % ('"allOf": [{' * depth + "}]" * depth)
        yield f"not {depth} times", whole % f'"not": {depth * OPENING["not"]}{{}}{"}" * depth}'
    yield "$ref of thousands of digits", document(allOf=[{"$ref": "#/allOf/" + "9" * 5_000}])
    yield "$ref of other digits", document(allOf=[{"$ref": "#/allOf/٣"}])
    yield "$ref to itself", document(allOf=[{"$ref": "#"}])
    yield "long number", whole % f'"maximum": {"9" * 100_000}'
    yield "long fraction", whole % f'"maximum": 0.{"1" * 100_000}'
    yield "huge exponent", whole % '"maximum": 1e999999999'
    yield (
        "multiple of almost nothing",
        whole % '"properties": {"n": {"type": "number", "multipleOf": 5e-324}}',
    )
    yield "half a pair", whole % r'"title": "\ud800"'
    yield "a NUL", document(title="a\0b", properties={"a\0b": {"type": "string"}})
    yield "no $id", json.dumps({"type": "object"})
    yield "an $id that is no URI", json.dumps({"$id": "http://[::1", "type": "object"})
    yield "a $ref that is no URI", document(allOf=[{"$ref": "http://[::1"}])
    for pattern in (
        "(",
        "(a{1000}){1000}",
        "(?=(a*)*)*b",
        r"(\w{500}){500}",
        "[",
        "(?<n>a)\\k<m>",
        "\\p{Foo}",
        "a" * 50_000,
    ):
        yield f"pattern {pattern[:20]}", document(properties={"a": {"type": "string", "pattern": pattern}})
    yield (
        "many patterns",
        document(
            properties={
                f"p{number}": {"type": "string", "pattern": f"^(?!x{number})"} for number in range(3_000)
            }
        ),
    )
    shared: Mapping[str, Any] = {
        f"d{number}": {"allOf": [{"$ref": f"#/definitions/d{number + 1}"}] * 2} for number in range(40)
    }
    yield "doubling", document(definitions={**shared, "d40": {}}, allOf=[{"$ref": "#/definitions/d0"}])
