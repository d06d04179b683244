"""How much one tenant may have: of what is shared out at a time, and of what its data makes known for good."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta

from profile_export.domain.errors import ExhaustedError, FailedPreconditionError
from profile_export.domain.schemas.types import FieldPath, FieldType, ObjectType, all_within

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Quotas:
    """The shares of each tenant, None: as much as it likes.

    `watches` and `transfers`, which are uploads and downloads that run, count per server, all else over all servers.
    """

    waiting_jobs: int | None = 1_000
    running_jobs: int | None = 100
    datasets: int | None = 10_000
    loading_batches: int | None = 1_000
    staged_bytes: int | None = 100 * _GB
    watches: int | None = 25_000
    transfers: int | None = 256


DEFAULT_QUOTAS = Quotas()


def quota_exceeded(
    quota: str, limit: int, used: int, way_out: str, retry_after: timedelta | None = None
) -> ExhaustedError:
    """Return the refusal of what would be more than a tenant's share; `quota` is a name in `Quotas`.

    `way_out` is a sentence that says what makes room, and after `retry_after` there may be room by itself; None: never.
    """
    what = quota.replace("_", " ")
    return ExhaustedError(
        "QUOTA_EXCEEDED",
        f"This tenant may have {limit:,} {what} and has {used:,}. {way_out}",
        metadata={"quota": quota, "limit": str(limit), "used": str(used)},
        retry_after=retry_after,
    )


MOST_BATCH_NAMESPACES = 1_000
"""How many namespaces one batch names, identities and segments apart."""
MOST_BATCH_SPELLINGS = 2_000
"""In how many spellings one batch names them."""
MOST_NAMESPACES = 10_000
"""How many namespaces a tenant has, identities and segments apart."""
MOST_SPELLINGS = 20_000
"""In how many spellings its data names them."""
MOST_DATASET_FIELDS = 10_000
"""How many fields a dataset or a schema knows, at all depths, as `field_count` counts them."""
MOST_CLASS_FIELDS = 20_000
"""How many the union of a class knows."""
LONGEST_NAME = 1_024
"""How many characters a field's name has: as many as the path of one that an export asks for."""
LONGEST_NAMESPACE = 255
"""How many characters a namespace has."""


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
    """Raise TooManyError if a batch has too many namespaces or spellings of them, or one that is too long."""
    longest = max(map(len, spellings), default=0)
    if longest > LONGEST_NAMESPACE:
        raise TooManyError(
            "NAMESPACE_TOO_LONG",
            f"A namespace of {kind} has {longest:,} characters, and may have {LONGEST_NAMESPACE}. It names a kind of "
            "identifier or segment, such as 'Email': send what is longer as the id.",
            metadata={"kind": kind, "length": str(longest), "limit": str(LONGEST_NAMESPACE)},
        )
    for found, limit in ((namespaces, MOST_BATCH_NAMESPACES), (spellings, MOST_BATCH_SPELLINGS)):
        if len(found) > limit:
            raise too_many_namespaces(kind, len(found), limit, "The batch")


def check_tenant_namespaces(kind: str, namespaces: int, spellings: int) -> None:
    """Raise TooManyError if a tenant would have too many namespaces or spellings of them."""
    for found, limit in ((namespaces, MOST_NAMESPACES), (spellings, MOST_SPELLINGS)):
        if found > limit:
            raise too_many_namespaces(kind, found, limit, "The tenant")


def check_dataset_fields(fields: ObjectType, of: str = "The dataset") -> None:
    """Raise TooManyError if a dataset, or what `of` names, would know too many fields, or one with too long a name."""
    objects = (kind for kind in all_within(fields) if isinstance(kind, ObjectType))
    longest = max((len(name) for kind in objects for name in kind.fields), default=0)
    if longest > LONGEST_NAME:
        raise TooManyError(
            "FIELD_NAME_TOO_LONG",
            f"{of} would know a field whose name has {longest:,} characters, and may have {LONGEST_NAME:,}. Send what "
            "is longer as a value, or the key of a map.",
            metadata={"length": str(longest), "limit": str(LONGEST_NAME)},
        )
    _check_count(field_count(fields), MOST_DATASET_FIELDS, of)


def check_declared_paths(paths: Iterable[FieldPath]) -> None:
    """Raise TooManyError if paths alone name more fields than a dataset knows, before types are made of them.

    A few megabytes of deep paths become objects by the hundred thousand, and while Python looks those over for garbage
    the server answers nobody.
    """
    named = {hash(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
    _check_count(len(named), MOST_DATASET_FIELDS, "The dataset")


def check_class_fields(fields: ObjectType) -> None:
    """Raise TooManyError if the union of a class would know too many fields."""
    _check_count(field_count(fields), MOST_CLASS_FIELDS, "The union of the class")


def _check_count(count: int, limit: int, of: str) -> None:
    if count > limit:
        raise TooManyError(
            "TOO_MANY_FIELDS",
            f"{of} would know {count:,} fields, objects and what is within them counted, and may know {limit:,}. Send "
            "names that differ from row to row as values, or keys of a map.",
            metadata={"count": str(count), "limit": str(limit)},
        )


def field_count(kind: FieldType) -> int:
    """Return how many fields a type has at all depths.

    An object counts beside what is within it, and so do the items of an array and the values of a map: a few names
    many levels deep cost as much as many names.
    """
    return sum(1 for _ in all_within(kind)) - 1
