"""Union schemas: what all sources of one class know together (S11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from profile_export.domain.catalog import BUILT_IN_SCHEMAS, Dataset, DatasetKind
from profile_export.domain.schema import (
    TIME_SERIES_EVENTS,
    ArrayType,
    GrowingObject,
    ObjectType,
    TypeConflictError,
    union_objects,
)


def union_by_kind(sources: Sequence[Dataset]) -> Mapping[DatasetKind, ObjectType]:
    """Return the union schemas of record and event datasets.

    Raises:
        TypeConflictError: Two datasets contradict each other; it names both.
    """
    unions: dict[DatasetKind, GrowingObject] = {
        schema.kind: GrowingObject(schema.fields)
        for schema in BUILT_IN_SCHEMAS.values()
        if schema.kind in {DatasetKind.RECORD, DatasetKind.EVENT}
    }
    earlier: list[Dataset] = []
    for dataset in sources:
        try:
            unions[dataset.kind].add(dataset.fields)
        except TypeConflictError as conflict:
            raise conflict.between(dataset.id, _who_knows(earlier, dataset)) from None
        earlier.append(dataset)
    return {kind: union.type() for kind, union in unions.items()}


def _who_knows(earlier: Sequence[Dataset], dataset: Dataset) -> str:
    """Name the first dataset that the newcomer contradicts; the built-in schema if there is none."""
    for other in earlier:
        if other.kind is dataset.kind:
            try:
                union_objects(other.fields, dataset.fields)
            except TypeConflictError:
                return other.id
    return dataset.schema.id


def union_schema(sources: Sequence[Dataset], kind: DatasetKind) -> ObjectType:
    """Return the union schema of a class as people see it: that of records also has the attached events.

    Raises:
        TypeConflictError: As `union_by_kind`.
    """
    unions = union_by_kind(sources)
    if kind is not DatasetKind.RECORD:
        return unions[kind]
    events = {TIME_SERIES_EVENTS: ArrayType(unions[DatasetKind.EVENT])}
    return ObjectType({**unions[DatasetKind.RECORD].fields, **events})
