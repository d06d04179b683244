"""DatasetService: datasets, batches, uploads and data files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from profile_export.api import convert_batches, convert_datasets, convert_receipts
from profile_export.api.pages import Pages, fitting
from profile_export.api.streams import Streams
from profile_export.api.tenancy import current_tenant
from profile_export.api.transfer import first_message, receive, stretch
from profile_export.api.values import rows_that_fit
from profile_export.domain.batch import Batch, UploadState, check_batch_id
from profile_export.domain.catalog import Dataset
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from profile_export.domain.width import is_wide
from profile_export.ingest.loading import Loading
from profile_export.ingest.sessions import UploadSessions
from profile_export.lake.local import LocalLake
from profile_export.lake.preview import first_rows
from profile_export.processes.computing import compute, compute_if
from profile_export.store.batches import Batches
from profile_export.store.catalog import Catalog
from profile_export.store.loading import LoadingBatches
from profile_export.store.mirror_status import MirrorStatuses
from profile_export.store.receipts import Receipts
from profile_export.v1 import batch_pb2
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")
# To read or write a message of so many takes a few milliseconds.
_MANY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class DatasetRooms:
    """What datasets are served from."""

    catalog: Catalog
    batches: Batches
    opened: LoadingBatches
    receipts: Receipts
    mirrors: MirrorStatuses
    sessions: UploadSessions
    loading: Loading
    lake: LocalLake
    pages: Pages
    transfers: Streams


class DatasetService(DatasetServiceServicer):
    """Serves datasets and batches from the store, and their files from the lake."""

    def __init__(self, rooms: DatasetRooms, new_id: Callable[[], str], upload_idle: timedelta) -> None:
        """Serve from rooms, and end uploads that send nothing for so long."""
        self._catalog, self._batches, self._opened = rooms.catalog, rooms.batches, rooms.opened
        self._sessions, self._loading, self._lake = rooms.sessions, rooms.loading, rooms.lake
        self._receipts, self._mirrors, self._pages = rooms.receipts, rooms.mirrors, rooms.pages
        self._transfers, self._upload_idle = rooms.transfers, upload_idle
        self._new_id = new_id

    # --- Datasets ---

    async def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: _Context
    ) -> pb.CreateDatasetResponse:
        new = await compute_if(request.ByteSize() > _MANY_BYTES, convert_datasets.new_dataset, request)
        dataset, replayed = await self._catalog.create_dataset(
            current_tenant(), new, self._new_id(), request.request_id
        )
        return await self._answer(pb.CreateDatasetResponse, dataset, replayed=replayed)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: _Context) -> pb.GetDatasetResponse:
        dataset = await self._catalog.get_dataset(current_tenant(), request.dataset_id)
        return await self._answer(pb.GetDatasetResponse, dataset)

    async def ListDatasets(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.ListDatasetsRequest, context: _Context
    ) -> bytes:
        page = await self._catalog.list_datasets(current_tenant(), await self._pages.of_all(request))
        mirrors = await self._mirrors.of([dataset.id for dataset in page.items])

        def answer() -> bytes:
            datasets, token = fitting(
                page, lambda dataset: convert_datasets.dataset(dataset, mirrors.get(dataset.id))
            )
            return _joined(
                *(pb.ListDatasetsResponse(datasets=[dataset]) for dataset in datasets),
                pb.ListDatasetsResponse(next_page_token=token),
            )

        return await compute_if(is_wide(dataset.fields for dataset in page.items), answer)

    async def _answer(self, answer: Callable[..., _Answer], dataset: Dataset, **others: bool) -> _Answer:
        mirrors = await self._mirrors.of([dataset.id])
        return await compute_if(
            is_wide([dataset.fields]),
            lambda: answer(dataset=convert_datasets.dataset(dataset, mirrors.get(dataset.id)), **others),
        )

    async def UpdateDataset(
        self, request: pb.UpdateDatasetRequest, context: _Context
    ) -> pb.UpdateDatasetResponse:
        change = await compute_if(request.ByteSize() > _MANY_BYTES, convert_datasets.dataset_change, request)
        dataset = await self._catalog.update_dataset(current_tenant(), request.dataset_id, change)
        return await self._answer(pb.UpdateDatasetResponse, dataset)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: _Context
    ) -> pb.DeleteDatasetResponse:
        await self._catalog.delete_dataset(current_tenant(), request.dataset_id)
        return pb.DeleteDatasetResponse()

    async def PreviewDataset(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.PreviewDatasetRequest, context: _Context
    ) -> bytes:
        if request.row_count < 0:
            raise InvalidArgumentError.of_field("row_count", "must not be negative.")
        count = min(request.row_count or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        files = await self._batches.newest_files(current_tenant(), request.dataset_id, count)
        rows = first_rows(self._lake.root / file.path for file in files)
        return await compute(_preview, islice(rows, count))

    # --- Batches ---

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: _Context) -> pb.CreateBatchResponse:
        batch_id = request.batch_id or self._new_id()
        check_batch_id(batch_id, "batch_id")
        batch, replayed = await self._opened.create_batch(
            current_tenant(),
            request.dataset_id,
            batch_id,
            request.request_id,
            folder=f"{request.dataset_id}/{self._new_id()}",
        )
        return pb.CreateBatchResponse(batch=await self._shown(batch), replayed=replayed)

    async def UploadBatch(
        self, request_iterator: AsyncIterable[pb.UploadBatchRequest], context: _Context
    ) -> pb.UploadBatchResponse:
        tenant = current_tenant()
        # grpc.aio's is a generator; left open, it is closed by whoever collects it, in whatever loop there is by then.
        messages: Any = aiter(request_iterator)
        async with aclosing(messages):
            with self._transfers.one(tenant):
                first = await first_message(messages, self._upload_idle)
                async with self._sessions.open(tenant, convert_batches.upload_start(first)) as session:
                    finish = await receive(messages, session, self._upload_idle)
                    batch = await session.finish(finish.byte_count, finish.sha256)
                    return pb.UploadBatchResponse(batch=await self._shown(batch), replayed=session.replayed)

    async def CompleteBatch(
        self, request: pb.CompleteBatchRequest, context: _Context
    ) -> pb.CompleteBatchResponse:
        completed = await self._loading.complete(current_tenant(), request.batch_id)
        batch = completed or await self._batches.get_batch(current_tenant(), request.batch_id)
        return pb.CompleteBatchResponse(batch=await self._shown(batch), replayed=completed is None)

    async def AbortBatch(self, request: pb.AbortBatchRequest, context: _Context) -> pb.AbortBatchResponse:
        batch = await self._loading.abort(current_tenant(), request.batch_id, request.reason)
        return pb.AbortBatchResponse(batch=await self._shown(batch))

    async def RevertBatch(self, request: pb.RevertBatchRequest, context: _Context) -> pb.RevertBatchResponse:
        batch = await self._batches.revert(current_tenant(), request.batch_id, request.reason)
        return pb.RevertBatchResponse(batch=await self._shown(batch))

    async def GetBatch(self, request: pb.GetBatchRequest, context: _Context) -> pb.GetBatchResponse:
        batch = await self._batches.get_batch(current_tenant(), request.batch_id)
        return pb.GetBatchResponse(batch=await self._shown(batch))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: _Context) -> pb.ListBatchesResponse:
        page = await self._batches.list_batches(
            current_tenant(), request.dataset_id, await self._pages.of_all(request)
        )
        # Nothing is under way of batches that count.
        batches, token = fitting(page, lambda batch: convert_batches.batch(batch, {}))
        return pb.ListBatchesResponse(batches=batches, next_page_token=token)

    async def ListRejectedRows(
        self, request: pb.ListRejectedRowsRequest, context: _Context
    ) -> pb.ListRejectedRowsResponse:
        batch = await self._batches.get_batch(current_tenant(), request.batch_id)
        page = await self._loading.rejected_rows(batch, await self._pages.of_all(request))
        rows, token = fitting(page, lambda one: convert_batches.rejected_row(*one))
        return pb.ListRejectedRowsResponse(rows=rows, next_page_token=token)

    # --- Files ---

    async def ListBatchFiles(
        self, request: pb.ListBatchFilesRequest, context: _Context
    ) -> pb.ListBatchFilesResponse:
        page = await self._batches.list_files(
            current_tenant(), request.batch_id, await self._pages.of_all(request)
        )
        files, token = fitting(
            page, lambda file: convert_batches.data_file(file, self._lake.location(file.path))
        )
        return pb.ListBatchFilesResponse(files=files, next_page_token=token)

    # A stream is written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def ReadBatchFile(  # type: ignore[override]  # as said
        self, request: pb.ReadBatchFileRequest, context: _Context
    ) -> None:
        file = await self._batches.get_file(current_tenant(), request.batch_id, request.file_name)
        length = stretch(request, file.bytes)
        facts = convert_batches.data_file(file, self._lake.location(file.path))
        chunks = self._lake.read(file.path, request.offset, length)
        with self._transfers.one(current_tenant()):
            await context.write(pb.ReadBatchFileResponse(file=facts))
            while chunk := await asyncio.to_thread(next, chunks, b""):
                await context.write(pb.ReadBatchFileResponse(data=chunk))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: _Context) -> pb.GetReceiptResponse:
        stored = await self._receipts.get(current_tenant(), request.batch_id)
        return await compute_if(
            len(stored.document) > _MANY_BYTES,
            lambda: pb.GetReceiptResponse(
                receipt=convert_receipts.receipt(stored, self._lake.location),
                document=stored.document,
                location=self._lake.location(stored.path),
            ),
        )

    async def _shown(self, batch: Batch) -> batch_pb2.Batch:
        """Write a batch, with how much has arrived of the files that are under way."""
        received = {
            upload.file_name: await self._loading.received(upload)
            for upload in batch.uploads
            if upload.state is UploadState.OPEN
        }
        return convert_batches.batch(batch, received)


def _preview(rows: Iterable[Mapping[str, object]]) -> bytes:
    return _joined(*(pb.PreviewDatasetResponse(rows=[row]) for row in rows_that_fit(rows)))


def _joined(*parts: Message) -> bytes:
    """Write the parts of an answer one after the other, which makes one message of them.

    To copy or write one of megabytes is a single step of the library, and keeps the loop out for as long.
    """
    return b"".join(part.SerializeToString() for part in parts)
