"""Batches of uploads: opened, completed in one transaction, or given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas, check_batch_namespaces
from profile_export.domain.catalog.batches import (
    Batch,
    BatchState,
    DataFile,
    Upload,
    UploadState,
    check_abortable,
    check_completable,
)
from profile_export.domain.catalog.datasets import Dataset, Tenant
from profile_export.domain.errors import AlreadyExistsError
from profile_export.domain.schemas.types import ObjectType, is_wide, type_at, union_objects
from profile_export.processes.computing import compute_if
from profile_export.store.catalog.tenants import (
    IDENTITY,
    SEGMENT,
    check_loading_batches,
    dataset_of,
    ensure_tenant,
    field_sets_of,
    id_of,
    made_before,
    next_places,
    register_namespaces,
)
from profile_export.store.catalog.unions import Growth, foresee_growth, grow, keep_unions, still_holds
from profile_export.store.db.columns import digest_of, value_of, write_ahead
from profile_export.store.db.database import Database, Store, fetch_all, uninterruptible
from profile_export.store.db.tables import IngestedFile, accepted, batches, field_sets, uploads, used_together
from profile_export.store.files.batches import (
    AddedFile,
    CountedBatch,
    add_files,
    batch_by_id,
    batch_from,
    end_batch,
    existing_batch,
    succeed_batches,
)
from profile_export.store.files.uploads import (
    check_still_loading,
    insert_batch,
    writable_dataset,
)


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that is ready to be completed: `uploads` are its files, by name, with what ingestion made of them."""

    batch: Batch
    dataset: Dataset
    folder: str
    uploads: Mapping[Upload, IngestedFile]


class FieldsGrewError(Exception):
    """A field became known that these files left out for want of a type: write them again."""


class BatchChangedError(Exception):
    """The batch has other files than those that were to be committed: look at it again."""


