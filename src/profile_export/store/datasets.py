"""Rows of datasets within a transaction: reading them, and what they come to know."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Dataset, DatasetKind, SchemaRef
from profile_export.domain.errors import NotFoundError
from profile_export.domain.registered import check_class_fields, check_dataset_fields
from profile_export.domain.schema import ObjectType, union_objects
from profile_export.domain.unions import union_by_kind
from profile_export.store.database import insert_new
from profile_export.store.tables import datasets, field_sets


async def dataset_of(connection: AsyncConnection, tenant_id: Any, dataset_id: str) -> Dataset:
    """Return a dataset, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id.
    """
    query = select(datasets).where(
        datasets.c.id == dataset_id, datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None)
    )
    row = (await connection.execute(query)).first()
    if row is None:
        raise NotFoundError.of("dataset", dataset_id)
    return dataset_from(row)


async def source_datasets(connection: AsyncConnection, tenant_id: Any) -> list[Dataset]:
    """Return the datasets that exports read (S11), oldest first."""
    rows = await connection.execute(
        select(datasets)
        .where(datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None))
        .order_by(datasets.c.create_time, datasets.c.id)
    )
    return [dataset for dataset in map(dataset_from, rows) if dataset.is_source]


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
    changed = {
        dataset.id: fields
        for dataset in growing
        if (fields := union_objects(dataset.fields, found)) != dataset.fields
    }
    if not changed:
        return
    for fields in changed.values():
        check_dataset_fields(fields)
    rows = [{"of_dataset": dataset_id, "fields": fields} for dataset_id, fields in changed.items()]
    await connection.execute(update(datasets).where(datasets.c.id == bindparam("of_dataset")), rows)
    await check_union(connection, tenant_id, newcomers=changed)


async def check_union(connection: AsyncConnection, tenant_id: Any, newcomers: Collection[str]) -> None:
    """Refuse what datasets have come to know if it contradicts other sources, within a transaction.

    Raises:
        TypeConflictError: It does; a newcomer is told as the one that brings the conflict.
        TooManyError: They would know more fields than a class may.
    """
    sources = await source_datasets(connection, tenant_id)
    for union in union_by_kind(sorted(sources, key=lambda source: source.id in newcomers)).values():
        check_class_fields(union)


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
