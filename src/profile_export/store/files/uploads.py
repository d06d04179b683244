"""Uploads: a batch gets its row before its first byte, and counts with one transaction at the end, or is given up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from sqlalchemy import (
    Row,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas, check_batch_namespaces
from profile_export.domain.catalog.batches import (
    Batch,
    BatchState,
    DataFile,
    IngestedFile,
    RowError,
    Upload,
    UploadStart,
    UploadState,
    check_abortable,
    check_completable,
    check_file_count,
    check_takes_file,
    used_together,
)
from profile_export.domain.catalog.datasets import (
    Dataset,
    DatasetKind,
    Tenant,
)
from profile_export.domain.errors import AlreadyExistsError, FailedPreconditionError
from profile_export.domain.schemas.types import ObjectType, is_wide, type_at, union_objects
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.schemas import Growth, foresee_growth, grow, still_holds
from profile_export.store.catalog.tenants import (
    IDENTITY,
    LOADING_BATCHES,
    SEGMENT,
    check_one_more,
    dataset_of,
    ensure_tenant,
    field_sets_of,
    id_of,
    made_before,
    next_places,
    note_activity,
    register_namespaces,
    room_for_bytes,
    total,
)
from profile_export.store.db.columns import digest_of, value_of, write_ahead
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.tables import batches, field_sets, uploads
from profile_export.store.db.transactions import Transaction
from profile_export.store.files.batches import (
    AddedFile,
    CountedBatch,
    add_files,
    batch_by_id,
    batch_from,
    end_batch,
    existing_batch,
    files_of,
    succeed_batches,
)
from profile_export.store.files.folders import drop

FIRST_BYTES = 1024 * 1024
"""How many bytes a file has room for from its beginning on, if there is any: small ones ask for no more."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A file that takes bytes, or, if it is COMPLETE, tells a repetition. `folder` is the batch's place in the lake."""

    batch: Batch
    upload: Upload
    dataset: Dataset
    folder: str


@dataclass(frozen=True, slots=True)
class EndedBatch:
    """What a batch that has ended needs of its `folder`: data files, and the folders of rejected rows."""

    folder: str
    files: Sequence[str]
    rejected_in: Sequence[str]


@dataclass(frozen=True, slots=True)
class Beside:
    """Of the complete files of a batch: how many rows come before a further one, and the fields they know."""

    first_row: int
    fields: Sequence[ObjectType]


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


