"""What the store names on the disk: all of it, and the files that count at one moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_, select

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.plan import GRAPHS, PinnedBatch, PinnedFile, Source, SourcePart
from profile_export.domain.export.planning import Snapshot
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
from profile_export.store.db.tables import batches, compactions, datasets, field_sets, files, uploads
from profile_export.store.db.tables import datasets as datasets_of_all
from profile_export.store.files.batches import is_seen
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


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """The folder of a batch that is being loaded.

    `named` is what of it the batch has so far, relative to the lake's root: files of an export, which `of_job` tells,
    and folders of uploads.
    """

    folder: str
    named: frozenset[str]
    of_job: bool


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A data file that somebody may come to read."""

    path: str
    bytes: int


_COUNTING = (
    select(files.c.path, files.c.bytes)
    .join(batches, batches.c.key == files.c.batch_key)
    .where(batches.c.state == BatchState.SUCCEEDED, is_seen())
)


class Named(Store):
    """Names of folders and of uploads' bytes, of all tenants."""

    @uninterruptible
    async def kept_folders(self) -> Sequence[str]:
        """Return the folders of all batches that need theirs: for files that count or will, or for refused rows."""
        refused = select(uploads.c.batch_key).where(uploads.c.rejected_rows > 0)
        needed = batches.c.state.in_((BatchState.SUCCEEDED, BatchState.LOADING)) | (
            (batches.c.state == BatchState.FAILED) & batches.c.key.in_(refused)
        )
        async with self.database.read() as connection:
            found = await connection.execute(select(batches.c.folder).where(needed, is_seen()))
            return list(found.scalars())

    @uninterruptible
    async def kept_uploads(self) -> Sequence[str]:
        """Return under which names the bytes of uploads are kept whose batches do not count yet."""
        query = (
            select(uploads.c.staged_as)
            .join(batches, batches.c.key == uploads.c.batch_key)
            .where(batches.c.state == BatchState.LOADING, is_seen())
        )
        async with self.database.read() as connection:
            return list(await connection.scalars(query))

    async def folders(self, among: Collection[str]) -> set[str]:
        """Return which of some folders are those of batches, whatever has become of these."""
        return await self._known(batches.c.folder, among)

    async def uploads(self, among: Collection[str]) -> set[str]:
        """Return which of some names are those of uploads' bytes, whatever has become of these."""
        return await self._known(uploads.c.staged_as, among)

    async def knows_any(self, dataset_ids: Collection[str], staged: Collection[str]) -> bool:
        """Say whether any of some datasets, or of some uploads, is one of the store's."""
        return bool(await self.uploads(staged) or await self._known(datasets.c.id, dataset_ids))

    @uninterruptible
    async def _known(self, column: ColumnElement[str], among: Collection[str]) -> set[str]:
        found: set[str] = set()
        async with self.database.read() as connection:
            for some in slices(among):
                found.update(await connection.scalars(select(column).where(column.in_(some))))
        return found

    @uninterruptible
    async def names_files(self) -> bool:
        """Say whether there is any file that somebody may come to read."""
        async with self.database.read() as connection:
            return (await connection.execute(_COUNTING.limit(1))).first() is not None

    @uninterruptible
    async def open_folders(self) -> Sequence[OpenFolder]:
        """Return the folders of all batches that are being loaded."""
        loading = batches.c.state == BatchState.LOADING
        query = select(batches.c.key, batches.c.folder, batches.c.job_id).where(loading)
        sent = select(uploads.c.batch_key, uploads.c.folder).join(
            batches, batches.c.key == uploads.c.batch_key
        )
        written = select(files.c.batch_key, files.c.path).join(batches, batches.c.key == files.c.batch_key)
        named: dict[int, set[str]] = defaultdict(set)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
            for names in (sent, written):
                for key, name in await connection.execute(names.where(loading)):
                    named[key].add(name)
        return [OpenFolder(row.folder, frozenset(named[row.key]), row.job_id is not None) for row in rows]

    @uninterruptible
    async def files(self) -> Sequence[NamedFile]:
        """Return the files of all batches that count, and those that their rows were merged into."""
        merged = select(compactions.c.path, compactions.c.bytes)
        async with self.database.read() as connection:
            found = (await connection.execute(_COUNTING)).all()
            found = [*found, *(await connection.execute(merged)).all()]
        return [NamedFile(row.path, row.bytes) for row in found]
