"""Uploads: a batch gets its row before its first byte, and counts with one transaction at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Batch, BatchState, DataFile, Dataset, DatasetKind, RowError, Tenant
from profile_export.domain.errors import AlreadyExistsError, FailedPreconditionError
from profile_export.domain.schema import FieldPath, ObjectType, type_at, union_objects
from profile_export.store.batches import add_files, batch_by_id, batch_from, succeed_batch
from profile_export.store.catalog import dataset_of, source_datasets, union_by_kind
from profile_export.store.column_types import digest_of
from profile_export.store.database import Database, database_time, whole
from profile_export.store.events import Wakeups
from profile_export.store.tables import batches, datasets, field_sets
from profile_export.store.tenants import (
    IDENTITY,
    SEGMENT,
    ensure_tenant,
    id_of,
    next_place,
    register_namespaces,
)


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """How a batch spells its namespaces: of each one the spelling of its first place, and all spellings."""

    first_spellings: tuple[str, ...] = ()
    all_spellings: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """What an upload turned out to hold.

    `fields` are those its files were written with. `untyped` are the paths of arrays that were left out because
    nobody knew the type of their items (S13). `sha256` and `byte_count` are those of the bytes as sent.
    """

    files: tuple[DataFile, ...]
    fields: ObjectType
    identity_namespaces: NamespaceUse
    segment_namespaces: NamespaceUse
    untyped: tuple[FieldPath, ...]
    sha256: str
    byte_count: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A batch that takes bytes, or, if it has succeeded, tells a repetition. `folder` is its place in the lake."""

    batch: Batch
    dataset: Dataset
    folder: str


class FieldsGrewError(Exception):
    """The dataset came to know a field that this upload left out for want of a type: write its files again."""


class Uploads:
    """Uploads of all tenants."""

    def __init__(self, database: Database, wakeups: Wakeups) -> None:
        self.database = database
        self._wakeups = wakeups

    @whole
    async def open_upload(
        self, tenant: Tenant, dataset_id: str, batch_id: str, upload_format: str, file_name: str, folder: str
    ) -> OpenUpload:
        """Give a batch its row before its first byte; a batch that did not succeed may be uploaded again.

        Args:
            tenant: Whose.
            dataset_id: A record or event dataset.
            batch_id: Chosen by the caller, unique in the tenant.
            upload_format: As the batch will show it.
            file_name: As the batch will show it.
            folder: Where its files would go, if it gets a row now.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: It is a union dataset, or the batch was aborted or belongs to a job.
            AlreadyExistsError: The batch id stands for another dataset, format or file.
        """
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await dataset_of(connection, tenant_id, dataset_id)
            if dataset.kind is DatasetKind.UNION:
                raise FailedPreconditionError(
                    "SOURCE_READ_ONLY",
                    f"The dataset '{dataset_id}' holds exported profiles; only export jobs write to it.",
                    metadata={"dataset_id": dataset_id},
                )
            row = (await connection.execute(batch_by_id(tenant_id, batch_id))).first()
            if row is None:
                values = {
                    "tenant_id": tenant_id,
                    "id": batch_id,
                    "dataset_id": dataset_id,
                    "state": BatchState.LOADING.value,
                    "create_time": await database_time(connection),
                    "format": upload_format,
                    "file_name": file_name,
                    "folder": folder,
                }
                row = (await connection.execute(insert(batches).values(values).returning(batches))).one()
            elif (row.dataset_id, row.format, row.file_name) != (dataset_id, upload_format, file_name):
                raise AlreadyExistsError(
                    "BATCH_EXISTS",
                    f"The batch '{batch_id}' is of dataset '{row.dataset_id}', file '{row.file_name}', format "
                    f"'{row.format}'; choose another batch_id.",
                    metadata={"batch_id": batch_id, "dataset_id": row.dataset_id},
                )
            elif row.state == BatchState.FAILED:
                row = (
                    await connection.execute(
                        update(batches)
                        .where(batches.c.key == row.key)
                        .values(state=BatchState.LOADING.value, errors=(), end_time=None, folder=folder)
                        .returning(batches)
                    )
                ).one()
            elif row.state not in {BatchState.LOADING, BatchState.SUCCEEDED}:
                raise FailedPreconditionError(
                    "BATCH_ABORTED",
                    f"The batch '{batch_id}' is {row.state.upper()}; upload under another batch_id.",
                    metadata={"batch_id": batch_id, "state": row.state.upper()},
                )
            return OpenUpload(batch_from(row), dataset, row.folder)

    @whole
    async def fail_upload(self, tenant: Tenant, batch_id: str, errors: Sequence[RowError]) -> Batch:
        """End an upload that was refused; nothing of it is visible, and it may be uploaded again."""
        async with self.database.write() as connection:
            values = {
                "state": BatchState.FAILED.value,
                "end_time": await database_time(connection),
                "errors": tuple(errors),
            }
            query = update(batches).where(
                batches.c.tenant_id == id_of(tenant),
                batches.c.id == batch_id,
                batches.c.state == BatchState.LOADING.value,
            )
            return batch_from((await connection.execute(query.values(values).returning(batches))).one())

    @whole
    async def commit_upload(self, tenant: Tenant, batch_id: str, facts: UploadFacts) -> Batch:
        """Make an upload count: number, ingest time, files, fields and namespaces, in one transaction.

        Raises:
            TypeConflictError: Its fields contradict the dataset's or the union of its class.
            FieldsGrewError: Another batch taught the dataset a type that this one lacked.
        """
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            row = (await connection.execute(batch_by_id(tenant_id, batch_id))).one()
            dataset = await dataset_of(connection, tenant_id, row.dataset_id)
            if any(type_at(dataset.fields, path) for path in facts.untyped):
                raise FieldsGrewError
            await _grow_fields(connection, tenant_id, dataset, facts.fields)
            for kind, use in ((IDENTITY, facts.identity_namespaces), (SEGMENT, facts.segment_namespaces)):
                await register_namespaces(connection, tenant_id, kind, use.first_spellings, use.all_spellings)
            field_set_id = await _field_set(connection, dataset.id, facts.fields)
            await add_files(connection, row.key, facts.files, field_set_id)
            place = await next_place(connection, tenant_id)
            batch = await succeed_batch(
                connection, row.key, place, facts.files, sha256=facts.sha256, byte_count=facts.byte_count
            )
        self._wakeups.batches_changed()
        return batch


async def _grow_fields(
    connection: AsyncConnection, tenant_id: int, dataset: Dataset, found: ObjectType
) -> None:
    grown = union_objects(dataset.fields, found)
    if grown == dataset.fields:
        return
    now = await database_time(connection)
    await connection.execute(
        update(datasets).where(datasets.c.id == dataset.id).values(fields=grown, update_time=now)
    )
    sources = await source_datasets(connection, tenant_id)
    # The newcomer comes last, so that a conflict is reported as its own.
    union_by_kind(sorted(sources, key=lambda source: source.id == dataset.id))


async def _field_set(connection: AsyncConnection, dataset_id: str, fields: ObjectType) -> int:
    digest = digest_of(fields)
    row = {"dataset_id": dataset_id, "digest": digest, "fields": fields}
    await connection.execute(upsert(field_sets).values(row).on_conflict_do_nothing())
    query = select(field_sets.c.id).where(
        field_sets.c.dataset_id == dataset_id, field_sets.c.digest == digest
    )
    field_set_id: int = (await connection.execute(query)).scalar_one()
    return field_set_id
