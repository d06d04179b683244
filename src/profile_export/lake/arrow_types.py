"""The types of fields as Arrow has them, and the schema of a data file."""

from __future__ import annotations

import pyarrow as pa

from profile_export.domain import columns
from profile_export.domain.schema import (
    TEXT,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

INSTANT = pa.timestamp("us", "UTC")
_SCALARS = {
    ScalarKind.TEXT: pa.string(),
    ScalarKind.BOOLEAN: pa.bool_(),
    ScalarKind.LONG: pa.int64(),
    ScalarKind.DOUBLE: pa.float64(),
    ScalarKind.DATE: pa.date32(),
    ScalarKind.TIMESTAMP: INSTANT,
}
LINK = pa.struct(
    [
        ("namespace", pa.string()),
        ("id", pa.string()),
        ("authenticated_state", pa.string()),
        ("key_high", pa.int64()),
        ("key_low", pa.int64()),
    ]
)
SYSTEM_FIELDS = (
    pa.field(columns.BATCH_ID, pa.string()),
    pa.field(columns.ROW, pa.int64()),
    pa.field(columns.NAMESPACE, pa.string()),
    pa.field(columns.IDENTITY, pa.string()),
    pa.field(columns.AUTHENTICATED_STATE, pa.string()),
    pa.field(columns.KEY_HIGH, pa.int64()),
    pa.field(columns.KEY_LOW, pa.int64()),
    pa.field(columns.LINKS, pa.list_(LINK)),
)


def arrow_type(field_type: FieldType) -> pa.DataType:
    """Return the Arrow type that a field is stored as; everything in it may be null."""
    match field_type:
        case ObjectType(fields):
            return pa.struct([(name, arrow_type(member)) for name, member in fields.items()])
        case ArrayType(item):
            return pa.list_(arrow_type(item))
        case MapType(value):
            return pa.map_(pa.string(), arrow_type(value))
        case DecimalType(precision, scale):
            return pa.decimal128(precision, scale)
        case Scalar(kind):
            return _SCALARS[kind]


def file_schema(fields: ObjectType) -> pa.Schema:
    """Return the schema of a data file: the system columns, then the fields."""
    return pa.schema([*SYSTEM_FIELDS, *arrow_type(fields)])


def stored_fields(found: pa.Schema | pa.StructType) -> ObjectType:
    """Return the columns of a data file of ours, system columns included: the way back from `arrow_type`.

    Raises:
        ValueError: It holds a type that no field is stored as.
    """
    return ObjectType({member.name: _stored_type(member.type) for member in found})


def _stored_type(found: pa.DataType) -> FieldType:
    if pa.types.is_struct(found):
        return stored_fields(found)
    if pa.types.is_map(found):
        return MapType(_stored_type(found.item_type))
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return ArrayType(_stored_type(found.value_type))
    if pa.types.is_decimal(found):
        return DecimalType(found.precision, found.scale)
    if pa.types.is_large_string(found):
        return TEXT
    for kind, stored in _SCALARS.items():
        if found == stored:
            return Scalar(kind)
    message = f"no field is stored as {found}"
    raise ValueError(message)
