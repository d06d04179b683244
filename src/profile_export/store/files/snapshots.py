"""Snapshots: which files of a tenant count at one moment; and the compacted files that they pin instead of many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union_all,
    update,
)

from profile_export.domain.catalog.batches import (
    FULL_BYTES,
    FULL_ROWS,
    MERGED_FROM,
    BatchRun,
    BatchState,
    next_merge,
)
from profile_export.domain.catalog.datasets import DatasetKind, Tenant
from profile_export.domain.export.plan import (
    GRAPHS,
    PinnedBatch,
    PinnedFile,
    Snapshot,
    Source,
    SourcePart,
    WrittenFile,
)
from profile_export.domain.schemas.types import IDENTITY_MAP, SEGMENT_MEMBERSHIP
from profile_export.store.catalog.tenants import (
    IDENTITY,
    SEGMENT,
    id_of,
    registered_namespaces,
    renamed_namespaces,
    source_datasets,
    union_of,
)
from profile_export.store.db.database import MOST_AT_ONCE, Store, database_time, uninterruptible
from profile_export.store.db.tables import batches, compactions, datasets, field_sets, files, merges
from profile_export.store.db.transactions import Transaction, slices
from profile_export.store.files.folders import drop

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
            sources = {source.id: source for source in await source_datasets(connection, tenant_id)}
            pinned = await connection.all(_PINNED.where(counts))
            of_tenant = select(datasets.c.id).where(datasets.c.tenant_id == tenant_id)
            merged = select(compactions).where(compactions.c.dataset_id.in_(of_tenant), counting())
            compacted = await connection.all(merged.order_by(compactions.c.key))
            held = batches.c.compaction_key.in_(merged.with_only_columns(compactions.c.key))
            outside = or_(batches.c.compaction_key.is_(None), ~held)
            alone = await connection.all(_PINNED_FILES.where(counts, outside))
            rows = [*compacted, *alone]
            named = {row.field_set_id for row in rows}
            sets = await connection.among(select(field_sets), field_sets.c.id, named)
            fields_of = {row.id: row.fields for row in sets}
            # A generated id, since a tenant's names never form a path; batch ids are unique in a tenant only.
            tenant_key = await connection.scalar(select(tenant_id))
            namespaces = await renamed_namespaces(connection, tenant_id, IDENTITY)
            segment_namespaces = await renamed_namespaces(connection, tenant_id, SEGMENT)
            spellings = {
                field: await registered_namespaces(connection, tenant_id, kind)
                for field, kind in ((IDENTITY_MAP, IDENTITY), (SEGMENT_MEMBERSHIP, SEGMENT))
            }
        parts: dict[str, dict[int, list[PinnedFile]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.dataset_id in sources:
                parts[row.dataset_id][row.field_set_id].append(PinnedFile(row.path, row.rows, row.bytes))
        return Snapshot(
            datasets={source.id: source.kind for source in sources.values()},
            sources=tuple(
                Source(
                    dataset_id,
                    sources[dataset_id].kind,
                    tuple(
                        SourcePart(fields_of[key], tuple(pinned_files))
                        for key, pinned_files in by_fields.items()
                    ),
                    sources[dataset_id].upserts,
                )
                for dataset_id, by_fields in parts.items()
            ),
            batches=tuple(
                PinnedBatch(row.id, row.number, row.ingest_time, row.dataset_id, row.rows)
                for row in pinned
                if row.dataset_id in sources
            ),
            unions=await union_of(list(sources.values())),
            namespaces=namespaces,
            segment_namespaces=segment_namespaces,
            spellings=spellings,
            graph_folder="" if tenant_key is None else f"{GRAPHS}/{tenant_key}",
        )


_NOT_COUNTING = [state.value for state in BatchState if state is not BatchState.SUCCEEDED]


@dataclass(frozen=True, slots=True)
class Merge:
    """Segments of a dataset, all written with the same fields, to be merged into one file."""

    dataset_id: str
    field_set_id: int
    runs: tuple[BatchRun, ...]

    def keys(self, *, compacted: bool) -> list[int]:
        """Return the keys of its batches or of its compacted files."""
        return [run.key for run in self.runs if run.is_compacted is compacted]


class Compactions(Store):
    """Compacted files of all tenants."""

    @uninterruptible
    async def next_merge(self, resting: Collection[str]) -> Merge | None:
        """Return what is worth merging now, in any dataset but those; None if everything lies well as it is."""
        async with self.database.read() as connection:
            small = union_all(_batches_alone(batches.c.dataset_id), _small(compactions.c.dataset_id))
            dataset = small.subquery().c.dataset_id
            crowded = select(dataset).where(dataset.not_in(resting)).group_by(dataset)
            found = await connection.execute(crowded.having(func.count() >= MERGED_FROM))
            for dataset_id in found.scalars().all():
                for field_set_id, together in (await _runs(connection, dataset_id)).items():
                    if chosen := next_merge(together):
                        return Merge(dataset_id, field_set_id, chosen)
        return None

    @uninterruptible
    async def begin(self, folder: str) -> None:
        """Name the folder of a merge, before anything is written there."""
        async with self.database.write() as connection:
            row = {"folder": folder, "start_time": await database_time(connection)}
            await connection.execute(insert(merges).values(row))

    @uninterruptible
    async def begun(self, least: timedelta) -> Sequence[str]:
        """Return the folders of merges that began that long ago and have not been committed."""
        async with self.database.read() as connection:
            before = await database_time(connection) - least
            query = select(merges.c.folder).where(merges.c.start_time <= before)
            return await connection.values(query)

    @uninterruptible
    async def give_up(self, folders: Collection[str]) -> None:
        """Forget merges whose folders have left the disk."""
        async with self.database.write() as connection:
            for some in slices(folders):
                await connection.execute(delete(merges).where(merges.c.folder.in_(some)))

    @uninterruptible
    async def commit(self, merge: Merge, folder: str, file: WrittenFile) -> bool:
        """Make snapshots pin a merged file, and drop the compacted ones that it was merged from.

        Returns:
            False if one of its batches does not count any more, or lies elsewhere by now: then nothing has changed.
        """
        alone, superseded = merge.keys(compacted=False), merge.keys(compacted=True)
        async with self.database.write() as connection:
            unchanged = select(func.count()).where(
                batches.c.key.in_(alone),
                batches.c.state == BatchState.SUCCEEDED,
                batches.c.compaction_key.is_(None),
            )
            still = select(func.count()).where(compactions.c.key.in_(superseded), counting())
            if await connection.value(unchanged) != len(alone):
                return False
            if await connection.value(still) != len(superseded):
                return False
            row = {
                "dataset_id": merge.dataset_id,
                "field_set_id": merge.field_set_id,
                "folder": folder,
                "path": f"{folder}/{file.name}",
                "rows": file.rows,
                "bytes": file.bytes,
            }
            await connection.execute(delete(merges).where(merges.c.folder == folder))
            added = await connection.execute(insert(compactions).values(row).returning(compactions.c.key))
            await connection.execute(
                update(batches)
                .where(or_(batches.c.key.in_(alone), batches.c.compaction_key.in_(superseded)))
                .values(compaction_key=added.scalar_one())
            )
            await _drop(connection, compactions.c.key.in_(superseded))
        return True

    @uninterruptible
    async def dissolve(self) -> None:
        """Forget the compacted files of which a batch does not count any more; the others' own files are there."""
        async with self.database.read() as connection:
            stale = await connection.values(select(compactions.c.key).where(~counting()))
        for some in slices(stale, MOST_AT_ONCE):
            async with self.database.write() as connection:
                held = update(batches).where(batches.c.compaction_key.in_(some))
                await connection.execute(held.values(compaction_key=None))
                await _drop(connection, compactions.c.key.in_(some))

    @uninterruptible
    async def folders(self) -> Sequence[str]:
        """Return the folders of all compacted files."""
        async with self.database.read() as connection:
            return await connection.values(select(compactions.c.folder))


