"""Datasets and changes of them, judged before the writing transaction that they are for; see `unions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import (
    Dataset,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    SchemaRef,
    check_declared_fields,
    check_identity_fields,
    check_tags,
    initial_fields,
    usable_kind,
    with_declared,
)
from profile_export.domain.registered import check_dataset_fields
from profile_export.domain.width import WIDE, is_wide
from profile_export.processes.computing import compute_if
from profile_export.store.column_types import write_ahead
from profile_export.store.database import database_time
from profile_export.store.kept_unions import KeptUnions
from profile_export.store.schemas import newest_schema
from profile_export.store.tables import datasets
from profile_export.store.unions import Outlook, look_ahead


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What a caller says of a dataset; `schema` is built in or registered, `iceberg` None means as its kind has it.

    `batch_retention` None means for ever.
    """

    name: str
    description: str
    schema: SchemaRef
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """What a caller changes of a dataset; None stays as it is, declared fields come on top of those it has.

    A `batch_retention` of zero means for ever.
    """

    name: str | None = None
    description: str | None = None
    tags: Mapping[str, tuple[str, ...]] | None = None
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class JudgedNew:
    """A new dataset that may be: `values` are those of its row that are known before it is written."""

    outlook: Outlook
    values: dict[str, Any]
    identities: tuple[IdentityField, ...]


@dataclass(frozen=True, slots=True)
class JudgedChange:
    """A change that may be: `values` are the new ones of its row, none if nothing changes.

    `is_felt` says whether the dataset knows more, or begins or ceases to be a source; `shrinks`, that it ceases.
    """

    outlook: Outlook
    values: dict[str, Any]
    is_felt: bool = False
    shrinks: bool = False


async def judge_new(
    connection: AsyncConnection, kept: KeptUnions, tenant_id: Any, new: NewDataset, dataset_id: str
) -> JudgedNew:
    """Judge a new dataset.

    Raises:
        NotFoundError: There is no such schema.
        InvalidArgumentError: Its identity fields, declared fields or tags cannot work.
        TypeConflictError: A type contradicts the schema, or the union of the class.
        TooManyError: More fields would be known than may be.
    """
    schema = await newest_schema(connection, tenant_id, new.schema.id)
    kind = usable_kind(schema)
    identities = _with_those_of_the_schema(new.identity_fields, schema.identity_fields)
    check_identity_fields(kind, identities)
    wide = len(new.declared_fields) > WIDE or is_wide([schema.fields])
    await compute_if(wide, check_declared_fields, kind, new.declared_fields, "declared_fields")
    check_tags(kind, new.tags)
    fields = await compute_if(wide, initial_fields, schema, identities, new.declared_fields)
    await compute_if(wide, check_dataset_fields, fields)
    now = await database_time(connection)
    dataset = Dataset(
        id=dataset_id,
        name=new.name,
        description=new.description,
        schema=new.schema,
        kind=kind,
        tags=new.tags,
        identity_fields=identities,
        declared_fields=new.declared_fields,
        fields=fields,
        create_time=now,
        update_time=now,
        iceberg=kind is DatasetKind.UNION if new.iceberg is None else new.iceberg,
        batch_retention=new.batch_retention,
    )
    outlook = await look_ahead(connection, kept, tenant_id, [dataset])
    values = {
        "id": dataset_id,
        "name": dataset.name,
        "description": dataset.description,
        "schema_id": new.schema.id,
        "content_type": new.schema.content_type,
        "kind": kind.value,
        "tags": dataset.tags,
        "identity_fields": await write_ahead(datasets.c.identity_fields, identities),
        "declared_fields": await write_ahead(datasets.c.declared_fields, new.declared_fields),
        "fields": await write_ahead(datasets.c.fields, fields),
        "iceberg": dataset.iceberg,
        "batch_retention": dataset.batch_retention,
    }
    return JudgedNew(outlook, values, identities)


async def judge_change(
    connection: AsyncConnection, kept: KeptUnions, tenant_id: Any, dataset: Dataset, change: DatasetChange
) -> JudgedChange:
    """Judge the change of a dataset.

    Raises:
        InvalidArgumentError: The declared fields or tags cannot work.
        TypeConflictError: A declared type narrows what is known, or the union of the class has another one.
        TooManyError: More fields would be known than may be.
    """
    added = change.declared_fields
    wide = len(added) > WIDE or is_wide([dataset.fields])
    await compute_if(wide, check_declared_fields, dataset.kind, added, "add_declared_fields")
    tags = dataset.tags if change.tags is None else change.tags
    check_tags(dataset.kind, tags)
    retention = dataset.batch_retention if change.batch_retention is None else change.batch_retention
    changed = replace(
        dataset,
        name=dataset.name if change.name is None else change.name,
        description=dataset.description if change.description is None else change.description,
        tags=tags,
        iceberg=dataset.iceberg if change.iceberg is None else change.iceberg,
        batch_retention=retention or None,
        declared_fields=await compute_if(wide, _with_newer, dataset.declared_fields, added),
        fields=await compute_if(wide, with_declared, dataset.fields, added),
    )
    knows_more = changed.fields is not dataset.fields
    turns = changed.is_source != dataset.is_source
    if knows_more:
        await compute_if(wide, check_dataset_fields, changed.fields)
    newcomers = [changed] if knows_more or turns else []
    outlook = await look_ahead(connection, kept, tenant_id, newcomers)
    if changed == dataset:
        return JudgedChange(outlook, {})
    values = {
        "name": changed.name,
        "description": changed.description,
        "tags": changed.tags,
        "iceberg": changed.iceberg,
        "batch_retention": changed.batch_retention,
        "declared_fields": await write_ahead(datasets.c.declared_fields, changed.declared_fields),
        "fields": await write_ahead(datasets.c.fields, changed.fields),
    }
    return JudgedChange(outlook, values, is_felt=knows_more or turns, shrinks=dataset.is_source and turns)


def _with_those_of_the_schema(
    own: Sequence[IdentityField], schemas: Sequence[IdentityField]
) -> tuple[IdentityField, ...]:
    """Return the identity fields of a dataset: what it says of a path goes before what its schema says."""
    said = {field.path for field in own}
    has_primary = any(field.primary for field in own)
    inherited = (field for field in schemas if field.path not in said)
    return (
        *own,
        *(IdentityField(one.path, one.namespace, one.primary and not has_primary) for one in inherited),
    )


def _with_newer(
    known: Sequence[FieldDeclaration], added: Sequence[FieldDeclaration]
) -> tuple[FieldDeclaration, ...]:
    types = {declared.path: declared.type for declared in (*known, *added)}
    return tuple(FieldDeclaration(path, kind) for path, kind in types.items())