class Uploads(Store):
    """Uploads of all tenants: files, and the batches that they fill until these count."""

    def __init__(self, database: Database, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        super().__init__(database)
        self._quotas = quotas

    @uninterruptible
    async def open_upload(
        self, tenant: Tenant, start: UploadStart, folder: str, staged_as: str
    ) -> OpenUpload:
        """Give a file, and its batch, a row before the first byte; what was refused may be uploaded again.

        A batch that begins now has its files in `folder`; the bytes of an upload that begins now are `staged_as`.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: It is a union dataset, or the batch was given up.
            AlreadyExistsError: The batch takes no file of that name for that dataset.
            ExhaustedError: The tenant has as many batches or bytes under way as it may have.
            InvalidArgumentError: The batch has as many files as it can have.
        """
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await _writable_dataset(connection, tenant_id, start.dataset_id)
            row = await connection.first(batch_by_id(tenant_id, start.batch_id))
            if row is None or row.state == BatchState.FAILED:
                await check_one_more(connection, LOADING_BATCHES, tenant_id, self._quotas.loading_batches)
            if row is None:
                row = await _insert_batch(connection, tenant_id, dataset.id, start.batch_id, folder)
            else:
                check_takes_file(await batch_from(connection, row), dataset.id, start.file_name)
                if row.state == BatchState.FAILED:
                    row = await _reopen(connection, row, folder)
            upload = await _opened(connection, row, start, staged_as)
            if upload.state is UploadState.OPEN:
                known = upload.staged_bytes
                room = await self._reserve(connection, row, upload, max(known, 1), max(known, FIRST_BYTES))
                upload = replace(upload, staged_bytes=room)
            return OpenUpload(await batch_from(connection, row), upload, dataset, row.folder)

    @uninterruptible
    async def reserve(self, tenant: Tenant, opened: OpenUpload, least: int, wanted: int) -> int:
        """Say that bytes arrive, and make room for them; return how many the file may have by now.

        With those that have just come the file has `least`; it may have `wanted` if there is room.

        Raises:
            NotFoundError: There is no such batch any more.
            FailedPreconditionError: It has ended.
            ExhaustedError: There is no room for that many.
        """
        async with self.database.write() as connection:
            row = await existing_batch(connection, id_of(tenant), opened.batch.id)
            _check_still_loading(row)
            return await self._reserve(connection, row, opened.upload, least, wanted)

    async def _reserve(
        self, connection: Transaction, row: Row[Any], upload: Upload, least: int, wanted: int
    ) -> int:
        of_file = (uploads.c.batch_key == row.key, uploads.c.file_name == upload.file_name)
        known: int = await connection.value(select(uploads.c.staged_bytes).where(*of_file))
        if least > known:
            most = self._quotas.staged_bytes
            known += await room_for_bytes(connection, row.tenant_id, most, least - known, wanted - known)
            await connection.execute(update(uploads).where(*of_file).values(staged_bytes=known))
        await note_activity(connection, row.key)
        return known

    @uninterruptible
    async def refuse_upload(
        self, tenant: Tenant, opened: OpenUpload, errors: Sequence[RowError], rejected_rows: int, folder: str
    ) -> None:
        """Refuse a file: nothing of it is visible, and it may be uploaded again. Its batch fails if it has no other.

        `folder` is where its rejected rows are. A batch that has ended meanwhile stays as it is.
        """
        async with self.database.write() as connection:
            row = await existing_batch(connection, id_of(tenant), opened.batch.id)
            if row.state != BatchState.LOADING:
                return
            values = {
                "state": UploadState.REFUSED,
                "errors": tuple(errors),
                "rejected_rows": rejected_rows,
                "folder": folder,
                "staged_bytes": 0,
            }
            await connection.execute(_upload_of(row, opened.upload.file_name).values(values))
            await note_activity(connection, row.key)
            if not row.several_files:
                reason = f"{errors[0].code}: {errors[0].message}" if errors else ""
                await end_batch(connection, row, BatchState.FAILED, reason)

    @uninterruptible
    async def accept_upload(self, tenant: Tenant, opened: OpenUpload, ingested: IngestedFile) -> Batch:
        """Note that a file is complete; it waits for its batch.

        Raises:
            FailedPreconditionError: The batch has ended meanwhile.
        """
        digest = await compute_if(is_wide([ingested.fields]), digest_of, ingested.fields)
        ingested_written = await write_ahead(uploads.c.facts, ingested)
        fields_written = await write_ahead(field_sets.c.fields, ingested.fields)
        async with self.database.write() as connection:
            row = await existing_batch(connection, id_of(tenant), opened.batch.id)
            _check_still_loading(row)
            ids = await field_sets_of(connection, row.dataset_id, {digest: fields_written})
            values = _accepted(ingested) | {
                "facts": ingested_written,
                "rows": ingested.rows,
                "field_set_id": ids[digest],
            }
            await connection.execute(_upload_of(row, opened.upload.file_name).values(values))
            await note_activity(connection, row.key)
            return await batch_from(connection, row)

    @uninterruptible
    async def check_loading(self, tenant: Tenant, batch_id: str) -> None:
        """Refuse to go on with a batch that has ended meanwhile.

        Raises:
            NotFoundError: There is no such batch any more.
            FailedPreconditionError: It has ended.
        """
        async with self.database.read() as connection:
            _check_still_loading(await existing_batch(connection, id_of(tenant), batch_id))

    @uninterruptible
    async def beside(self, tenant: Tenant, batch_id: str, file_name: str) -> Beside:
        """Return what the complete files of a batch mean for one that comes to them."""
        complete = (
            batches.c.tenant_id == id_of(tenant),
            batches.c.id == batch_id,
            batches.c.key == uploads.c.batch_key,
            uploads.c.state == UploadState.COMPLETE,
        )
        before = select(total(uploads.c.rows)).where(*complete, uploads.c.file_name < file_name)
        known = select(field_sets.c.fields).where(
            field_sets.c.id.in_(select(uploads.c.field_set_id).where(*complete))
        )
        async with self.database.read() as connection:
            first_row = await connection.value(before)
            rows = await connection.all(known.order_by(field_sets.c.id))
            return Beside(first_row, [row.fields for row in rows])

    @uninterruptible
    async def ended(self, staged: Collection[str]) -> Sequence[EndedBatch]:
        """Return the batches that bytes were sent for under these names and that have ended, with what they need."""
        batch_keys = select(uploads.c.batch_key).where(uploads.c.staged_as.in_(staged))
        query = select(batches).where(batches.c.key.in_(batch_keys), batches.c.state != BatchState.LOADING)
        async with self.database.read() as connection:
            return [
                EndedBatch(
                    row.folder,
                    [file.path for file in await files_of(connection, row.key)],
                    [
                        sent.folder
                        for sent in (await batch_from(connection, row)).uploads
                        if sent.rejected_rows
                    ],
                )
                for row in await connection.all(query)
            ]

    @uninterruptible
    async def create_batch(
        self, tenant: Tenant, dataset_id: str, batch_id: str, request_id: str, folder: str
    ) -> tuple[Batch, bool]:
        """Open a batch for several files, or find the one that was opened before; True says it was found.

        A request id, which may be empty, makes the call safe to repeat, whatever the batch id. The files of a batch
        that gets a row now go into `folder`.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: It is a union dataset.
            AlreadyExistsError: The batch id or the request id stands for something else.
            ExhaustedError: The tenant is uploading as many batches as it may.
        """
        digest = digest_of(dataset_id)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            await _writable_dataset(connection, tenant_id, dataset_id)
            found = await made_before(connection, select(batches), tenant_id, request_id, digest)
            if found:
                return await batch_from(connection, found), True
            row = await connection.first(batch_by_id(tenant_id, batch_id))
            if row is None:
                await check_one_more(connection, LOADING_BATCHES, tenant_id, self._quotas.loading_batches)
                values = {
                    "several_files": True,
                    "request_id": request_id or None,
                    "request_digest": digest,
                }
                row = await _insert_batch(connection, tenant_id, dataset_id, batch_id, folder, **values)
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
            found = await connection.all(complete.order_by(uploads.c.file_name))
            return OpenBatch(
                batch,
                await dataset_of(connection, row.tenant_id, row.dataset_id),
                row.folder,
                {value_of(Upload, sent): sent.facts for sent in found},
            )

    @uninterruptible
    async def commit_batch(self, tenant: Tenant, batch_id: str, sent: Mapping[str, IngestedFile]) -> Batch:
        """Make a batch count: number, ingest time, files, fields and namespaces, in one transaction.

        `sent` is what its files hold, by file name in the order in which their rows count on.

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
        different = {digests[file_name]: ingested.fields for file_name, ingested in sent.items()}
        written = {
            digest: await write_ahead(field_sets.c.fields, fields) for digest, fields in different.items()
        }
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            row = await existing_batch(connection, tenant_id, batch_id)
            if row.several_files and row.state == BatchState.SUCCEEDED:
                raise BatchChangedError  # another call has completed it
            _check_still_loading(row)
            if row.several_files:
                await _check_same_files(connection, row, sent)
            if not await still_holds(connection, tenant_id, growth.outlook):
                growth = await self._growth(connection, tenant_id, row.dataset_id, sent)
            await grow(connection, tenant_id, growth)
            fields = growth.fields[row.dataset_id]
            if any(type_at(fields, path) for ingested in sent.values() for path in ingested.untyped):
                raise FieldsGrewError
            for kind, use in used.items():
                await register_namespaces(connection, tenant_id, kind, use)
            [place] = await next_places(connection, tenant_id)
            field_set_ids = await field_sets_of(connection, row.dataset_id, written)
            counted: list[DataFile] = []
            added: list[AddedFile] = []
            for index, (file_name, ingested) in enumerate(sent.items()):
                prefix = f"{index:05}-" if row.several_files else ""
                files = [replace(file, name=f"{prefix}{file.name}") for file in ingested.files]
                added += (AddedFile(row.key, file, field_set_ids[digests[file_name]]) for file in files)
                counted += files
            await add_files(connection, added)
            await _note_accepted(connection, row.key, sent)
            await succeed_batches(connection, [CountedBatch(row, place, counted)])
            return await batch_from(connection, await existing_batch(connection, tenant_id, batch_id))

    async def _foreseen(self, tenant: Tenant, batch_id: str, sent: Mapping[str, IngestedFile]) -> Growth:
        async with self.database.read() as connection:
            row = await existing_batch(connection, id_of(tenant), batch_id)
            return await self._growth(connection, id_of(tenant), row.dataset_id, sent)

    async def _growth(
        self, connection: Transaction, tenant_id: Any, dataset_id: str, sent: Mapping[str, IngestedFile]
    ) -> Growth:
        dataset = await dataset_of(connection, tenant_id, dataset_id)
        fields = await fields_with(dataset.fields, [ingested.fields for ingested in sent.values()])
        return await foresee_growth(connection, tenant_id, [(dataset, fields)])

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


async def _writable_dataset(connection: Transaction, tenant_id: int, dataset_id: str) -> Dataset:
    """Return a dataset that takes uploads; refuse a union dataset."""
    dataset = await dataset_of(connection, tenant_id, dataset_id)
    if dataset.kind is DatasetKind.UNION:
        raise FailedPreconditionError(
            "SOURCE_READ_ONLY",
            f"The dataset '{dataset_id}' holds exported profiles; only export jobs write to it.",
            metadata={"dataset_id": dataset_id},
        )
    return dataset


async def _insert_batch(
    connection: Transaction, tenant_id: int, dataset_id: str, batch_id: str, folder: str, **values: Any
) -> Row[Any]:
    """Make a LOADING batch and return its row."""
    now = await database_time(connection)
    row = {
        "tenant_id": tenant_id,
        "id": batch_id,
        "dataset_id": dataset_id,
        "state": BatchState.LOADING,
        "create_time": now,
        "active_time": now,
        "folder": folder,
        **values,
    }
    return await connection.one(insert(batches).values(row).returning(batches))


async def _reopen(connection: Transaction, row: Row[Any], folder: str) -> Row[Any]:
    await connection.execute(delete(uploads).where(uploads.c.batch_key == row.key))
    await drop(connection, [row.folder])
    values = {"state": BatchState.LOADING, "state_reason": "", "end_time": None, "folder": folder}
    query = update(batches).where(batches.c.key == row.key).values(values).returning(batches)
    return await connection.one(query)


async def _opened(connection: Transaction, batch: Row[Any], start: UploadStart, staged_as: str) -> Upload:
    """Return the upload of a file, made or made ready for bytes; one that is COMPLETE as it is."""
    query = select(uploads).where(uploads.c.batch_key == batch.key, uploads.c.file_name == start.file_name)
    row = await connection.first(query)
    values = {
        "format": start.format,
        "max_bad_records": start.max_bad_records,
        "reading": start.reading,
        "state": UploadState.OPEN,
        "folder": "",
        "rejected_rows": 0,
        "errors": (),
        "null_count": 0,
        "notes": (),
    }
    if row is None:
        await _check_file_count(connection, batch)
        new = {"batch_key": batch.key, "file_name": start.file_name, "staged_as": staged_as, **values}
        row = await connection.one(insert(uploads).values(new).returning(uploads))
    elif row.state != UploadState.COMPLETE:
        row = await connection.one(_upload_of(batch, start.file_name).values(values).returning(uploads))
    return value_of(Upload, row)


async def _check_file_count(connection: Transaction, batch: Row[Any]) -> None:
    count = select(func.count()).select_from(uploads).where(uploads.c.batch_key == batch.key)
    check_file_count(batch.id, await connection.value(count) + 1)


def _upload_of(batch: Row[Any], file_name: str) -> Any:
    """Update the row of a file."""
    return update(uploads).where(uploads.c.batch_key == batch.key, uploads.c.file_name == file_name)


def _check_still_loading(row: Row[Any]) -> None:
    """Refuse to go on with a batch that has ended meanwhile."""
    if row.state != BatchState.LOADING:
        raise FailedPreconditionError(
            "BATCH_ABORTED",
            f"The batch '{row.id}' has become {row.state.upper()} meanwhile; upload under another batch_id.",
            metadata={"batch_id": row.id, "state": row.state.upper()},
        )


async def fields_with(known: ObjectType, found: Sequence[ObjectType]) -> ObjectType:
    """Return what a dataset knows with the fields of its files, none of which may be there.

    Raises:
        TypeConflictError: These contradict it or each other.
    """
    return await compute_if(is_wide([known, *found]), reduce, union_objects, found, known)


async def _check_same_files(
    connection: Transaction, batch: Row[Any], sent: Mapping[str, IngestedFile]
) -> None:
    """Refuse a commit that does not name exactly the complete files, or while another is open."""
    query = select(uploads.c.file_name, uploads.c.sha256).where(
        uploads.c.batch_key == batch.key, uploads.c.state != UploadState.REFUSED
    )
    found = {row.file_name: row.sha256 for row in await connection.execute(query)}
    if found != {file_name: ingested.sha256 for file_name, ingested in sent.items()}:
        raise BatchChangedError


async def _note_accepted(connection: Transaction, batch_key: int, sent: Mapping[str, IngestedFile]) -> None:
    """Note that files, by name, are complete, and that it need not be known any more what they hold."""
    rows = [
        {"of_file": file_name} | _accepted(ingested) | {"facts": None} for file_name, ingested in sent.items()
    ]
    query = update(uploads).where(
        uploads.c.batch_key == batch_key, uploads.c.file_name == bindparam("of_file")
    )
    await connection.execute(query, rows)


def _accepted(ingested: IngestedFile) -> dict[str, Any]:
    """Return what the row of a complete file says."""
    return {
        "state": UploadState.COMPLETE,
        "byte_count": ingested.byte_count,
        "staged_bytes": ingested.byte_count,
        "sha256": ingested.sha256,
        "folder": ingested.folder,
        "rejected_rows": ingested.rejected_rows,
        "errors": ingested.errors,
        "null_count": ingested.null_count,
        "notes": ingested.notes,
    }
