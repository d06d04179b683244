"""Union schemas: what all sources of one class know together (S11), and how a registered schema may go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, Dataset, DatasetKind, Schema
from profile_export.domain.errors import AlreadyExistsError
from profile_export.domain.schemas.types import (
    TIME_SERIES_EVENTS,
    ArrayType,
    GrowingObject,
    ObjectType,
    TypeConflictError,
    leaves,
    type_at,
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


def next_version(known: Schema | None, read: Schema) -> Schema | None:
    """Return the version that a document becomes; None if its newest version is the same.

    It has what is built in of its class, which may also be a document under the id of the class itself.

    Raises:
        AlreadyExistsError: The id is that of the built-in union schema, which merges what others say.
        TypeConflictError: It narrows a type, changes a kind or leaves out a field of the version before.
    """
    if read.class_id:
        read = replace(read, fields=union_objects(BUILT_IN_SCHEMAS[read.class_id].fields, read.fields))
    if known is None:
        return read
    if known.kind is DatasetKind.UNION:
        raise AlreadyExistsError(
            "SCHEMA_BUILT_IN",
            f"'{read.id}' is built in and merges the schemas of its class; register under another $id.",
            metadata={"id": read.id},
        )
    newer = replace(read, version=known.version, create_time=known.create_time)
    if newer == known:
        return None
    _check_only_wider(known.fields, read.fields)
    return replace(newer, version=known.version + 1)


def _check_only_wider(known: ObjectType, found: ObjectType) -> None:
    for path, kind in leaves(union_objects(known, found)):
        if type_at(known, path) is not None and type_at(found, path) != kind:
            raise TypeConflictError(path, kind, type_at(found, path) or "left out")


def check_beside(sources: Sequence[Dataset], schema: Schema) -> None:
    """Refuse a schema whose datasets could not stand beside the tenant's sources.

    Raises:
        TypeConflictError: It contradicts one of them, which is named.
    """
    for dataset in sources:
        if dataset.kind is schema.kind:
            try:
                union_objects(dataset.fields, schema.fields)
            except TypeConflictError as conflict:
                raise conflict.between(schema.id, dataset.id) from None
