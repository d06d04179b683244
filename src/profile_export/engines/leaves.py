"""The flat columns that an engine binds: one per needed leaf, so that no engine reads what nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ibis.expr.datatypes as dt

from profile_export.domain.schema import (
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

_SCALARS = {
    ScalarKind.TEXT: dt.string,
    ScalarKind.BOOLEAN: dt.boolean,
    ScalarKind.LONG: dt.int64,
    ScalarKind.DOUBLE: dt.float64,
    ScalarKind.DATE: dt.date,
    ScalarKind.TIMESTAMP: dt.Timestamp(timezone="UTC", scale=6),
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a source and the name of its flat column.

    `type` is that of the union schema, which merging needs whole; `kept` is what the export keeps of it (S24).
    """

    column: str
    path: FieldPath
    type: FieldType
    kept: FieldType


def without_empty(kind: FieldType) -> FieldType | None:
    """Drop objects without any field: no value is possible there and no file can hold them; None if nothing is left."""
    match kind:
        case ObjectType(fields):
            kept = {
                name: member for name, field in fields.items() if (member := without_empty(field)) is not None
            }
            return ObjectType(kept) if kept else None
        case ArrayType(item):
            left = without_empty(item)
            return None if left is None else ArrayType(left)
        case MapSelection(value, keys, others):
            left = without_empty(value)
            chosen = {
                key: member for key, kept in keys.items() if (member := without_empty(kept)) is not None
            }
            return None if left is None else MapSelection(left, chosen, others and without_empty(others))
        case MapType(value):
            left = without_empty(value)
            return None if left is None else MapType(left)
        case _:
            return kind


def needed_leaves(kept: ObjectType, schema: ObjectType) -> tuple[Leaf, ...]:
    """List the leaves below `kept`, which is a subtree of `schema`, in order. Neither may hold empty objects."""
    found = _leaves(kept, schema, ())
    # Numbered, since dotted paths are ambiguous as soon as a name holds a dot itself.
    return tuple(Leaf(f"leaf_{index}", *leaf) for index, leaf in enumerate(found))


def _leaves(
    kept: ObjectType, schema: ObjectType, path: FieldPath
) -> Iterator[tuple[FieldPath, FieldType, FieldType]]:
    for name, member in kept.fields.items():
        whole = schema.fields[name]
        if isinstance(member, ObjectType) and isinstance(whole, ObjectType):
            yield from _leaves(member, whole, (*path, name))
        else:
            yield (*path, name), whole, member


def ibis_type(kind: FieldType) -> dt.DataType:
    """Translate a field type for the expression."""
    match kind:
        case ObjectType(fields):
            return dt.Struct({name: ibis_type(member) for name, member in fields.items()})
        case ArrayType(item):
            return dt.Array(ibis_type(item))
        case MapType(value):
            return dt.Map(dt.string, ibis_type(value))
        case DecimalType(precision, scale):
            return dt.Decimal(precision, scale)
        case Scalar(scalar):
            return _SCALARS[scalar]
