"""Types of fields as plain JSON, to compare and to digest them."""

from __future__ import annotations

from typing import Any

from profile_export.domain.schema import (
    ArrayType,
    DecimalType,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
)


def to_json(field_type: FieldType) -> Any:
    """Write a type as plain JSON, order of fields included: a word for a scalar, one-key objects for the rest."""
    match field_type:
        case ObjectType(fields):
            return {"object": {name: to_json(member) for name, member in fields.items()}}
        case ArrayType(item):
            return {"array": to_json(item)}
        case MapSelection(value, keys, others):
            chosen = {key: to_json(kept) for key, kept in keys.items()}
            return {"map": to_json(value), "keys": chosen, "others": others and to_json(others)}
        case MapType(value):
            return {"map": to_json(value)}
        case DecimalType(precision, scale):
            return {"decimal": [precision, scale]}
        case scalar:
            return scalar.kind.value
