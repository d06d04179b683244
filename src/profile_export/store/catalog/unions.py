"""What all sources of a tenant know together, looked at before the writing transaction, for which everybody waits.

A dataset, a change of one or a schema is judged beside the sources at one revision of what these know. In the writing
transaction it is only seen that the revision is still the same; only where it is not, it is judged there once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.allowances import check_class_fields, check_dataset_fields
from profile_export.domain.catalog.datasets import Dataset
from profile_export.domain.schemas.types import ObjectType, TypeConflictError, is_wide, union_objects
from profile_export.processes.computing import compute_if
from profile_export.store.catalog.tenants import source_datasets, union_of
from profile_export.store.db.columns import write_ahead
from profile_export.store.db.database import KeptUnions, Unions
from profile_export.store.db.tables import datasets, tenants


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the sources of a tenant will know together with newcomers; None if nobody had to find out.

    `revision` is that of what they knew, `grows` says whether the newcomers add anything.
    """

    revision: int
    unions: Unions | None
    grows: bool = False


async def look_ahead(
    connection: AsyncConnection, kept: KeptUnions, tenant_id: Any, newcomers: Sequence[Dataset]
) -> Outlook:
    """Judge datasets, as they will be, beside the other sources of their tenant.

    Raises:
        TypeConflictError: They contradict these; a newcomer is told as the one that brings the conflict.
        TooManyError: They would know more fields together than a class may.
    """
    key, revision = await _revision(connection, tenant_id)
    unions = kept.at(key, revision)
    coming = [dataset for dataset in newcomers if dataset.is_source]
    if not coming:
        return Outlook(revision, unions)
    try:
        unions = unions or await known_unions(connection, kept, tenant_id)
        wide = is_wide([*unions.values(), *(dataset.fields for dataset in coming)])
        joined = await compute_if(wide, _joined, unions, coming)
    except TypeConflictError:
        # Who contradicts whom is told by those who know; and in what order types widen can matter.
        there = {dataset.id: dataset for dataset in await source_datasets(connection, tenant_id)}
        for dataset in coming:
            there.pop(dataset.id, None)
        unions, joined = {}, await union_of([*there.values(), *coming])
    grown = [union for kind, union in joined.items() if union is not unions.get(kind)]
    for union in grown:
        await compute_if(is_wide([union]), check_class_fields, union)
    return Outlook(revision, joined, grows=bool(grown))


async def known_unions(connection: AsyncConnection, kept: KeptUnions, tenant_id: Any) -> Unions:
    """Return what the sources of a tenant know together; raises as `union_of`."""
    key, revision = await _revision(connection, tenant_id)
    unions = kept.at(key, revision)
    if unions is None:
        unions = await union_of(await source_datasets(connection, tenant_id))
        kept.keep(key, revision, unions)
    return unions


async def _revision(connection: AsyncConnection, tenant_id: Any) -> tuple[int, int]:
    """Return the tenant's key and the revision of what its sources know; zeros before there is such a tenant."""
    query = select(tenants.c.id, tenants.c.schema_revision).where(tenants.c.id == tenant_id)
    row = (await connection.execute(query)).first()
    return (row.id, row.schema_revision) if row else (0, 0)


def _joined(unions: Unions, coming: Sequence[Dataset]) -> Unions:
    joined = dict(unions)
    for dataset in coming:
        joined[dataset.kind] = union_objects(joined[dataset.kind], dataset.fields)
    return joined


@dataclass(frozen=True, slots=True)
class Growth:
    """What datasets will know, by their ids, and of those that will know more what statements take for it."""

    outlook: Outlook
    fields: Mapping[str, ObjectType]
    changed: Mapping[str, Any]


async def foresee_growth(
    connection: AsyncConnection,
    kept: KeptUnions,
    tenant_id: Any,
    growing: Iterable[tuple[Dataset, ObjectType]],
) -> Growth:
    """Judge what datasets come to know.

    Raises:
        TypeConflictError: It contradicts what a dataset or the union of its class knows.
        TooManyError: A dataset, or its class, would know more fields than may be.
    """
    grown = []
    fields = {}
    for dataset, found in growing:
        wide = is_wide([dataset.fields, found])
        known = fields[dataset.id] = await compute_if(wide, union_objects, dataset.fields, found)
        if known is not dataset.fields:
            await compute_if(wide, check_dataset_fields, known)
            grown.append(replace(dataset, fields=known))
    outlook = await look_ahead(connection, kept, tenant_id, grown)
    changed = {dataset.id: await write_ahead(datasets.c.fields, dataset.fields) for dataset in grown}
    return Growth(outlook, fields, changed)


async def grow(connection: AsyncConnection, tenant_id: int, growth: Growth) -> None:
    """Make known what was foreseen and still holds; the `update_time` of the datasets stays as it was."""
    if growth.changed:
        rows = [{"of_dataset": dataset_id, "grown": fields} for dataset_id, fields in growth.changed.items()]
        query = update(datasets).where(datasets.c.id == bindparam("of_dataset"))
        await connection.execute(query.values(fields=bindparam("grown")), rows)
        await sources_changed(connection, tenant_id)


async def still_holds(connection: AsyncConnection, tenant_id: int, outlook: Outlook) -> bool:
    """Say whether sources and schemas are those that were looked at, within the writing transaction."""
    query = select(tenants.c.schema_revision).where(tenants.c.id == tenant_id)
    revision: int = (await connection.execute(query)).scalar_one()
    return revision == outlook.revision


async def sources_changed(connection: AsyncConnection, tenant_id: Any) -> None:
    """Note that what was judged before does not hold any more, in the transaction that changes it."""
    query = update(tenants).where(tenants.c.id == tenant_id)
    await connection.execute(query.values(schema_revision=tenants.c.schema_revision + 1))


def keep_unions(kept: KeptUnions, tenant_id: int, outlook: Outlook) -> None:
    """Keep what the sources know now that what was foreseen is committed, as the one change since."""
    if outlook.unions is not None:
        kept.keep(tenant_id, outlook.revision + 1, outlook.unions)
