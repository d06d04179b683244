"""How wide schemas are: what takes long with wide ones is done beside the loop."""

from __future__ import annotations

from collections.abc import Iterable

from profile_export.domain.schema import ArrayType, FieldType, MapType, ObjectType

WIDE = 500
"""Of so many types together each step takes a few milliseconds."""


def is_wide(schemas: Iterable[ObjectType]) -> bool:
    """Whether schemas hold more than `WIDE` types together, at any depth; it looks at no more than so many of them."""
    waiting: list[FieldType] = []
    for schema in schemas:
        waiting.append(schema)
        for kind in waiting:
            match kind:
                case ObjectType(fields):
                    if len(waiting) + len(fields) > WIDE:
                        return True
                    waiting += fields.values()
                case ArrayType(inner) | MapType(inner):
                    waiting.append(inner)
            if len(waiting) > WIDE:
                return True
    return False
