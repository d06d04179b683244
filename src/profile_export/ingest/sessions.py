"""Upload sessions: bytes arrive, are kept until all of them are there, and then become a batch or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from profile_export.domain.catalog import (
    Batch,
    BatchState,
    DataFile,
    RowError,
    Tenant,
    check_batch_id,
    check_file_name,
)
from profile_export.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    PastEndError,
    UnavailableError,
)
from profile_export.domain.schema import TypeConflictError
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.refusals import RowsRefusedError
from profile_export.ingest.task import IngestResult, IngestTask, NamespacesSent
from profile_export.lake.children import ChildDiedError, Children
from profile_export.lake.local import LocalLake
from profile_export.store.catalog import Catalog
from profile_export.store.uploads import FieldsGrewError, NamespaceUse, OpenUpload, UploadFacts, Uploads

_RETRY_AFTER = timedelta(seconds=1)
_VIOLATIONS_TOLD = 10


@dataclass(frozen=True, slots=True)
class UploadStart:
    """The first message of an upload. `offset` is how many bytes were sent before."""

    dataset_id: str
    batch_id: str
    format: str
    file_name: str
    offset: int

    def __post_init__(self) -> None:
        check_batch_id(self.batch_id)
        check_file_name(self.file_name)


class UploadSessions:
    """All uploads of this process."""

    def __init__(
        self,
        catalog: Catalog,
        uploads: Uploads,
        lake: LocalLake,
        children: Children,
        new_id: Callable[[], str],
    ) -> None:
        self._catalog = catalog
        self._uploads = uploads
        self._lake = lake
        self._children = children
        self._new_id = new_id
        self._live: set[tuple[Tenant, str]] = set()

    @asynccontextmanager
    async def open(self, tenant: Tenant, start: UploadStart) -> AsyncIterator[UploadSession]:
        """Begin or resume an upload, or recognise a repetition; leaving without `finish` keeps what has arrived.

        Raises:
            AbortedError: The same batch is being uploaded right now.
            PastEndError: `offset` is neither 0 nor what has arrived.
            DomainError: As `Uploads.open_upload`.
        """
        key = (tenant, start.batch_id)
        if key in self._live:
            raise AbortedError(
                "UPLOAD_IN_PROGRESS",
                f"Another upload of batch '{start.batch_id}' is under way.",
                metadata={"batch_id": start.batch_id},
                retry_after=_RETRY_AFTER,
            )
        self._live.add(key)
        session: UploadSession | None = None
        try:
            folder = f"{start.dataset_id}/{self._new_id()}"
            opened = await self._uploads.open_upload(
                tenant, start.dataset_id, start.batch_id, start.format, start.file_name, folder
            )
            session = UploadSession(self, tenant, opened)
            await session.prepare(start.offset)
            yield session
        finally:
            # Nothing is awaited here: a call that is cancelled may be so again, and the batch would stay taken.
            if session is not None:
                session.when_over(lambda: self._live.discard(key))
            else:
                self._live.discard(key)

    async def ingest(self, tenant: Tenant, opened: OpenUpload, sha256: str, byte_count: int) -> Batch:
        """Turn the bytes of an upload into files and make them count; refused ones leave nothing behind.

        Raises:
            InvalidArgumentError: Rows were refused.
            FailedPreconditionError: Its fields contradict those of another dataset.
            UnavailableError: The process that parses has died; the bytes are kept.
        """
        try:
            while True:
                result = await self._children.run(ingest, await self._task(tenant, opened))
                await asyncio.to_thread(self._lake.sync, opened.folder)
                try:
                    facts = _facts(result, opened.folder, sha256, byte_count)
                    batch = await self._uploads.commit_upload(tenant, opened.batch.id, facts)
                except FieldsGrewError:
                    continue
                await asyncio.to_thread(self._lake.forget_upload, opened.folder)
                return batch
        except RowsRefusedError as refused:
            await self.refuse(tenant, opened, refused.rows)
            raise _rows_rejected(refused.rows) from None
        except TypeConflictError as conflict:
            await self.refuse(tenant, opened, (RowError(None, conflict.message),))
            raise FailedPreconditionError(
                conflict.reason, conflict.message, metadata=conflict.metadata
            ) from None
        except ChildDiedError:
            raise UnavailableError(
                "INGEST_DIED",
                "The process that read the upload died; what has arrived is kept: send 'finish' again.",
                retry_after=_RETRY_AFTER,
            ) from None

    async def refuse(self, tenant: Tenant, opened: OpenUpload, errors: tuple[RowError, ...]) -> None:
        """Fail a batch and remove what there is of it."""
        await self._uploads.fail_upload(tenant, opened.batch.id, errors)
        await asyncio.to_thread(self._lake.remove, opened.folder)
        await asyncio.to_thread(self._lake.forget_upload, opened.folder)

    def place(self, opened: OpenUpload) -> Path:
        """Return where the bytes of an upload are kept."""
        return self._lake.upload(opened.folder)

    async def received(self, opened: OpenUpload) -> int:
        """Return how many bytes of an upload have arrived."""
        return await asyncio.to_thread(self._lake.received, opened.folder)

    async def _task(self, tenant: Tenant, opened: OpenUpload) -> IngestTask:
        # An attempt that ended half-way may have left files there.
        await asyncio.to_thread(self._lake.empty, opened.folder)
        # Asked for anew: another batch may have taught the dataset fields meanwhile.
        dataset = await self._catalog.get_dataset(tenant, opened.dataset.id)
        return IngestTask(
            source=self.place(opened),
            format=opened.batch.format,
            kind=dataset.kind,
            batch_id=opened.batch.id,
            fields=dataset.fields,
            identity_fields=dataset.identity_fields,
            folder=self._lake.folder(opened.folder),
        )


class UploadSession:
    """One upload. Bytes are written as they come; `finish` decides."""

    def __init__(self, sessions: UploadSessions, tenant: Tenant, opened: OpenUpload) -> None:
        self._sessions = sessions
        self._tenant = tenant
        self._opened = opened
        self._hash = hashlib.sha256()
        self._received = 0
        self._file: BinaryIO | None = None
        # What goes on to its end even if the call is cancelled: a write of bytes, or the commit.
        self._busy: asyncio.Future[Any] | None = None

    @property
    def replayed(self) -> bool:
        """Whether the batch had succeeded before; then bytes are only compared."""
        return self._opened.batch.state is BatchState.SUCCEEDED

    async def prepare(self, offset: int) -> None:
        """Make ready for the bytes from `offset` on.

        Raises:
            PastEndError: `offset` is neither 0 nor what has arrived.
        """
        if self.replayed:
            received = self._opened.batch.byte_count or 0
        else:
            received = await self._sessions.received(self._opened)
        if offset not in {0, received}:
            raise PastEndError(
                "OFFSET_MISMATCH",
                f"{received} bytes have arrived; resume at offset {received}, or start over at 0.",
                metadata={"received_bytes": str(received)},
            )
        self._received = offset
        if not self.replayed:
            await asyncio.to_thread(self._open_file, offset)

    async def append(self, data: bytes) -> None:
        """Take the next bytes."""
        self._received += len(data)
        self._busy = asyncio.ensure_future(asyncio.to_thread(self._write, data))
        await asyncio.shield(self._busy)

    async def finish(self, byte_count: int, sha256: str) -> Batch:
        """Check that everything has arrived as sent, and make it count.

        Raises:
            InvalidArgumentError: Bytes are missing or differ, or rows were refused. The batch is FAILED and empty.
            AlreadyExistsError: The batch had succeeded with other bytes.
            DomainError: As `UploadSessions.ingest`.
        """
        if self.replayed:
            return self._recognise(byte_count, sha256)
        commit = asyncio.create_task(self._check_and_ingest(byte_count, sha256.lower()))
        self._busy = commit
        return await asyncio.shield(commit)

    def when_over(self, release: Callable[[], None]) -> None:
        """Close the file and call `release`: now, or when what is under way has ended."""
        if self._busy and not self._busy.done():
            self._busy.add_done_callback(lambda _: self._close(release))
        else:
            self._close(release)

    def _close(self, release: Callable[[], None]) -> None:
        if self._file:
            self._file.close()
        release()

    async def _check_and_ingest(self, byte_count: int, sha256: str) -> Batch:
        error = self._mismatch(byte_count, sha256)
        if error:
            await self._sessions.refuse(self._tenant, self._opened, (RowError(None, error.message),))
            raise error
        if self._file:
            self._file.close()
        return await self._sessions.ingest(self._tenant, self._opened, sha256, byte_count)

    def _mismatch(self, byte_count: int, sha256: str) -> DomainError | None:
        if self._received != byte_count:
            return InvalidArgumentError.of_field(
                "finish.byte_count",
                f"says {byte_count} bytes, but {self._received} have arrived; upload the file again.",
                "UPLOAD_TRUNCATED",
                received_bytes=str(self._received),
            )
        if self._hash.hexdigest() != sha256:
            return InvalidArgumentError.of_field(
                "finish.sha256",
                "is not that of the bytes that arrived; upload the file again.",
                "HASH_MISMATCH",
            )
        return None

    def _recognise(self, byte_count: int, sha256: str) -> Batch:
        batch = self._opened.batch
        if (batch.byte_count, batch.sha256) != (byte_count, sha256.lower()):
            raise AlreadyExistsError(
                "UPLOAD_DIFFERS",
                f"The batch '{batch.id}' has succeeded with other bytes; upload these under another batch_id.",
                metadata={"batch_id": batch.id, "sha256": batch.sha256 or ""},
            )
        return batch

    def _open_file(self, offset: int) -> None:
        place = self._sessions.place(self._opened)
        if offset:
            with place.open("rb") as before:
                while chunk := before.read(1024 * 1024):
                    self._hash.update(chunk)
        self._file = place.open("ab" if offset else "wb")

    def _write(self, data: bytes) -> None:
        if self._file:
            self._hash.update(data)
            self._file.write(data)
            # Out of this process at once, so that a resumed upload finds it.
            self._file.flush()


def _facts(result: IngestResult, folder: str, sha256: str, byte_count: int) -> UploadFacts:
    return UploadFacts(
        files=tuple(
            DataFile(file.name, f"{folder}/{file.name}", file.rows, file.bytes, file.sha256)
            for file in result.files
        ),
        fields=result.fields,
        identity_namespaces=_use(result.identity_namespaces),
        segment_namespaces=_use(result.segment_namespaces),
        untyped=result.untyped,
        sha256=sha256,
        byte_count=byte_count,
    )


def _use(sent: NamespacesSent) -> NamespaceUse:
    return NamespaceUse(tuple(use.spelling for use in sent.uses), sent.spellings)


def _rows_rejected(rows: tuple[RowError, ...]) -> InvalidArgumentError:
    first = rows[0]
    told = [f"row {error.row}: {error.reason}" if error.row else error.reason for error in rows]
    return InvalidArgumentError(
        "ROW_REJECTED" if first.row else "FILE_INVALID",
        f"Nothing was kept. {told[0]}",
        metadata={
            "row_number": str(first.row or ""),
            "row_reason": first.reason,
            "rejected_rows": str(len(rows)),
        },
        violations=tuple(FieldViolation("data", text) for text in told[:_VIOLATIONS_TOLD]),
    )
