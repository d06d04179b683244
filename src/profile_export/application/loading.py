"""Loading: complete files become data files, and data files a batch that counts, or nothing at all and a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog

from profile_export.application.ports import Lake
from profile_export.domain.catalog.allowances import MOST_BATCH_SPELLINGS, TooManyError
from profile_export.domain.catalog.batches import (
    Batch,
    DataFile,
    IngestedFile,
    RejectedRow,
    RowError,
    Upload,
)
from profile_export.domain.catalog.datasets import Dataset, DatasetKind, Tenant
from profile_export.domain.errors import (
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from profile_export.domain.lists import Order, Page, PageRequest, cursor_at, cut_page
from profile_export.domain.schemas.types import ObjectType, TypeConflictError, type_at
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import REJECTED_FILE, RowsRefusedError, read_rejected
from profile_export.ingest.task import Expense, IngestResult, IngestTask
from profile_export.processes.messages import ChildDiedError, TooExpensiveError
from profile_export.processes.supervisor import Pool
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.schemas import Schemas
from profile_export.store.files.uploads import (
    BatchChangedError,
    FieldsGrewError,
    OpenBatch,
    OpenUpload,
    Uploads,
    fields_with,
)

_VIOLATIONS_TOLD = 10
_RETRY_AFTER = timedelta(seconds=1)
_BY_FILE = Order("file_name")
_MOST_PAGE_BYTES = 2 * 1024 * 1024
"""How many bytes of rows a page has: clients take 4 MiB in one message, of which some tell why."""
_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class AbandonedError(Exception):
    """Nobody waits for the work any more, so it was ended."""


class Interest:
    """A caller's interest in work that runs in a task of its own. A part of that work ends without it."""

    def __init__(self) -> None:
        self._lost = False
        self._part: asyncio.Future[Any] | None = None

    def lose(self) -> None:
        """Say that nobody waits any more."""
        self._lost = True
        if self._part is not None:
            self._part.cancel()

    async def during(self, part: Coroutine[Any, Any, _Result]) -> _Result:
        """Do a part of the work for as long as somebody waits.

        Raises:
            AbandonedError: Nobody does.
        """
        doing = asyncio.ensure_future(part)
        if self._lost:
            doing.cancel()
        self._part = doing
        try:
            return await doing
        except asyncio.CancelledError:
            if self._lost:
                raise AbandonedError from None
            raise
        finally:
            self._part = None


class KeyedLock:
    """Runs work for one key after the other.

    A caller that is cancelled leaves the work that it began, which goes on to its end but for what it does only while
    somebody waits.
    """

    def __init__(self) -> None:
        self._at_work: dict[Hashable, asyncio.Task[Any]] = {}

    async def take(self, key: Hashable, work: Callable[[Interest], Coroutine[Any, Any, _Result]]) -> _Result:
        """Wait until nothing is being done for a key, and do `work` then.

        Raises:
            Exception: Whatever the work raises.
        """
        while before := self._at_work.get(key):
            await asyncio.wait([before])
        interest = Interest()
        task = asyncio.create_task(work(interest))
        self._at_work[key] = task
        task.add_done_callback(lambda _: self._ended(key, task))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            interest.lose()
            raise

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._at_work[key]
        if not task.cancelled():
            task.exception()  # asked for, or the loop complains when the caller is gone


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that has arrived in full; `folder` is that of its batch."""

    batch_id: str
    folder: str
    upload: Upload
    sha256: str
    byte_count: int


def ingested_file(result: IngestResult, folder: str, sent: SentFile, first_row: int) -> IngestedFile:
    """Return what was made of a file, with its data files in `folder` of the lake."""
    return IngestedFile(
        folder=folder,
        files=tuple(
            DataFile(file.name, f"{folder}/{file.name}", file.rows, file.bytes, file.sha256)
            for file in result.files
        ),
        first_row=first_row,
        rows=result.rows,
        fields=result.fields,
        identity_namespaces=result.identity_namespaces,
        segment_namespaces=result.segment_namespaces,
        untyped=result.untyped,
        sha256=sent.sha256,
        byte_count=sent.byte_count,
        rejected_rows=result.rejected_rows,
        errors=result.errors,
        null_count=result.null_count,
        notes=result.notes,
    )


def rows_rejected(refused: RowsRefusedError) -> DomainError:
    """Return the refusal of a file, which names its first bad row, or itself."""
    first = refused.rows[0]
    told = [f"row {error.row}: {error.message}" if error.row else error.message for error in refused.rows]
    is_conflict = first.code == Reason.FIELD_TYPE_CONFLICT
    has_way_out = "another name" in first.message  # some conflicts name one
    way_out = " Send it as that, or give it another name." if is_conflict and not has_way_out else ""
    message = f"Nothing was kept. {told[0]}{way_out}"
    if is_conflict and first.row is None:
        return FailedPreconditionError(first.code, message, metadata={"path": first.path})
    if first.code == Reason.TOO_MANY_NAMESPACES:
        return TooManyError(first.code, message, metadata={"limit": str(MOST_BATCH_SPELLINGS)})
    if first.code == Reason.INGEST_TOO_EXPENSIVE:
        return ExhaustedError(first.code, message)
    about_rows = first.row is not None and first.code != Reason.FILE_INVALID
    return InvalidArgumentError(
        "ROW_REJECTED" if about_rows else first.code,
        message,
        metadata={
            "row_number": str(first.row or ""),
            "row_reason": first.code,
            "path": first.path,
            "rejected_rows": str(refused.rejected_rows),
        },
        violations=tuple(FieldViolation("data", text) for text in told[:_VIOLATIONS_TOLD]),
    )


def fault_of_file(error: Exception, batch_id: str) -> RowsRefusedError | None:
    """Return the refusal of a file whose reading ended with an error; None where it is not the file's fault.

    What nobody foresaw goes into the log.
    """
    match error:
        case RowsRefusedError():
            if error.rows[0].code == Reason.FILE_UNREADABLE:
                _log.warning("file_unreadable", batch_id=batch_id, exc_info=error)
            return error
        case TooExpensiveError():
            message = (
                f"Reading the file took more than {error}: send its rows in smaller files, with shorter values or "
                "simpler rules."
            )
            return _of_whole_file(Reason.INGEST_TOO_EXPENSIVE, message)
        case ChildDiedError(is_crash=True):
            _log.warning("file_unreadable", batch_id=batch_id, exit_code=error.exit_code)
            message = (
                "The file cannot be read: its content breaks the reader. Write it anew, or in another format."
            )
            return _of_whole_file(Reason.FILE_UNREADABLE, message)
    return None


def _of_whole_file(reason: Reason, message: str) -> RowsRefusedError:
    return RowsRefusedError((RowError(None, reason.value, message),), 0)


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How many bytes one row may have."""

    record_bytes: int
    event_bytes: int

    def of(self, kind: DatasetKind) -> int:
        """Return the limit of a kind of dataset."""
        return self.event_bytes if kind is DatasetKind.EVENT else self.record_bytes


