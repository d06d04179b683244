"""Arrays whose item type nobody knows yet: they wait in their rows, and are left out if no row teaches it (S13)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from profile_export.domain.schema import (
    ArrayType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
)


def typed_part(value: Any, known: FieldType | None) -> Any:
    """Leave out of a stored value what has no known type: arrays that no row taught an item type (S13).

    Returns:
        The value; None where nothing is left.
    """
    match known:
        case None:
            return None
        case ObjectType(fields):
            kept = {name: typed_part(member, fields.get(name)) for name, member in (value or {}).items()}
            return {name: member for name, member in kept.items() if member is not None} or None
        case MapType(item):
            kept = {key: typed_part(member, item) for key, member in (value or {}).items()}
            return {key: member for key, member in kept.items() if member is not None} or None
        case ArrayType(item) if value is not None:
            return [typed_part(member, item) for member in value]
    return value


def still_untyped(untyped: Iterable[FieldPath], known: ObjectType) -> set[FieldPath]:
    """Return those of the paths that `check_record` collected whose arrays have no item type even now.

    Raises:
        TypeConflictError: A later row taught that something else than an array stands there.
    """
    return {path for path in untyped if _leads_nowhere(path, known)}


def _leads_nowhere(path: FieldPath, known: ObjectType) -> bool:
    member: FieldType | None = known
    for depth, name in enumerate((*path, "[]")):
        match member, name:
            case None, _:
                return True
            case ArrayType(item), "[]":
                member = item
            case MapType(value), "*":
                member = value
            case ObjectType(fields), _ if name != "[]":
                member = fields.get(name)
            case found, _:
                raise TypeConflictError(path[:depth], found, "array" if name == "[]" else "object")
    return False
