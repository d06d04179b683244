"""Random schemas that grow from batch to batch: what each batch knows, its rows, and how they are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    TypeConflictError,
    leaves,
    type_at,
    union_objects,
    union_types,
)
from profile_export.lake.data_files import arrow_type
from profile_export.v1 import dataset_service_pb2 as ds

BATCHES = 10
ROWS = 3
NUMBER = DOUBLE
"""Stands in `_ALL` for a number of any type."""
_NUMBERS: Sequence[FieldType] = (LONG, DecimalType(8, 2), DecimalType(12, 4), DOUBLE)
_ALWAYS = ObjectType({"id": TEXT, "name": TEXT})
_LINE = ObjectType({"count": NUMBER, "unit": TEXT, "since": DATE})
_ALL = ObjectType(
    {
        "active": BOOLEAN,
        "points": NUMBER,
        "balance": NUMBER,
        "born": DATE,
        "seen": TIMESTAMP,
        "person": ObjectType(
            {
                "name": ObjectType({"first": TEXT, "last": TEXT, "titles": ArrayType(TEXT)}),
                "age": NUMBER,
                "address": ObjectType({"city": TEXT, "geo": ObjectType({"lat": NUMBER, "long": NUMBER})}),
            }
        ),
        "orders": ArrayType(
            ObjectType(
                {
                    "sku": TEXT,
                    "price": NUMBER,
                    "at": TIMESTAMP,
                    "lines": ArrayType(_LINE),
                    "shipping": ObjectType({"city": TEXT, "paid": BOOLEAN}),
                }
            )
        ),
        "grid": ArrayType(ArrayType(NUMBER)),
        "consents": MapType(TEXT),
        "scores": MapType(ObjectType({"value": NUMBER, "notes": ArrayType(TEXT)})),
        "places": ObjectType({"visits": MapType(ArrayType(_LINE)), "last": TIMESTAMP}),
    }
)
_OTHER_KINDS: Mapping[FieldType, Sequence[Any]] = {
    TEXT: (7, True, {"x": "y"}, ["x"]),
    DATE: (7, ["x"]),
    TIMESTAMP: (True, {"x": "y"}),
}
"""What contradicts text and what is written as text; text contradicts all else."""
_WORDS = ("a", "Ō", "two words", "0", "true", "null", '"quoted"', "line\nbreak", "com,ma", "2026-01-31")


class Format(Enum):
    """A format of uploads, as the contract has it."""

    JSON_LINES = ds.UPLOAD_FORMAT_JSON_LINES
    JSON_ARRAY = ds.UPLOAD_FORMAT_JSON_ARRAY
    CSV = ds.UPLOAD_FORMAT_CSV
    PARQUET = ds.UPLOAD_FORMAT_PARQUET


@dataclass(frozen=True)
class Step:
    """One batch. `fields` are those that it teaches or knows, `known` all that the dataset knows afterwards."""

    id: str
    format: Format
    fields: ObjectType
    rows: Sequence[Mapping[str, Any]]
    known: ObjectType

    def data(self) -> bytes:
        """The file that is sent."""
        return _WRITERS[self.format](self.rows, self.fields)


@dataclass(frozen=True)
class Contradiction:
    """A value of another kind than what is known at a path."""

    path: FieldPath
    known: FieldType
    value: Any

    @property
    def row(self) -> dict[str, Any]:
        """A row with nothing but the value in its place."""
        inside = self.value
        for name in reversed(self.path):
            inside = [inside] if name == "[]" else {"key" if name == "*" else name: inside}
        return dict(inside)


@st.composite
def evolutions(draw: st.DrawFn) -> list[Step]:
    """Ten batches, each of which may add fields at any depth, widen numbers and write them in another format."""
    steps = []
    known = _ALWAYS
    for number in range(BATCHES):
        written = draw(st.sampled_from(Format))
        taught = _taught(draw, _ALL, known, written)
        fields = union_objects(_ALWAYS, taught if isinstance(taught, ObjectType) else EMPTY)
        known = union_objects(known, fields)
        random = Random(draw(st.integers(0, 2**32)))
        rows = [_value(fields, random, full=index == 1) or {} for index in range(ROWS)]
        rows = [row | {"id": f"{number}-{index}"} for index, row in enumerate(rows)]
        steps.append(Step(f"b{number}", written, fields, rows, known))
    return steps


def contradictions(draw: st.DrawFn, known: ObjectType) -> Contradiction:
    """A value of another kind somewhere in what is known."""
    path = draw(st.sampled_from([path for path in _places(known, ()) if path != ("id",)]))
    kind = type_at(known, path)
    assert kind
    others = _OTHER_KINDS.get(kind, ()) if isinstance(kind, Scalar) else ()
    return Contradiction(path, kind, draw(st.sampled_from(others or ("text",))))


def _places(kind: FieldType, path: FieldPath) -> list[FieldPath]:
    inside: list[FieldPath] = []
    match kind:
        case ObjectType(fields):
            for name, member in fields.items():
                inside += _places(member, (*path, name))
        case ArrayType(item):
            inside = _places(item, (*path, "[]"))
        case MapType(value):
            inside = _places(value, (*path, "*"))
    return [path, *inside] if path else inside


# --- What a batch teaches ---


def _taught(draw: st.DrawFn, kind: FieldType, known: FieldType | None, written: Format) -> FieldType | None:
    """Choose the type that a batch has for a field; None if it leaves it out.

    JSON teaches neither instants nor maps, and CSV nothing but text.
    """
    teaches_types = written is Format.PARQUET
    inside = Format.JSON_LINES if written is Format.CSV else written  # a cell holds JSON
    match kind:
        case ObjectType(fields):
            of = known.fields if isinstance(known, ObjectType) else {}
            chosen = [
                name for name in fields if not draw(st.booleans())
            ]  # so that all of them are the simplest
            members = {name: _taught(draw, fields[name], of.get(name), written) for name in chosen}
            taught = {name: member for name, member in members.items() if member}
            return ObjectType(taught) if taught else None
        case ArrayType(item) if known or written is not Format.CSV:
            found = _taught(draw, item, known.item if isinstance(known, ArrayType) else None, inside)
            return ArrayType(found) if found else None
        case MapType(value) if known or teaches_types:
            found = _taught(draw, value, known.value if isinstance(known, MapType) else None, inside)
            return MapType(found) if found else None
        case Scalar():
            return _taught_scalar(draw, kind, known, written)
    return None


def _taught_scalar(
    draw: st.DrawFn, kind: Scalar, known: FieldType | None, written: Format
) -> FieldType | None:
    if kind == NUMBER and written is Format.PARQUET:
        number: FieldType = draw(
            st.sampled_from([number for number in _NUMBERS if _go_together(known, number)])
        )
        return number
    if known or kind == TEXT or written is Format.PARQUET:
        return known or kind
    return kind if kind in {NUMBER, BOOLEAN} and written is not Format.CSV else None


def _go_together(known: FieldType | None, found: FieldType) -> bool:
    try:
        union_types(known or found, found)
    except TypeConflictError:
        return False
    return True


# --- Rows ---


def _value(kind: FieldType, random: Random, *, full: bool) -> Any:
    """Make a value; a full one has every member and at least one item, so that it teaches the whole type."""
    if not full and random.random() < 0.25:
        return None
    match kind:
        case ObjectType(fields):
            return {name: _value(member, random, full=full) for name, member in fields.items()}
        case ArrayType(item):
            count = random.randint(0, 2)
            return [_value(item, random, full=full)] * full + [
                _value(item, random, full=False) for _ in range(count)
            ]
        case MapType(value):
            keys = random.sample(("web", "e-mail", "a.b"), random.randint(int(full), 3))
            return {key: _value(value, random, full=full) for key in keys}
        case DecimalType():
            return Decimal(random.randint(-(10**6), 10**6)).scaleb(-2)
    return _SCALAR_VALUES[kind](random)


_SCALAR_VALUES: Mapping[FieldType, Callable[[Random], Any]] = {
    TEXT: lambda random: random.choice(_WORDS),
    BOOLEAN: lambda random: random.choice((True, False)),
    LONG: lambda random: random.randint(-(10**6), 10**6),
    DOUBLE: lambda random: random.randint(-(10**6), 10**6) / 100,
    DATE: lambda random: date(1900, 1, 1) + timedelta(random.randint(0, 50_000)),
    TIMESTAMP: lambda random: (
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=random.randint(-(2**50), 2**51))
    ),
}


# --- Files ---


def _text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [json.dumps(row, default=_in_json, ensure_ascii=False) for row in rows]


def _in_json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value.isoformat()


def _json_lines(rows: Sequence[Mapping[str, Any]], _fields: ObjectType) -> bytes:
    return "\n".join(_text(rows)).encode()


def _json_array(rows: Sequence[Mapping[str, Any]], _fields: ObjectType) -> bytes:
    return f"[{','.join(_text(rows))}]".encode()


def _csv(rows: Sequence[Mapping[str, Any]], fields: ObjectType) -> bytes:
    columns = [path for path, _ in leaves(fields)]
    output = io.StringIO()
    writer = csv.writer(output)
    writer.writerow(map(".".join, columns))
    writer.writerows([[_cell(row, path) for path in columns] for row in rows])
    return output.getvalue().encode()


def _cell(row: Mapping[str, Any], path: FieldPath) -> str:
    value: Any = row
    for name in path:
        value = value and value.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, date):  # or an instant
        return value.isoformat()
    return json.dumps(value, default=_in_json, ensure_ascii=False)


def parquet_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows with the types that Arrow sees in them."""
    output = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), output)
    return output.getvalue()


def _parquet(rows: Sequence[Mapping[str, Any]], fields: ObjectType) -> bytes:
    output = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(list(arrow_type(fields)))), output)
    return output.getvalue()


_WRITERS: Mapping[Format, Callable[[Sequence[Mapping[str, Any]], ObjectType], bytes]] = {
    Format.JSON_LINES: _json_lines,
    Format.JSON_ARRAY: _json_array,
    Format.CSV: _csv,
    Format.PARQUET: _parquet,
}