class LoadingBatches(Store):
    """Batches of uploads of all tenants, until they count."""

    def __init__(self, database: Database, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        super().__init__(database)
        self._most_loading = quotas.loading_batches

    @uninterruptible
    async def create_batch(
        self, tenant: Tenant, dataset_id: str, batch_id: str, request_id: str, folder: str
    ) -> tuple[Batch, bool]:
        """Open a batch for several files, or find the one that was opened before; True says it was found.

        Args:
            tenant: Whose.
            dataset_id: A record or event dataset.
            batch_id: Unique in the tenant.
            request_id: Makes the call safe to repeat, whatever the batch id; may be empty.
            folder: Where its files go, if it gets a row now.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: It is a union dataset.
            AlreadyExistsError: The batch id or the request id stands for something else.
            ExhaustedError: The tenant is uploading as many batches as it may.
        """
        digest = digest_of(dataset_id)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            await writable_dataset(connection, tenant_id, dataset_id)
            found = await made_before(connection, select(batches), tenant_id, request_id, digest)
            if found:
                return await batch_from(connection, found), True
            row = (await connection.execute(batch_by_id(tenant_id, batch_id))).first()
            if row is None:
                await check_loading_batches(connection, tenant_id, self._most_loading)
                values = {
                    "several_files": True,
                    "request_id": request_id or None,
                    "request_digest": digest,
                }
                row = await insert_batch(connection, tenant_id, dataset_id, batch_id, folder, **values)
                return await batch_from(connection, row), False
            batch = await batch_from(connection, row)
            same = batch.several_files and batch.dataset_id == dataset_id and not request_id
            if same and batch.state is BatchState.LOADING:
                return batch, True
            raise AlreadyExistsError(
                "BATCH_EXISTS",
                f"The batch '{batch_id}' of dataset '{batch.dataset_id}' is {batch.state.name}; choose another "
                "batch_id.",
                metadata={"batch_id": batch_id, "dataset_id": batch.dataset_id, "state": batch.state.name},
            )

    @uninterruptible
    async def loading_batch(self, tenant: Tenant, batch_id: str) -> OpenBatch | None:
        """Return a batch with what its files hold; None if it has succeeded already.

        Raises:
            NotFoundError: There is no such batch.
            FailedPreconditionError: It has ended otherwise, or a file is not complete, or there is none.
        """
        async with self.database.read() as connection:
            row = await existing_batch(connection, id_of(tenant), batch_id)
            batch = await batch_from(connection, row)
            if batch.state is BatchState.SUCCEEDED and batch.job_id is None:
                return None
            check_completable(batch)
            complete = select(uploads).where(
                uploads.c.batch_key == row.key, uploads.c.state == UploadState.COMPLETE
            )
            found = await fetch_all(connection, complete.order_by(uploads.c.file_name))
            return OpenBatch(
                batch,
                await dataset_of(connection, row.tenant_id, row.dataset_id),
                row.folder,
                {value_of(Upload, sent): sent.facts for sent in found},
            )

    @uninterruptible
    async def commit_batch(self, tenant: Tenant, batch_id: str, sent: Mapping[str, IngestedFile]) -> Batch:
        """Make a batch count: number, ingest time, files, fields and namespaces, in one transaction.

        Args:
            tenant: Whose.
            batch_id: A LOADING batch.
            sent: What its files hold, by file name in the order in which their rows count on.

        Raises:
            TypeConflictError: Its fields contradict each other, the dataset's or the union of its class.
            FieldsGrewError: A type is known now that a file lacked.
            BatchChangedError: It has other complete files, or counts already.
            FailedPreconditionError: It has ended meanwhile.
            TooManyError: More fields or namespaces would be known than may be.
        """
        used = {
            IDENTITY: used_together(ingested.identity_namespaces for ingested in sent.values()),
            SEGMENT: used_together(ingested.segment_namespaces for ingested in sent.values()),
        }
        for kind, use in used.items():
            check_batch_namespaces(kind, use.first_spellings, use.all_spellings)
        growth = await self._foreseen(tenant, batch_id, sent)
        digests = {
            file_name: await compute_if(is_wide([ingested.fields]), digest_of, ingested.fields)
            for file_name, ingested in sent.items()
        }
        different = {
            digests[file_name]: await write_ahead(field_sets.c.fields, ingested.fields)
            for file_name, ingested in sent.items()
        }
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            row = await existing_batch(connection, tenant_id, batch_id)
            if row.several_files and row.state == BatchState.SUCCEEDED:
                raise BatchChangedError  # another call has completed it
            check_still_loading(row)
            if row.several_files:
                await _check_same_files(connection, row, sent)
            if not await still_holds(connection, tenant_id, growth.outlook):
                growth = await self._growth(connection, tenant_id, row.dataset_id, sent)
            await grow(connection, tenant_id, growth)
            fields = growth.fields[row.dataset_id]
            if any(type_at(fields, path) for ingested in sent.values() for path in ingested.untyped):
                raise FieldsGrewError
            for kind, use in used.items():
                await register_namespaces(connection, tenant_id, kind, use.first_spellings, use.all_spellings)
            [place] = await next_places(connection, tenant_id)
            field_set_ids = await field_sets_of(connection, row.dataset_id, different)
            counted: list[DataFile] = []
            added: list[AddedFile] = []
            for index, (file_name, ingested) in enumerate(sent.items()):
                prefix = f"{index:05}-" if row.several_files else ""
                files = [replace(file, name=f"{prefix}{file.name}") for file in ingested.files]
                added += (AddedFile(row.key, file, field_set_ids[digests[file_name]]) for file in files)
                counted += files
            await add_files(connection, added)
            await _note_accepted(connection, row.key, sent)
            await succeed_batches(connection, [CountedBatch(row.key, place, counted)])
            batch = await batch_from(connection, await existing_batch(connection, tenant_id, batch_id))
        if growth.changed:
            keep_unions(self.database.unions, tenant_id, growth.outlook)
        return batch

    async def _foreseen(self, tenant: Tenant, batch_id: str, sent: Mapping[str, IngestedFile]) -> Growth:
        async with self.database.read() as connection:
            row = await existing_batch(connection, id_of(tenant), batch_id)
            return await self._growth(connection, id_of(tenant), row.dataset_id, sent)

    async def _growth(
        self, connection: AsyncConnection, tenant_id: Any, dataset_id: str, sent: Mapping[str, IngestedFile]
    ) -> Growth:
        dataset = await dataset_of(connection, tenant_id, dataset_id)
        fields = await _fields_with(dataset, sent)
        return await foresee_growth(connection, self.database.unions, tenant_id, [(dataset, fields)])

    @uninterruptible
    async def abort_batch(
        self, tenant: Tenant, batch_id: str, reason: str
    ) -> tuple[Batch, str, Sequence[str]]:
        """Give a batch up; doing so again changes nothing.

        Returns:
            The batch, its folder, and under which names bytes of it are kept: both may go.

        Raises:
            NotFoundError: There is no such batch.
            FailedPreconditionError: It is a job's, or has ended otherwise.
        """
        async with self.database.write() as connection:
            row = await existing_batch(connection, id_of(tenant), batch_id)
            batch = await batch_from(connection, row)
            if batch.job_id is None and batch.state is BatchState.ABORTED:
                return batch, row.folder, ()
            check_abortable(batch)
            await connection.execute(delete(uploads).where(uploads.c.batch_key == row.key))
            staged = [upload.staged_as for upload in batch.uploads]
            return await end_batch(connection, row, BatchState.ABORTED, reason), row.folder, staged


async def _fields_with(dataset: Dataset, sent: Mapping[str, IngestedFile]) -> ObjectType:
    """Return what a dataset knows with the fields of files.

    Raises:
        TypeConflictError: They contradict it, or each other.
    """
    found = [ingested.fields for ingested in sent.values()]
    return await compute_if(is_wide(found), lambda: reduce(union_objects, found, dataset.fields))


async def _check_same_files(
    connection: AsyncConnection, batch: Row[Any], sent: Mapping[str, IngestedFile]
) -> None:
    """Refuse a commit that does not name exactly the complete files, or while another is open."""
    query = select(uploads.c.file_name, uploads.c.sha256).where(
        uploads.c.batch_key == batch.key, uploads.c.state != UploadState.REFUSED
    )
    found = {row.file_name: row.sha256 for row in await connection.execute(query)}
    if found != {file_name: ingested.sha256 for file_name, ingested in sent.items()}:
        raise BatchChangedError


async def _note_accepted(
    connection: AsyncConnection, batch_key: int, sent: Mapping[str, IngestedFile]
) -> None:
    """Note that files, by name, are complete, and that it need not be known any more what they hold."""
    rows = [
        {"of_file": file_name} | accepted(ingested) | {"facts": None} for file_name, ingested in sent.items()
    ]
    query = update(uploads).where(
        uploads.c.batch_key == batch_key, uploads.c.file_name == bindparam("of_file")
    )
    await connection.execute(query, rows)
