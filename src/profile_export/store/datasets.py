"""Rows of datasets within a transaction: reading them, and what they come to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Dataset, DatasetKind, SchemaRef
from profile_export.domain.errors import NotFoundError
from profile_export.domain.schema import ObjectType
from profile_export.domain.unions import union_by_kind
from profile_export.domain.width import is_wide
from profile_export.processes.computing import compute_if
from profile_export.store.database import fetch_all, fetch_first, insert_new
from profile_export.store.tables import datasets, field_sets


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
    connection: AsyncConnection, dataset_id: str, different: Mapping[str, Any]
) -> Mapping[str, int]:
    """Return the keys of the fields that files of a dataset were written with, each different set kept once.

    `different` are the sets by their digests, as statements take them; by these are the keys, too.
    """
    rows = [
        {"dataset_id": dataset_id, "digest": digest, "fields": fields} for digest, fields in different.items()
    ]
    await connection.execute(insert_new(connection, field_sets), rows)
    query = select(field_sets.c.digest, field_sets.c.id).where(
        field_sets.c.dataset_id == dataset_id, field_sets.c.digest.in_(different)
    )
    return {row.digest: row.id for row in await connection.execute(query)}
