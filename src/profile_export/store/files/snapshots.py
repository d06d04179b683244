"""The snapshot of a tenant: which files count at one moment, read in one transaction."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import or_, select

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.plan import GRAPHS, PinnedBatch, PinnedFile, Snapshot, Source, SourcePart
from profile_export.domain.schemas.types import IDENTITY_MAP, SEGMENT_MEMBERSHIP, ObjectType
from profile_export.store.catalog.tenants import (
    IDENTITY,
    SEGMENT,
    id_of,
    registered_namespaces,
    renamed_namespaces,
    source_datasets,
    union_of,
)
from profile_export.store.db.database import Store, fetch_all, slices, uninterruptible
from profile_export.store.db.tables import batches, compactions, field_sets, files
from profile_export.store.db.tables import datasets as datasets_of_all
from profile_export.store.files.compactions import counting

_PINNED = select(
    batches.c.id, batches.c.number, batches.c.ingest_time, batches.c.dataset_id, batches.c.rows
).order_by(batches.c.number)
_PINNED_FILES = (
    select(batches.c.dataset_id, files.c.path, files.c.rows, files.c.bytes, files.c.field_set_id)
    .join(batches, files.c.batch_key == batches.c.key)
    .order_by(files.c.key)
)


class Snapshots(Store):
    """Snapshots of all tenants."""

    @uninterruptible
    async def take(self, tenant: Tenant) -> Snapshot:
        """Pin every batch of the tenant's sources that counts now, and every file: compacted ones where they count."""
        tenant_id = id_of(tenant)
        counts = (batches.c.tenant_id == tenant_id) & (batches.c.state == BatchState.SUCCEEDED)
        async with self.database.read() as connection:
            datasets = {dataset.id: dataset for dataset in await source_datasets(connection, tenant_id)}
            pinned = (await connection.execute(_PINNED.where(counts))).all()
            of_tenant = select(datasets_of_all.c.id).where(datasets_of_all.c.tenant_id == tenant_id)
            merged = select(compactions).where(compactions.c.dataset_id.in_(of_tenant), counting())
            compacted = (await connection.execute(merged.order_by(compactions.c.key))).all()
            held = batches.c.compaction_key.in_(merged.with_only_columns(compactions.c.key))
            outside = or_(batches.c.compaction_key.is_(None), ~held)
            alone = (await connection.execute(_PINNED_FILES.where(counts, outside))).all()
            rows = [*compacted, *alone]
            fields_of: dict[int, ObjectType] = {}
            for some in slices({row.field_set_id for row in rows}):
                sets = await fetch_all(connection, select(field_sets).where(field_sets.c.id.in_(some)))
                fields_of |= {row.id: row.fields for row in sets}
            # A generated id, since a tenant's names never form a path; batch ids are unique in a tenant only.
            tenant_key = (await connection.execute(select(tenant_id))).scalar_one_or_none()
            namespaces = await renamed_namespaces(connection, tenant_id, IDENTITY)
            segment_namespaces = await renamed_namespaces(connection, tenant_id, SEGMENT)
            spellings = {
                field: await registered_namespaces(connection, tenant_id, kind)
                for field, kind in ((IDENTITY_MAP, IDENTITY), (SEGMENT_MEMBERSHIP, SEGMENT))
            }
        parts: dict[str, dict[int, list[PinnedFile]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.dataset_id in datasets:
                parts[row.dataset_id][row.field_set_id].append(PinnedFile(row.path, row.rows, row.bytes))
        return Snapshot(
            datasets={dataset.id: dataset.kind for dataset in datasets.values()},
            sources=tuple(
                Source(
                    dataset_id,
                    datasets[dataset_id].kind,
                    tuple(
                        SourcePart(fields_of[key], tuple(pinned_files))
                        for key, pinned_files in by_fields.items()
                    ),
                    datasets[dataset_id].upserts,
                )
                for dataset_id, by_fields in parts.items()
            ),
            batches=tuple(
                PinnedBatch(row.id, row.number, row.ingest_time, row.dataset_id, row.rows)
                for row in pinned
                if row.dataset_id in datasets
            ),
            unions=await union_of(list(datasets.values())),
            namespaces=namespaces,
            segment_namespaces=segment_namespaces,
            spellings=spellings,
            graph_folder="" if tenant_key is None else f"{GRAPHS}/{tenant_key}",
        )