@dataclass(frozen=True, slots=True)
class Loading:
    """Turns what was uploaded into batches, for all tenants."""

    catalog: Catalog
    schemas: Schemas
    uploads: Uploads
    lake: Lake
    children: Pool
    limits: RowLimits
    expense: Expense
    new_id: Callable[[], str]
    completing: KeyedLock = field(default_factory=KeyedLock, init=False)

    def staged(self, upload: Upload) -> Path:
        """Return the place of a file's bytes as sent."""
        return self.lake.upload(upload.staged_as)

    async def received(self, upload: Upload) -> int:
        """Return how many bytes of a file have arrived."""
        if upload.byte_count is not None:
            return upload.byte_count
        return await asyncio.to_thread(self.lake.received, upload.staged_as)

    async def take(
        self, tenant: Tenant, opened: OpenUpload, sha256: str, byte_count: int, interest: Interest
    ) -> Batch:
        """Turn the bytes of a file into data files; they count, or wait for their batch if it has several files.

        Raises:
            InvalidArgumentError: Rows were refused.
            FailedPreconditionError: Its fields contradict those of another dataset, or the batch was given up.
            ExhaustedError: It takes too much to read.
            UnavailableError: The process that parses has died; the bytes are kept.
            AbandonedError: Nobody waits for it any more; the bytes are kept.
        """
        sent = SentFile(opened.batch.id, opened.folder, opened.upload, sha256, byte_count)
        try:
            if opened.batch.several_files:
                return await self._beside_others(tenant, opened, sent, interest)
            batch = await self._alone(tenant, opened, sent, interest)
        except _FileRefusedError as refused:
            rows = refused.rows
            await self.refuse(tenant, opened, rows.rows, rows.rejected_rows, refused.folder)
            raise rows_rejected(rows) from None
        except TooManyError as many:
            await self.refuse(tenant, opened, (RowError(None, many.reason, many.message),))
            raise
        except TypeConflictError as conflict:
            path = conflict.metadata["path"]
            await self.refuse(tenant, opened, (RowError(None, conflict.reason, conflict.message, path),))
            raise conflict.as_precondition() from None
        except FileNotFoundError:
            # The bytes leave with a batch that is given up.
            await self.uploads.check_loading(tenant, opened.batch.id)
            raise
        await self.clear_away([opened.upload.staged_as])
        return batch

    async def complete(self, tenant: Tenant, batch_id: str) -> Batch | None:
        """Make a batch of several files count; None if it does already.

        Its rows count on from file to file in the order of their names. A file that was ingested with other row
        numbers, or before a field of it got its type, is ingested again.

        Raises:
            FailedPreconditionError: A file is not complete, or fields contradict each other or another dataset.
            NotFoundError: There is no such batch.
            UnavailableError: The process that parses has died; the batch can be completed again.
        """
        return await self.completing.take(
            (tenant, batch_id), lambda interest: self._complete(tenant, batch_id, interest)
        )

    async def _complete(self, tenant: Tenant, batch_id: str, interest: Interest) -> Batch | None:
        while (opened := await self.uploads.loading_batch(tenant, batch_id)) is not None:
            sent: dict[str, IngestedFile] = {}
            try:
                await self._settle(tenant, opened, sent, interest)
                batch = await self.uploads.commit_batch(tenant, batch_id, sent)
            except Exception as error:
                await self._drop(sent, opened.uploads)
                match error:
                    case BatchChangedError() | FieldsGrewError():
                        continue
                    case TypeConflictError():
                        raise error.as_precondition() from None
                    case _FileRefusedError():
                        await self._remove(error.folder)
                        raise rows_rejected(error.rows) from None
                    case FileNotFoundError():
                        # The bytes leave with a batch that is given up.
                        await self.uploads.check_loading(tenant, batch_id)
                raise
            else:
                await self._drop(opened.uploads, sent)
                await self.clear_away([upload.staged_as for upload in opened.uploads])
                return batch
        return None

    async def abort(self, tenant: Tenant, batch_id: str, reason: str) -> Batch:
        """Give a batch up and remove what was received.

        Raises:
            DomainError: As `Uploads.abort_batch`.
        """
        batch, folder, staged = await self.uploads.abort_batch(tenant, batch_id, reason)
        await self._remove(folder)
        await self.clear_away(staged)
        return batch

    async def refuse(
        self,
        tenant: Tenant,
        opened: OpenUpload,
        errors: Sequence[RowError],
        rejected_rows: int = 0,
        folder: str = "",
    ) -> None:
        """Refuse a file and remove what there is of it, but for the rows that were rejected, in `folder`."""
        await self.uploads.refuse_upload(tenant, opened, errors, rejected_rows, folder)
        await self.clear_away([opened.upload.staged_as])

    async def clear_away(self, staged: Collection[str]) -> None:
        """Remove bytes of files as sent, and before them what their batches have left over, if these have ended.

        Args:
            staged: The names that the bytes have. As long as they are there, an end may not have been cleared up after.
        """
        for batch in await self.uploads.ended(staged):
            needed = [*batch.files, *(f"{folder}/{REJECTED_FILE}" for folder in batch.rejected_in)]
            await asyncio.to_thread(self.lake.keep_only, batch.folder, needed)
        for name in staged:
            await asyncio.to_thread(self.lake.forget_upload, name)

    async def rejected_rows(self, batch: Batch, request: PageRequest) -> Page[tuple[str, RejectedRow]]:
        """Return a page of the rows that were refused, each with the name of its file.

        They come in the order of file names, or the reverse, and then of their numbers.

        It has fewer rows than asked for where they are large.

        Raises:
            InvalidArgumentError: The page token is not one of ours.
        """
        kept = [upload for upload in batch.uploads if upload.rejected_rows]
        if request.order and request.order.descending:
            kept.reverse()
        async with self.lake.readable(f"{upload.folder}/{REJECTED_FILE}" for upload in kept):
            found = await asyncio.to_thread(self._rejected_rows, kept, request)
        if sum(len(row.text.encode()) for _, row in found) > _MOST_PAGE_BYTES:
            request = replace(request, size=len(found) - 1)
        return cut_page(found, request, lambda last: cursor_at((last[0], last[1].row)))

    def _rejected_rows(
        self, uploads: Sequence[Upload], request: PageRequest
    ) -> list[tuple[str, RejectedRow]]:
        """Read one row more than a page has; or stop after the row whose bytes exceed those of a page."""
        after_file, after_row = request.after or ("", 0)
        order = request.order or _BY_FILE
        found: list[tuple[str, RejectedRow]] = []
        room = _MOST_PAGE_BYTES
        for upload in uploads:
            if after_file and order.is_behind(after_file, upload.file_name):
                continue
            path = self.lake.root / upload.folder / REJECTED_FILE
            for row in read_rejected(path, after_row if upload.file_name == after_file else 0):
                told = {"file_name": upload.file_name, "reason": row.code, "path": row.path}
                if not all(condition.holds(told[condition.field]) for condition in request.filter):
                    continue
                found.append((upload.file_name, row))
                room -= len(row.text.encode())
                if len(found) > request.size or room < 0:
                    return found
        return found

    # --- One file ---

    async def _alone(self, tenant: Tenant, opened: OpenUpload, sent: SentFile, interest: Interest) -> Batch:
        while True:
            # Asked for anew: another batch may have taught the dataset fields meanwhile.
            dataset = await self.catalog.get_dataset(tenant, opened.dataset.id)
            ingested = await self._ingested(tenant, dataset, sent, (dataset.fields, 0), interest)
            try:
                committed = {sent.upload.file_name: ingested}
                return await self.uploads.commit_batch(tenant, sent.batch_id, committed)
            except FieldsGrewError:
                await self._remove(ingested.folder)
            except DomainError:
                await self._remove(ingested.folder)
                raise

    async def _beside_others(
        self, tenant: Tenant, opened: OpenUpload, sent: SentFile, interest: Interest
    ) -> Batch:
        """Ingest a file with the row numbers it will have if no file of a smaller name comes after it."""
        dataset = await self.catalog.get_dataset(tenant, opened.dataset.id)
        beside = await self.uploads.beside(tenant, sent.batch_id, sent.upload.file_name)
        fields = await fields_with(dataset.fields, beside.fields)
        ingested = await self._ingested(tenant, dataset, sent, (fields, beside.first_row), interest)
        try:
            return await self.uploads.accept_upload(tenant, opened, ingested)
        except DomainError:
            await self._remove(ingested.folder)
            raise

    async def _settle(
        self, tenant: Tenant, opened: OpenBatch, settled: dict[str, IngestedFile], interest: Interest
    ) -> None:
        """Bring the files of a batch together: rows that count on, and no type that one of them lacks.

        `settled` gets what each file holds then, by name.
        """
        fields = await fields_with(
            opened.dataset.fields, [ingested.fields for ingested in opened.uploads.values()]
        )
        first_row = 0
        for upload, ingested in opened.uploads.items():
            right = ingested
            if ingested.first_row != first_row or any(type_at(fields, path) for path in ingested.untyped):
                sent = SentFile(opened.batch.id, opened.folder, upload, ingested.sha256, ingested.byte_count)
                right = await self._ingested(tenant, opened.dataset, sent, (fields, first_row), interest)
            settled[upload.file_name] = right
            first_row += right.rows

    async def _ingested(
        self,
        tenant: Tenant,
        dataset: Dataset,
        sent: SentFile,
        known: tuple[ObjectType, int],
        interest: Interest,
    ) -> IngestedFile:
        """Ingest a file into a folder of its own; `known` are the fields that it has at least, and its first row."""
        fields, first_row = known
        schema = await self.schemas.get(tenant, dataset.schema.id)
        folder = f"{sent.folder}/{self.new_id()}"
        task = IngestTask(
            source=self.staged(sent.upload),
            format=sent.upload.format,
            kind=dataset.kind,
            batch_id=sent.batch_id,
            fields=fields,
            identity_fields=dataset.identity_fields,
            folder=self.lake.staging(folder),
            first_row=first_row,
            max_bad_records=sent.upload.max_bad_records,
            reading=sent.upload.reading,
            max_row_bytes=self.limits.of(dataset.kind),
            rules=schema.rules,
            bytes_held=self.expense.bytes_held,
        )
        try:
            limits = self.expense.limits(sent.byte_count)
            result = await interest.during(self.children.run(ingest, task, tenant, limits))
        except Exception as error:
            if isinstance(error, RowsRefusedError) and error.rejected_rows:
                await asyncio.to_thread(self.lake.publish, [f"{folder}/{REJECTED_FILE}"])
            else:
                await self._remove(folder)
            if (refused := fault_of_file(error, sent.batch_id)) is not None:
                raise _FileRefusedError(folder, refused) from None
            if isinstance(error, ChildDiedError):
                raise UnavailableError(
                    "INGEST_DIED",
                    "The process that read the upload died; what has arrived is kept: send 'finish' again.",
                    retry_after=_RETRY_AFTER,
                ) from None
            raise
        ingested = ingested_file(result, folder, sent, first_row)
        rejected = [f"{folder}/{REJECTED_FILE}"] if ingested.rejected_rows else []
        await asyncio.to_thread(self.lake.publish, [*(file.path for file in ingested.files), *rejected])
        return ingested

    async def _drop(self, made: Mapping[Any, IngestedFile], counting: Mapping[Any, IngestedFile]) -> None:
        """Remove the folders of files that were ingested, except for folders that also hold what counts."""
        for folder in {ingested.folder for ingested in made.values()} - {
            one.folder for one in counting.values()
        }:
            await self._remove(folder)

    async def _remove(self, folder: str) -> None:
        await asyncio.to_thread(self.lake.remove, folder)


class _FileRefusedError(Exception):
    """A file cannot be stored; its rejected rows are in `folder`."""

    def __init__(self, folder: str, rows: RowsRefusedError) -> None:
        super().__init__(folder)
        self.folder, self.rows = folder, rows
