"""How DuckDB spells texts, names and types."""

from __future__ import annotations

from profile_export.domain.schemas.types import (
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

_TYPES = {
    ScalarKind.TEXT: "VARCHAR",
    ScalarKind.BOOLEAN: "BOOLEAN",
    ScalarKind.LONG: "BIGINT",
    ScalarKind.DOUBLE: "DOUBLE",
    ScalarKind.DATE: "DATE",
    ScalarKind.TIMESTAMP: "TIMESTAMPTZ",
}


def text(value: str) -> str:
    """Quote a text."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """Quote a name."""
    return '"' + value.replace('"', '""') + '"'


def type_name(kind: FieldType) -> str:
    """Write a field type as DuckDB does."""
    match kind:
        case ObjectType(fields):
            return f"STRUCT({', '.join(f'{name(member)} {type_name(field)}' for member, field in fields.items())})"
        case ArrayType(item):
            return f"{type_name(item)}[]"
        case MapType(value):
            return f"MAP(VARCHAR, {type_name(value)})"
        case DecimalType(precision, scale):
            return f"DECIMAL({precision}, {scale})"
        case Scalar(scalar):
            return _TYPES[scalar]
