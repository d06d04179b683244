"""Rows of datasets within a transaction: reading them, and what they come to know."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, Select, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Dataset, DatasetKind, SchemaRef
from profile_export.domain.errors import NotFoundError
from profile_export.domain.registered import check_class_fields, check_dataset_fields
from profile_export.domain.schema import ObjectType, union_objects
from profile_export.domain.unions import union_by_kind
from profile_export.domain.width import is_wide
from profile_export.processes.computing import compute_if
from profile_export.store.database import fetch_all, fetch_first, insert_new
from profile_export.store.tables import datasets, field_sets, tenants


async def dataset_of(connection: AsyncConnection, tenant_id: Any, dataset_id: str) -> Dataset:
    """Return a dataset, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id.
    """
    query = select(datasets).where(
        datasets.c.id == dataset_id, datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None)
    )
    row = await fetch_first(connection, query)
    if row is None:
        raise NotFoundError.of("dataset", dataset_id)
    return dataset_from(row)


async def source_datasets(connection: AsyncConnection, tenant_id: Any) -> list[Dataset]:
    """Return the datasets that exports read (S11), oldest first."""
    query = select(datasets).where(datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None))
    rows = await fetch_all(connection, query.order_by(datasets.c.create_time, datasets.c.id))
    return [dataset for dataset in map(dataset_from, rows) if dataset.is_source]


@dataclass(frozen=True, slots=True)
class Growth:
    """What a dataset will know, checked beside what all sources of its tenant knew at a revision of these."""

    revision: int
    fields: ObjectType
    is_new: bool


async def foresee_growth(
    connection: AsyncConnection, tenant_id: Any, dataset: Dataset, found: ObjectType
) -> Growth:
    """Do the work of `grow_fields` before the writing transaction, for which everybody waits.

    Raises:
        TypeConflictError: As `grow_fields`.
        TooManyError: As `grow_fields`.
    """
    revision = (await connection.execute(_revision_of(tenant_id))).scalar_one()
    wide = is_wide([dataset.fields, found])
    fields = await compute_if(wide, union_objects, dataset.fields, found)
    is_new = fields is not dataset.fields
    if is_new:
        await compute_if(wide, check_dataset_fields, fields)
        sources = await source_datasets(connection, tenant_id)
        grown = [replace(one, fields=fields) if one.id == dataset.id else one for one in sources]
        await _check_beside_one_another(grown, newcomers=[dataset.id])
    return Growth(revision, fields, is_new)


async def grow_as_foreseen(
    connection: AsyncConnection, tenant_id: int, dataset_id: str, growth: Growth
) -> bool:
    """Make known what was foreseen; False if the sources know more by now, so that it has to be looked at again."""
    if (await connection.execute(_revision_of(tenant_id))).scalar_one() != growth.revision:
        return False
    if growth.is_new:
        query = update(datasets).where(datasets.c.id == dataset_id)
        await connection.execute(query.values(fields=growth.fields))
        await _sources_changed(connection, tenant_id)
    return True


def _revision_of(tenant_id: Any) -> Select[Any]:
    return select(tenants.c.schema_revision).where(tenants.c.id == tenant_id)


async def _sources_changed(connection: AsyncConnection, tenant_id: Any) -> None:
    query = update(tenants).where(tenants.c.id == tenant_id)
    await connection.execute(query.values(schema_revision=tenants.c.schema_revision + 1))


async def grow_fields(
    connection: AsyncConnection, tenant_id: int, dataset: Dataset, found: ObjectType
) -> None:
    """Make what a dataset came to know known, within a transaction; its `update_time` stays as it was.

    Raises:
        TypeConflictError: It contradicts what the dataset or the union of its class knows.
        TooManyError: The dataset, or its class, would know more fields than may be.
    """
    await grow_all(connection, tenant_id, [dataset], found)


async def grow_all(
    connection: AsyncConnection, tenant_id: int, growing: Sequence[Dataset], found: ObjectType
) -> None:
    """Do as `grow_fields` for several datasets, which all come to know the same.

    Raises:
        TypeConflictError: As `grow_fields`.
        TooManyError: As `grow_fields`.
    """
    changed: dict[str, ObjectType] = {}
    for dataset in growing:
        wide = is_wide([dataset.fields, found])
        fields = await compute_if(wide, union_objects, dataset.fields, found)
        if fields is not dataset.fields:
            await compute_if(wide, check_dataset_fields, fields)
            changed[dataset.id] = fields
    if not changed:
        return
    rows = [{"of_dataset": dataset_id, "fields": fields} for dataset_id, fields in changed.items()]
    await connection.execute(update(datasets).where(datasets.c.id == bindparam("of_dataset")), rows)
    await check_union(connection, tenant_id, newcomers=changed)


async def check_union(connection: AsyncConnection, tenant_id: Any, newcomers: Collection[str]) -> None:
    """Refuse what datasets have come to know if it contradicts other sources, within a transaction.

    Raises:
        TypeConflictError: It does; a newcomer is told as the one that brings the conflict.
        TooManyError: They would know more fields than a class may.
    """
    await _sources_changed(connection, tenant_id)
    await _check_beside_one_another(await source_datasets(connection, tenant_id), newcomers)


async def _check_beside_one_another(sources: Sequence[Dataset], newcomers: Collection[str]) -> None:
    unions = await union_of(sorted(sources, key=lambda source: source.id in newcomers))
    for union in unions.values():
        await compute_if(is_wide([union]), check_class_fields, union)


async def union_of(sources: Sequence[Dataset]) -> Mapping[DatasetKind, ObjectType]:
    """Return the union schemas of sources, beside the loop if they know very much; raises as `union_by_kind`."""
    wide = is_wide(source.fields for source in sources)
    return await compute_if(wide, union_by_kind, sources)


def dataset_from(row: Row[Any]) -> Dataset:
    """Make a dataset of its row."""
    return Dataset(
        id=row.id,
        name=row.name,
        description=row.description,
        schema=SchemaRef(row.schema_id, row.content_type),
        kind=DatasetKind(row.kind),
        tags=row.tags,
        identity_fields=row.identity_fields,
        declared_fields=row.declared_fields,
        fields=row.fields,
        create_time=row.create_time,
        update_time=row.update_time,
        iceberg=row.iceberg,
        batch_retention=row.batch_retention,
    )


async def field_sets_of(
    connection: AsyncConnection, dataset_id: str, different: Mapping[str, ObjectType]
) -> Mapping[str, int]:
    """Return the keys of the fields that files of a dataset were written with, each different set kept once.

    `different` are the sets by their digests, as are the keys.
    """
    rows = [
        {"dataset_id": dataset_id, "digest": digest, "fields": fields} for digest, fields in different.items()
    ]
    await connection.execute(insert_new(connection, field_sets), rows)
    query = select(field_sets.c.digest, field_sets.c.id).where(
        field_sets.c.dataset_id == dataset_id, field_sets.c.digest.in_(different)
    )
    return {row.digest: row.id for row in await connection.execute(query)}
