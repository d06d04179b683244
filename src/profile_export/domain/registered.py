"""What a tenant's data makes known for good: how many fields and namespaces there may be of it."""

from __future__ import annotations

from collections.abc import Collection

from profile_export.domain.errors import FailedPreconditionError
from profile_export.domain.schema import ArrayType, FieldType, MapType, ObjectType

MOST_BATCH_NAMESPACES = 1_000
"""How many namespaces one batch names, identities and segments apart."""
MOST_BATCH_SPELLINGS = 2_000
"""In how many spellings one batch names them."""
MOST_NAMESPACES = 10_000
"""How many namespaces a tenant has, identities and segments apart."""
MOST_SPELLINGS = 20_000
"""In how many spellings its data names them."""
MOST_DATASET_FIELDS = 10_000
"""How many fields a dataset or a schema knows, those within arrays and maps included."""
MOST_CLASS_FIELDS = 20_000
"""How many the union of a class knows."""


class TooManyError(FailedPreconditionError):
    """More would be made known for good than there may be."""


def too_many_namespaces(kind: str, count: int, limit: int, of: str) -> TooManyError:
    """Return the refusal of namespaces; `kind` is that of what they name, `of` says whose they are."""
    return TooManyError(
        "TOO_MANY_NAMESPACES",
        f"{of} would have {count:,} {kind} namespaces or spellings of them, and may have {limit:,}. A namespace names "
        "a kind of identifier or segment, such as 'Email': send what differs from row to row as the id.",
        metadata={"kind": kind, "count": str(count), "limit": str(limit)},
    )


def check_batch_namespaces(kind: str, namespaces: Collection[str], spellings: Collection[str]) -> None:
    """Refuse a batch that names too many namespaces.

    Raises:
        TooManyError: It does, or in too many spellings.
    """
    for found, limit in ((namespaces, MOST_BATCH_NAMESPACES), (spellings, MOST_BATCH_SPELLINGS)):
        if len(found) > limit:
            raise too_many_namespaces(kind, len(found), limit, "The batch")


def check_tenant_namespaces(kind: str, namespaces: int, spellings: int) -> None:
    """Refuse more namespaces than a tenant may have.

    Raises:
        TooManyError: There would be.
    """
    for found, limit in ((namespaces, MOST_NAMESPACES), (spellings, MOST_SPELLINGS)):
        if found > limit:
            raise too_many_namespaces(kind, found, limit, "The tenant")


def check_dataset_fields(fields: ObjectType, of: str = "The dataset") -> None:
    """Refuse a dataset, or what `of` names, that would know too many fields.

    Raises:
        TooManyError: It would.
    """
    _check_fields(fields, MOST_DATASET_FIELDS, of)


def check_class_fields(fields: ObjectType) -> None:
    """Refuse a union of a class that would know too many fields.

    Raises:
        TooManyError: It would.
    """
    _check_fields(fields, MOST_CLASS_FIELDS, "The union of the class")


def _check_fields(fields: ObjectType, limit: int, of: str) -> None:
    count = field_count(fields)
    if count > limit:
        raise TooManyError(
            "TOO_MANY_FIELDS",
            f"{of} would know {count:,} fields, and may know {limit:,}. Send names that differ from row to row as "
            "values, or keys of a map.",
            metadata={"count": str(count), "limit": str(limit)},
        )


def field_count(kind: FieldType) -> int:
    """Return how many single values a type names, those of the items of arrays and maps included."""
    count, waiting = 0, [kind]
    while waiting:
        match waiting.pop():
            case ObjectType(fields):
                waiting += fields.values()
            case ArrayType(item):
                waiting.append(item)
            case MapType(value):
                waiting.append(value)
            case _:
                count += 1
    return count
