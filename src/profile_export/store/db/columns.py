"""Column types of our own: instants, lengths of time, and domain values as JSON.

pydantic reads or writes a JSON text in one go, and nothing else runs in the process meanwhile. That takes long only
where there are very many fields, so functions of ours read and write their types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, cached_property
from hashlib import sha256
from operator import itemgetter
from sys import intern
from typing import Any, TypeVar

from cachetools import LRUCache
from pydantic import TypeAdapter
from pydantic_core import core_schema
from sqlalchemy import BigInteger, Column, MetaData, Row, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util.concurrency import await_, in_greenlet

from profile_export.domain.catalog.datasets import FieldDeclaration
from profile_export.domain.schemas.types import (
    LARGE_LONG,
    ArrayType,
    DecimalType,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    is_wide,
)
from profile_export.processes.turns import compute

# Scalar types that are equal are one object, so that comparing types need not look into them.
_SCALARS = {kind: Scalar(kind) for kind in ScalarKind}


def read_type(plain: Any) -> FieldType:
    """Read a type of plain JSON.

    Raises:
        KeyError, TypeError: It is none.
    """
    if "kind" in plain:
        return LARGE_LONG if "beyond_doubles" in plain else _SCALARS[plain["kind"]]
    if "fields" in plain:
        return ObjectType({intern(name): read_type(member) for name, member in plain["fields"].items()})
    if "item" in plain:
        return ArrayType(read_type(plain["item"]))
    if "keys" in plain:
        keys = {key: read_type(kept) for key, kept in plain["keys"].items()}
        others = plain["others"] and read_type(plain["others"])
        return MapSelection(read_type(plain["value"]), keys, others)
    if "value" in plain:
        return MapType(read_type(plain["value"]))
    return DecimalType(plain["precision"], plain["scale"])


def write_type(kind: FieldType) -> dict[str, Any]:
    """Write a type as plain JSON."""
    match kind:
        case Scalar(word, beyond_doubles):
            return {"kind": word.value} | ({"beyond_doubles": True} if beyond_doubles else {})
        case ObjectType(fields):
            return {"fields": {name: write_type(member) for name, member in fields.items()}}
        case ArrayType(item):
            return {"item": write_type(item)}
        case MapSelection(value, keys, others):
            chosen = {key: write_type(kept) for key, kept in keys.items()}
            return {"value": write_type(value), "keys": chosen, "others": others and write_type(others)}
        case MapType(value):
            return {"value": write_type(value)}
        case DecimalType(precision, scale):
            return {"precision": precision, "scale": scale}


def _read_declaration(plain: Any) -> FieldDeclaration:
    return FieldDeclaration(tuple(plain["path"]), read_type(plain["type"]))


def _write_declaration(declared: FieldDeclaration) -> dict[str, Any]:
    return {"path": declared.path, "type": write_type(declared.type)}


def teach_pydantic() -> None:
    """Make pydantic call these functions wherever it meets such a type, also inside other values."""
    for kind, read, write in (
        (ObjectType, read_type, write_type),
        (FieldDeclaration, _read_declaration, _write_declaration),
    ):
        schema = core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )
        # pydantic calls this hook of a class; the classes of the domain should know nothing of pydantic.
        hook = classmethod(lambda _cls, _source, _handler, known=schema: known)
        setattr(kind, "__get_pydantic_core_schema__", hook)  # noqa: B010 - no attribute that the class declares


_Value = TypeVar("_Value")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# To read fewer characters of JSON takes less time than a change of threads.
_LONG = 16 * 1024
_MOST_KEPT = 32 * 1024 * 1024
_MANY = 500
teach_pydantic()


def from_micros(micros: int) -> datetime:
    """Return the instant that many microseconds after 1970 in UTC."""
    return _EPOCH + micros * _MICROSECOND


def to_micros(instant: datetime) -> int:
    """Return the microseconds since 1970 of an aware datetime."""
    return (instant - _EPOCH) // _MICROSECOND


class _Plainer(TypeDecorator[Any]):
    """A value that the database keeps as something plainer; NULL is None."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002 - its signature
        """To the database."""
        return None if value is None else self.write(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002 - its signature
        """From the database."""
        return None if value is None else self.read(value)


class Instant(_Plainer):
    """An aware datetime, kept as microseconds since 1970: SQLite would give back a naive one."""

    impl = BigInteger
    cache_ok = True
    write = staticmethod(to_micros)
    read = staticmethod(from_micros)


class Span(_Plainer):
    """A length of time, kept as microseconds."""

    impl = BigInteger
    cache_ok = True
    write = staticmethod(lambda span: span // _MICROSECOND)
    read = staticmethod(lambda micros: micros * _MICROSECOND)


class Word(_Plainer):
    """One of the words of an enumeration."""

    impl = Text
    cache_ok = True
    write = staticmethod(str)

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = self.read = kind


def value_of(kind: Callable[..., _Value], row: Row[Any], **others: Any) -> _Value:
    """Make a domain value of a row: each of its members is the column of the same name, but for `others`.

    A member without a column has its default.
    """
    columns = row._asdict()
    return kind(**({name: columns[name] for name in _members(kind) if name in columns} | others))


def columns_of(value: Any, table: Table) -> dict[str, Any]:
    """Return the members of a domain value that a table has columns for."""
    return {name: getattr(value, name) for name in _members(value.__class__) if name in table.c}


@cache
def _members(kind: Any) -> tuple[str, ...]:
    return tuple(member.name for member in fields(kind))


@dataclass(frozen=True, slots=True)
class WrittenAhead:
    """The JSON text of a value, instead of the value."""

    text: str


class Json(TypeDecorator[Any]):
    """Stores domain values of the type `kind` as JSON text.

    `indent` is by how many spaces the text is indented for people who read the table; None: not at all. Long texts are
    written beside the loop by `write_ahead`, and read beside it by `database.fetch_all`. A value that was read is
    cached and given to the next reader of the same text, so no caller may change it.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any, indent: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.indent = indent

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The codec, made at first use."""
        return TypeAdapter(self.kind)

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - its signature
        """To the database."""
        if value is None:
            return None
        if isinstance(value, WrittenAhead):
            return value.text
        if _is_long(value) and in_greenlet():
            return await_(compute(self._written, value))
        return self._written(value)

    async def ahead(self, value: Any) -> Any:
        """Return what a statement takes for a value; see `write_ahead`."""
        if not _is_long(value):
            return value
        text = await compute(self._written, value)
        _keep(self.kind, text, value)  # a statement that returns it reads it again
        return WrittenAhead(text)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002 - its signature
        """From the database."""
        if value is None or len(value) < _LONG:
            return None if value is None else self.adapter.validate_json(value)
        if (self.kind, value) in _KEPT:
            return _KEPT[self.kind, value][0]
        if in_greenlet():
            read = await_(compute(self.adapter.validate_json, value))
        else:
            read = self.adapter.validate_json(value)
        _keep(self.kind, value, read)
        return read

    def _written(self, value: Any) -> str:
        return self.adapter.dump_json(value, indent=self.indent).decode()


async def write_ahead(column: Column[Any], value: Any) -> Any:
    """Return what a statement takes for a value of a `Json` column: its text if it is long.

    To be called before the writing transaction, which must not wait for its turn to compute.
    """
    kind: Any = column.type
    return await kind.ahead(value)


def make_codecs(metadata: MetaData) -> None:
    """Make the codecs of all columns, which takes too long for the loop, when the first of them are wanted."""
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, Json):
                _ = column.type.adapter


def _is_long(value: Any) -> bool:
    """Whether the JSON of a value may be long: that of a schema, of many values, or of what holds such."""
    if isinstance(value, ObjectType):
        return is_wide([value])
    if isinstance(value, tuple):
        return len(value) > _MANY
    if not is_dataclass(value):
        return False
    members = [getattr(value, field.name) for field in fields(value)]
    schemas = [member for member in members if isinstance(member, ObjectType)]
    return is_wide(schemas) or any(isinstance(one, tuple) and len(one) > _MANY for one in members)


# What long texts were read as, each with the text's length: those used last, as many as come of so much text.
_KEPT: LRUCache[tuple[Any, str], tuple[Any, int]] = LRUCache(_MOST_KEPT, getsizeof=itemgetter(1))


def _keep(kind: Any, text: str, value: Any) -> None:
    if len(text) <= _MOST_KEPT:
        _KEPT[kind, text] = value, len(text)


def digest_of(value: Any) -> str:
    """Return the SHA-256, in hex, of a domain value's JSON: equal values have equal digests.

    What is at its default is left out, so that a digest stays when a later version's values can say more.
    """
    kind: Any = type(value)
    return sha256(_adapter_of(kind).dump_json(value, exclude_defaults=True)).hexdigest()


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
