"""DatasetService: datasets, uploads and data files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert
from profile_export.api.tenancy import current_tenant
from profile_export.domain.catalog import BatchState, Dataset
from profile_export.domain.errors import InvalidArgumentError, PastEndError, UnimplementedError
from profile_export.ingest.sessions import UploadSession, UploadSessions
from profile_export.lake.local import LocalLake
from profile_export.store.batches import Batches
from profile_export.store.catalog import Catalog
from profile_export.store.mirror_status import MirrorStatuses
from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class DatasetService(DatasetServiceServicer):
    """Serves datasets and batches from the store, and their files from the lake."""

    def __init__(
        self,
        catalog: Catalog,
        batches: Batches,
        mirrors: MirrorStatuses,
        sessions: UploadSessions,
        lake: LocalLake,
        new_id: Callable[[], str],
    ) -> None:
        self._catalog = catalog
        self._batches = batches
        self._mirrors = mirrors
        self._sessions = sessions
        self._lake = lake
        self._new_id = new_id

    async def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: _Context
    ) -> pb.CreateDatasetResponse:
        new = convert.new_dataset(request)
        request_id = convert.optional(request.request_id, "request_id")
        dataset, replayed = await self._catalog.create_dataset(
            current_tenant(), new, self._new_id(), request_id
        )
        [written] = await self._written(dataset)
        return pb.CreateDatasetResponse(dataset=written, replayed=replayed)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: _Context) -> pb.GetDatasetResponse:
        dataset = await self._catalog.get_dataset(current_tenant(), request.dataset_id)
        [written] = await self._written(dataset)
        return pb.GetDatasetResponse(dataset=written)

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: _Context
    ) -> pb.ListDatasetsResponse:
        page = await self._catalog.list_datasets(current_tenant(), convert.page_request(request))
        return pb.ListDatasetsResponse(
            datasets=await self._written(*page.items), next_page_token=page.next_token
        )

    async def _written(self, *datasets: Dataset) -> Sequence[dataset_pb2.Dataset]:
        mirrors = await self._mirrors.of([dataset.id for dataset in datasets])
        return [convert.dataset(dataset, mirrors.get(dataset.id)) for dataset in datasets]

    async def UpdateDataset(
        self, request: pb.UpdateDatasetRequest, context: _Context
    ) -> pb.UpdateDatasetResponse:
        raise UnimplementedError.of_method("UpdateDataset")

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: _Context
    ) -> pb.DeleteDatasetResponse:
        raise UnimplementedError.of_method("DeleteDataset")

    async def PreviewDataset(
        self, request: pb.PreviewDatasetRequest, context: _Context
    ) -> pb.PreviewDatasetResponse:
        raise UnimplementedError.of_method("PreviewDataset")

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: _Context) -> pb.CreateBatchResponse:
        raise UnimplementedError.of_method("CreateBatch")

    async def UploadBatch(
        self, request_iterator: AsyncIterable[pb.UploadBatchRequest], context: _Context
    ) -> pb.UploadBatchResponse:
        messages = aiter(request_iterator)
        first = await anext(messages, pb.UploadBatchRequest())
        if first.WhichOneof("message") != "start":
            raise _out_of_order("the first message must be 'start'.")
        async with self._sessions.open(current_tenant(), convert.upload_start(first.start)) as session:
            finish = await _receive(messages, session)
            batch = await session.finish(finish.byte_count, finish.sha256)
            return pb.UploadBatchResponse(batch=convert.batch(batch), replayed=session.replayed)

    async def CompleteBatch(
        self, request: pb.CompleteBatchRequest, context: _Context
    ) -> pb.CompleteBatchResponse:
        raise UnimplementedError.of_method("CompleteBatch")

    async def AbortBatch(self, request: pb.AbortBatchRequest, context: _Context) -> pb.AbortBatchResponse:
        raise UnimplementedError.of_method("AbortBatch")

    async def RevertBatch(self, request: pb.RevertBatchRequest, context: _Context) -> pb.RevertBatchResponse:
        raise UnimplementedError.of_method("RevertBatch")

    async def GetBatch(self, request: pb.GetBatchRequest, context: _Context) -> pb.GetBatchResponse:
        tenant = current_tenant()
        batch = await self._batches.get_batch(tenant, request.batch_id)
        received = 0
        if batch.state is BatchState.LOADING:
            folder = await self._batches.folder_of(tenant, batch.id)
            received = await asyncio.to_thread(self._lake.received, folder)
        return pb.GetBatchResponse(batch=convert.batch(batch, received))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: _Context) -> pb.ListBatchesResponse:
        page_request = convert.page_request(request, request.dataset_id)
        page = await self._batches.list_batches(current_tenant(), request.dataset_id, page_request)
        batches = [convert.batch(batch) for batch in page.items]
        return pb.ListBatchesResponse(batches=batches, next_page_token=page.next_token)

    async def ListRejectedRows(
        self, request: pb.ListRejectedRowsRequest, context: _Context
    ) -> pb.ListRejectedRowsResponse:
        raise UnimplementedError.of_method("ListRejectedRows")

    async def ListBatchFiles(
        self, request: pb.ListBatchFilesRequest, context: _Context
    ) -> pb.ListBatchFilesResponse:
        page_request = convert.page_request(request, request.batch_id)
        page = await self._batches.list_files(current_tenant(), request.batch_id, page_request)
        files = [convert.data_file(file, self._lake.location(file.path)) for file in page.items]
        return pb.ListBatchFilesResponse(files=files, next_page_token=page.next_token)

    # A stream is written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def ReadBatchFile(  # type: ignore[override]  # as said
        self, request: pb.ReadBatchFileRequest, context: _Context
    ) -> None:
        file = await self._batches.get_file(current_tenant(), request.batch_id, request.file_name)
        length = _stretch(request, file.bytes)
        facts = convert.data_file(file, self._lake.location(file.path))
        await context.write(pb.ReadBatchFileResponse(file=facts))
        chunks = self._lake.read(file.path, request.offset, length)
        while chunk := await asyncio.to_thread(next, chunks, b""):
            await context.write(pb.ReadBatchFileResponse(data=chunk))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: _Context) -> pb.GetReceiptResponse:
        raise UnimplementedError.of_method("GetReceipt")


async def _receive(messages: AsyncIterator[pb.UploadBatchRequest], session: UploadSession) -> pb.UploadFinish:
    """Take the bytes of an upload up to its last message, and return that."""
    async for message in messages:
        match message.WhichOneof("message"):
            case "data":
                await session.append(message.data)
            case "finish":
                return message.finish
            case _:
                raise _out_of_order("after 'start' come 'data' and, once, 'finish'.")
    raise InvalidArgumentError.of_field(
        "message",
        "the stream ended without 'finish'; what has arrived is kept: resume at received_bytes.",
        "UPLOAD_TRUNCATED",
    )


def _stretch(request: pb.ReadBatchFileRequest, size: int) -> int:
    """Return how many bytes to read.

    Raises:
        InvalidArgumentError: Offset or length is negative.
        PastEndError: The offset is beyond the end.
    """
    length = request.length if request.HasField("length") else size
    for field, value in (("offset", request.offset), ("length", length)):
        if value < 0:
            raise InvalidArgumentError.of_field(field, "must not be negative.")
    if request.offset > size:
        raise PastEndError(
            "OFFSET_OUT_OF_RANGE", f"The file has {size} bytes.", metadata={"bytes": str(size)}
        )
    return min(length, size - request.offset)


def _out_of_order(description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field("message", description, "MESSAGE_ORDER")
