"""Types of fields as JSON text in columns.

pydantic reads and writes what the store keeps as JSON, a whole text in one go, in which nothing else runs in the
process. Where that takes long is where there are very many fields, so types are read and written by functions of ours.
"""

from __future__ import annotations

from sys import intern
from typing import Any

from pydantic_core import core_schema

from profile_export.domain.catalog import FieldDeclaration
from profile_export.domain.schema import (
    ArrayType,
    DecimalType,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

# One of each, so that types which are the same can be told by looking whether they are one.
_SCALARS = {kind.value: Scalar(kind) for kind in ScalarKind}


def read_type(plain: Any) -> FieldType:
    """Read a type of plain JSON.

    Raises:
        KeyError, TypeError: It is none.
    """
    if "kind" in plain:
        return _SCALARS[plain["kind"]]
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
        case Scalar(word):
            return {"kind": word.value}
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
        # Its way in for classes that should know nothing of it.
        hook = classmethod(lambda _cls, _source, _handler, known=schema: known)
        setattr(kind, "__get_pydantic_core_schema__", hook)  # noqa: B010 - no attribute that the class declares
