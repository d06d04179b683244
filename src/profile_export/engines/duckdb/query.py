"""The query that makes the table `profiles`: the expression, and its values as exported rows have them."""

from __future__ import annotations

from typing import Any, NamedTuple

import ibis.expr.operations as ops
import sqlglot.expressions as sge
from cachetools import LRUCache, cached
from ibis.backends.sql.compilers.duckdb import DuckDBCompiler

from profile_export.domain.schemas.types import (
    IDENTITY_MAP,
    SEGMENT_MEMBERSHIP,
    TIME_SERIES_EVENTS,
    ArrayType,
    FieldType,
    ObjectType,
    identity_map_type,
)
from profile_export.engines.duckdb.objects import map_of_number, object_of, with_objects
from profile_export.engines.duckdb.spelling import name, type_name
from profile_export.engines.expression.expression import (
    ABOUT_PROFILE,
    IDENTITIES,
    SERIES,
    merged_column,
    text_of,
)
from profile_export.engines.expression.tables import EVENT, MEMBERSHIP, WIDE, Shape

_REMEMBERED = 64


class OutputColumn(NamedTuple):
    """A column of `profiles` that is exported, under the name of its field.

    The names differ, since users may name a field like one of our own columns. `whole` is the type of what is merged or
    attached, `kept` what the export keeps of it (S24).
    """

    field: str
    name: str
    whole: FieldType
    kept: FieldType

    @property
    def trim(self) -> str | None:
        """The function that cuts a value down to what is kept of it; None if that is all of it."""
        # Equal mappings may differ in the order of their members, which has no meaning.
        return None if self.whole == self.kept else f"trim_{self.name}"


def output_columns(shape: Shape) -> list[OutputColumn]:
    """Name the columns of the export, in order."""
    found: list[tuple[str, FieldType, FieldType]] = []
    if shape.identities.type:
        found.append((IDENTITY_MAP, identity_map_type(shape.identities.any_members), shape.identities.type))
    for field, kept in shape.fields.fields.items():
        found.append((field, shape.merged_fields.fields[field], kept))
    if shape.events is not None:
        event = ObjectType(_event_members(shape))
        found.append((TIME_SERIES_EVENTS, ArrayType(event), shape.events.type))
    return [OutputColumn(field, f"out_{index}", *types) for index, (field, *types) in enumerate(found)]


def _event_members(shape: Shape) -> dict[str, FieldType]:
    own = shape.events and shape.events.identities
    identities = {IDENTITY_MAP: identity_map_type(own.any_members)} if own and own.type else {}
    return {**identities, **shape.attached_fields.fields}


class _Compiler(DuckDBCompiler):  # type: ignore[misc] # Ibis has no types
    """Spells `argmax` as DuckDB's own `arg_max`, and wide places as its own 128-bit integers.

    Ibis writes `FIRST(… ORDER BY place DESC)`, which DuckDB turns into comparing texts made of the order. And as
    `arg_max` passes over null values itself, the filter that other engines need only costs: both together took half of
    a wide merge's time. To compare decimals instead of integers would take as much again.
    """

    __slots__ = ()

    def visit_ArgMax(self, op: ops.ArgMax, *, arg: Any, key: Any, where: Any) -> Any:  # noqa: N802 - Ibis' name
        not_null = isinstance(op.where, ops.NotNull) and op.where.arg == op.arg
        return self.agg.arg_max(arg, key, where=None if not_null else where)

    def visit_Cast(self, op: ops.Cast, *, arg: Any, to: Any) -> Any:  # noqa: N802 - Ibis' name
        if to == WIDE:
            return sge.Cast(this=arg, to=sge.DataType(this=sge.DataType.Type.INT128))
        return super().visit_Cast(op, arg=arg, to=to)


@cached(LRUCache(_REMEMBERED), key=repr)
def compiled(shape: Shape) -> str:
    """Return the query of a shape, remembered: making it can take longer than a small export.

    Its columns are `ABOUT_PROFILE` and those of `output_columns`, whose functions must be known.
    """
    rows = text_of(shape, _Compiler())
    values: dict[str, str] = {}
    if shape.has_records:
        parts = {part.path: part.column for part in (*shape.merged_parts, *shape.memberships)}
        for listed, maps in shape.maps.items():
            for number, part in enumerate(maps):
                merged = map_of_number(merged_column(listed), number)
                parts[part.path] = f"coalesce({merged}, {part.column})"
        rows, values = with_objects(rows, shape.merged_fields, parts)
    if shape.identities.type:
        values[IDENTITY_MAP] = IDENTITIES
    if shape.events is not None and shape.has_events:
        values[TIME_SERIES_EVENTS] = f"list_transform({SERIES}, lambda item: {_event(shape)})"
    selected = list(ABOUT_PROFILE)
    for column in output_columns(shape):
        value = values.get(column.field, f"CAST(NULL AS {type_name(column.whole)})")
        selected.append(f"{column.trim or ''}({value}) AS {column.name}")
    return f"SELECT {', '.join(selected)} FROM ({rows})"


def _event(shape: Shape) -> str:
    """Make an event of an item of the series."""
    places = {IDENTITY_MAP: IDENTITIES, SEGMENT_MEMBERSHIP: MEMBERSHIP}
    members = _event_members(shape)
    parts = [place for member, place in places.items() if member in members]
    if not parts:
        return f"item.{EVENT}"
    if shape.event_parts:
        parts.append(EVENT)
    values = {member: f"item.{places.get(member, f'{EVENT}.{name(member)}')}" for member in members}
    return object_of(values, [f"item.{part}" for part in parts])