def counting() -> ColumnElement[bool]:
    """Say of a compacted file that it counts: all its batches do."""
    inside = batches.alias("inside")
    return ~(
        exists()
        .where(inside.c.compaction_key == compactions.c.key, inside.c.state.in_(_NOT_COUNTING))
        .correlate(compactions)
    )


async def drop_compactions(connection: Transaction, dataset_ids: Collection[str]) -> None:
    """Forget all compacted files of datasets whose batches go as well."""
    await _drop(connection, compactions.c.dataset_id.in_(dataset_ids))


def _batches_alone(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select the batches that count, lie in no compacted file and are worth merging."""
    sources = (DatasetKind.RECORD, DatasetKind.EVENT)
    return (
        select(*columns)
        .select_from(batches)
        .join(datasets, datasets.c.id == batches.c.dataset_id)
        .where(
            datasets.c.kind.in_(sources),
            datasets.c.delete_time.is_(None),
            batches.c.state == BatchState.SUCCEEDED,
            batches.c.compaction_key.is_(None),
            batches.c.rows.between(1, FULL_ROWS - 1),
            batches.c.bytes < FULL_BYTES,
        )
    )


def _small(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select the compacted files that count and are worth merging."""
    there = select(datasets.c.id).where(datasets.c.delete_time.is_(None))
    return select(*columns).where(
        compactions.c.rows < FULL_ROWS,
        compactions.c.bytes < FULL_BYTES,
        compactions.c.dataset_id.in_(there),
        counting(),
    )


async def _runs(connection: Transaction, dataset_id: str) -> dict[int, list[BatchRun]]:
    """Return what is worth merging in a dataset, by the fields it was written with, the oldest first."""
    alone = _batches_alone(batches.c.key, batches.c.rows, batches.c.bytes, files.c.path, files.c.field_set_id)
    alone = alone.join(files, files.c.batch_key == batches.c.key).where(batches.c.dataset_id == dataset_id)
    by_batch: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in await connection.execute(alone.order_by(batches.c.number, files.c.key)):
        by_batch[row.key].append(row)
    small = _small(*compactions.c).where(compactions.c.dataset_id == dataset_id).order_by(compactions.c.key)
    found: dict[int, list[BatchRun]] = defaultdict(list)
    for row in await connection.execute(small):
        run = BatchRun(row.key, is_compacted=True, rows=row.rows, bytes=row.bytes, paths=(row.path,))
        found[row.field_set_id].append(run)
    for key, rows in by_batch.items():
        first = rows[0]
        # The files of one batch may have been written with different fields: such a one stays as it is.
        if all(row.field_set_id == first.field_set_id for row in rows):
            paths = tuple(row.path for row in rows)
            run = BatchRun(key, is_compacted=False, rows=first.rows, bytes=first.bytes, paths=paths)
            found[first.field_set_id].append(run)
    return found


async def _drop(connection: Transaction, which: ColumnElement[bool]) -> None:
    gone = await connection.execute(delete(compactions).where(which).returning(compactions.c.folder))
    await drop(connection, gone.scalars().all())
