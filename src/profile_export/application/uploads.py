"""Upload sessions: bytes arrive, are kept until all of them are there, and then become a batch or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from profile_export.application.loading import Interest, Loading
from profile_export.domain.catalog.batches import Batch, RowError, Upload, UploadStart, UploadState
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    DomainError,
    InvalidArgumentError,
    PastEndError,
)
from profile_export.store.files.uploads import OpenUpload, Uploads

_SIGN_OF_LIFE_SECONDS = 60.0
"""How often an upload notes in the store that bytes arrive: a chore gives up batches without such a note for hours."""
_MORE_BYTES = 16 * 1024 * 1024
"""How many bytes of room an upload reserves at a time."""
_RETRY_AFTER = timedelta(seconds=1)
_Argument = TypeVar("_Argument")


class UploadSessions:
    """All uploads of this process."""

    def __init__(self, uploads: Uploads, loading: Loading, new_id: Callable[[], str]) -> None:
        self._uploads = uploads
        self._loading = loading
        self._new_id = new_id
        self._live: set[tuple[Tenant, str, str]] = set()

    @asynccontextmanager
    async def open(self, tenant: Tenant, start: UploadStart) -> AsyncIterator[UploadSession]:
        """Begin or resume an upload, or recognise a repetition; leaving without `finish` keeps what has arrived.

        Raises:
            AbortedError: The same file is being uploaded right now.
            PastEndError: `offset` is neither 0 nor what has arrived.
            DomainError: As `Uploads.open_upload`.
        """
        key = (tenant, start.batch_id, start.file_name)
        if key in self._live:
            raise AbortedError(
                "UPLOAD_IN_PROGRESS",
                f"Another upload of the file '{start.file_name}' of batch '{start.batch_id}' is under way.",
                metadata={"batch_id": start.batch_id, "file_name": start.file_name},
                retry_after=_RETRY_AFTER,
            )
        self._live.add(key)
        session: UploadSession | None = None
        try:
            folder = f"{start.dataset_id}/{self._new_id()}"
            opened = await self._uploads.open_upload(tenant, start, folder, staged_as=self._new_id())
            _check_same_reading(opened.upload, start)
            session = UploadSession(self._uploads, self._loading, tenant, opened)
            await session.prepare(start.offset)
            yield session
        finally:
            # Nothing is awaited here: a call that is cancelled may be so again, and the file would stay taken.
            if session is not None:
                session.when_over(lambda: self._live.discard(key))
            else:
                self._live.discard(key)


def _check_same_reading(upload: Upload, start: UploadStart) -> None:
    """Refuse to take a file for one that is complete and was read in another way."""
    if upload.reading != start.reading:
        raise AlreadyExistsError(
            "UPLOAD_DIFFERS",
            f"The file '{upload.file_name}' of batch '{start.batch_id}' is complete, read with other null_values or "
            "renames; upload it under another batch_id.",
            metadata={"batch_id": start.batch_id, "file_name": upload.file_name},
        )


class UploadSession:
    """One upload. Bytes are written as they come; `finish` decides."""

    def __init__(self, uploads: Uploads, loading: Loading, tenant: Tenant, opened: OpenUpload) -> None:
        self._uploads = uploads
        self._loading = loading
        self._tenant = tenant
        self._opened = opened
        self._hash = hashlib.sha256()
        self._received = 0
        # How many bytes there is room for, and until when others take it that they arrive.
        self._room = opened.upload.staged_bytes
        self._noted_until = time.monotonic() + _SIGN_OF_LIFE_SECONDS
        self._file: BinaryIO | None = None
        # What goes on to its end even if the call is cancelled: opening the file, a write of bytes, or the commit.
        self._busy: asyncio.Future[Any] | None = None

    @property
    def replayed(self) -> bool:
        """Whether the file was complete before; then bytes are only compared."""
        return self._opened.upload.state is UploadState.COMPLETE

    async def prepare(self, offset: int) -> None:
        """Make ready for the bytes from `offset` on.

        Raises:
            PastEndError: `offset` is neither 0 nor what has arrived.
        """
        received = await self._loading.received(self._opened.upload)
        if offset not in {0, received}:
            raise PastEndError(
                "OFFSET_MISMATCH",
                f"{received} bytes have arrived; resume at offset {received}, or start over at 0.",
                metadata={"received_bytes": str(received)},
            )
        self._received = offset
        if not self.replayed:
            await self._to_its_end(self._open_file, offset)

    async def append(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            ExhaustedError: There is no room for them; what came before them is kept.
            DomainError: As `Uploads.reserve`: the batch has ended meanwhile.
        """
        received = self._received + len(data)
        if not self.replayed:
            await self._note_arrival(received)
        self._received = received
        await self._to_its_end(self._write, data)

    async def finish(self, byte_count: int, sha256: str) -> Batch:
        """Check that everything has arrived as sent, and make it count or wait for its batch.

        Raises:
            InvalidArgumentError: Bytes are missing or differ, or rows were refused.
            AlreadyExistsError: The file was complete with other bytes.
            DomainError: As `Loading.take`.
        """
        if self.replayed:
            return self._recognise(byte_count, sha256)
        interest = Interest()
        taking = asyncio.create_task(self._check_and_take(byte_count, sha256.lower(), interest))
        taking.add_done_callback(lambda _: taking.cancelled() or taking.exception())  # whoever is left to ask
        self._busy = taking
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            interest.lose()
            raise

    def when_over(self, release: Callable[[], None]) -> None:
        """Close the file and call `release`: now, or when what is under way has ended."""
        if self._busy and not self._busy.done():
            self._busy.add_done_callback(lambda _: self._close(release))
        else:
            self._close(release)

    async def _to_its_end(self, work: Callable[[_Argument], None], argument: _Argument) -> None:
        self._busy = asyncio.ensure_future(asyncio.to_thread(work, argument))
        await asyncio.shield(self._busy)

    def _close(self, release: Callable[[], None]) -> None:
        if self._file:
            # What could not be written is tried again here, and is told already.
            with suppress(OSError):
                self._file.close()
        release()

    async def _note_arrival(self, received: int) -> None:
        """Make room for bytes before they are written, and now and then say that they arrive."""
        if received <= self._room and time.monotonic() < self._noted_until:
            return
        wanted = self._room if received <= self._room else received + _MORE_BYTES
        self._room = await self._uploads.reserve(self._tenant, self._opened, received, wanted)
        self._noted_until = time.monotonic() + _SIGN_OF_LIFE_SECONDS

    async def _check_and_take(self, byte_count: int, sha256: str, interest: Interest) -> Batch:
        error = self._mismatch(byte_count, sha256)
        if error:
            refused = RowError(None, error.reason, error.message)
            await self._loading.refuse(self._tenant, self._opened, (refused,))
            raise error
        await self._note_arrival(self._received)
        if self._file:
            self._file.close()
        return await self._loading.take(self._tenant, self._opened, sha256, byte_count, interest)

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
        upload, batch = self._opened.upload, self._opened.batch
        if (upload.byte_count, upload.sha256) != (byte_count, sha256.lower()):
            raise AlreadyExistsError(
                "UPLOAD_DIFFERS",
                f"The file '{upload.file_name}' of batch '{batch.id}' is complete with other bytes; upload these "
                "under another batch_id.",
                metadata={"batch_id": batch.id, "file_name": upload.file_name, "sha256": upload.sha256 or ""},
            )
        return batch

    def _open_file(self, offset: int) -> None:
        place: Path = self._loading.staged(self._opened.upload)
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
