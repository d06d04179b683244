"""Batches: opened, filled, completed, given up, taken back; their files, rejected rows and receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from profile_export.application.loading import Loading
from profile_export.application.ports import Lake
from profile_export.application.uploads import UploadSession, UploadSessions
from profile_export.domain.catalog.batches import (
    Batch,
    DataFile,
    RejectedRow,
    UploadStart,
    UploadState,
    check_batch_id,
)
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import InvalidArgumentError, PastEndError
from profile_export.domain.export.receipt import StoredReceipt
from profile_export.domain.lists import Page, PageRequest
from profile_export.store.files.batches import Batches, Receipts
from profile_export.store.files.uploads import Uploads


@dataclass(frozen=True, slots=True)
class ShownBatch:
    """A batch, and how many bytes have arrived of each file that is under way, by the file's name."""

    batch: Batch
    received: Mapping[str, int]


class BatchUseCases:
    """What callers do with batches. Raises what the store's methods of the same names raise."""

    def __init__(
        self,
        batches: Batches,
        opened: Uploads,
        receipts: Receipts,
        sessions: UploadSessions,
        loading: Loading,
        lake: Lake,
        new_id: Callable[[], str],
    ) -> None:
        self._batches, self._opened, self._receipts = batches, opened, receipts
        self._sessions, self._loading = sessions, loading
        self._lake, self._new_id = lake, new_id

    async def create(
        self, tenant: Tenant, dataset_id: str, batch_id: str, request_id: str
    ) -> tuple[ShownBatch, bool]:
        """Open a batch of several files, under an id of ours where `batch_id` is empty; True: it was open already."""
        batch_id = batch_id or self._new_id()
        check_batch_id(batch_id, "batch_id")
        folder = f"{dataset_id}/{self._new_id()}"
        batch, replayed = await self._opened.create_batch(
            tenant, dataset_id, batch_id, request_id, folder=folder
        )
        return await self._shown(batch), replayed

    def upload(self, tenant: Tenant, start: UploadStart) -> AbstractAsyncContextManager[UploadSession]:
        """Begin, resume or repeat the upload of a file, see `UploadSessions.open`."""
        return self._sessions.open(tenant, start)

    async def finish(self, session: UploadSession, byte_count: int, sha256: str) -> ShownBatch:
        """End an upload, see `UploadSession.finish`."""
        return await self._shown(await session.finish(byte_count, sha256))

    async def complete(self, tenant: Tenant, batch_id: str) -> tuple[ShownBatch, bool]:
        """Make a batch of several files count; True says that it did already."""
        completed = await self._loading.complete(tenant, batch_id)
        batch = completed or await self._batches.get_batch(tenant, batch_id)
        return await self._shown(batch), completed is None

    async def abort(self, tenant: Tenant, batch_id: str, reason: str) -> ShownBatch:
        """Give a batch up."""
        return await self._shown(await self._loading.abort(tenant, batch_id, reason))

    async def revert(self, tenant: Tenant, batch_id: str, reason: str) -> ShownBatch:
        """Take a batch back that counted."""
        return await self._shown(await self._batches.revert(tenant, batch_id, reason))

    async def get(self, tenant: Tenant, batch_id: str) -> ShownBatch:
        """Return a batch."""
        return await self._shown(await self._batches.get_batch(tenant, batch_id))

    async def list(self, tenant: Tenant, dataset_id: str, request: PageRequest) -> Page[ShownBatch]:
        """Return a page of the batches that count; nothing is under way of those."""
        page = await self._batches.list_batches(tenant, dataset_id, request)
        return page.turned(lambda batch: ShownBatch(batch, {}))

    async def rejected_rows(
        self, tenant: Tenant, batch_id: str, request: PageRequest
    ) -> Page[tuple[str, RejectedRow]]:
        """Return a page of the rows that were refused of a batch, each with its file's name."""
        return await self._loading.rejected_rows(await self._batches.get_batch(tenant, batch_id), request)

    async def files(self, tenant: Tenant, batch_id: str, request: PageRequest) -> Page[DataFile]:
        """Return a page of the data files of a batch."""
        return await self._batches.list_files(tenant, batch_id, request)

    async def read(
        self, tenant: Tenant, batch_id: str, file_name: str, offset: int, length: int | None
    ) -> tuple[DataFile, Iterator[bytes]]:
        """Return a data file, and a stretch of its bytes, None meaning to its end; reading it blocks.

        Raises:
            InvalidArgumentError: Offset or length is negative.
            PastEndError: The offset is beyond the end.
        """
        file = await self._batches.get_file(tenant, batch_id, file_name)
        for field, value in (("offset", offset), ("length", length or 0)):
            if value < 0:
                raise InvalidArgumentError.of_field(field, "must not be negative.")
        if offset > file.bytes:
            message = f"The file has {file.bytes} bytes."
            raise PastEndError("OFFSET_OUT_OF_RANGE", message, metadata={"bytes": str(file.bytes)})
        rest = file.bytes - offset
        return file, self._lake.read(file.path, offset, rest if length is None else min(length, rest))

    async def receipt(self, tenant: Tenant, batch_id: str) -> StoredReceipt:
        """Return the receipt of an exported batch."""
        return await self._receipts.get(tenant, batch_id)

    def location(self, path: str) -> str:
        """Return the URI under which other readers find a file of the lake."""
        return self._lake.location(path)

    async def _shown(self, batch: Batch) -> ShownBatch:
        received = {
            upload.file_name: await self._loading.received(upload)
            for upload in batch.uploads
            if upload.state is UploadState.OPEN
        }
        return ShownBatch(batch, received)
