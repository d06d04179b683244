"""DatasetService: datasets, batches, uploads and data files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from profile_export.api.convert import batches as convert_batches
from profile_export.api.convert import datasets as convert_datasets
from profile_export.api.convert.values import rows_that_fit
from profile_export.api.pages import Pages, fitting
from profile_export.api.tenancy import current_tenant
from profile_export.api.transfer import first_message, receive
from profile_export.application.batches import BatchUseCases
from profile_export.application.datasets import DatasetUseCases, ShownDataset
from profile_export.application.doors import Streams, compute_if
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")
# To read or write a message of so many takes a few milliseconds.
_MANY_BYTES = 16 * 1024


class DatasetService(DatasetServiceServicer):
    """Converts calls about datasets and batches; uploads that send nothing for as long as `upload_idle` are ended."""

    def __init__(
        self,
        datasets: DatasetUseCases,
        batches: BatchUseCases,
        transfers: Streams,
        pages: Pages,
        upload_idle: timedelta,
    ) -> None:
        self._datasets, self._batches, self._transfers = datasets, batches, transfers
        self._pages, self._upload_idle = pages, upload_idle

    # --- Datasets ---

    async def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: _Context
    ) -> pb.CreateDatasetResponse:
        new = await compute_if(request.ByteSize() > _MANY_BYTES, convert_datasets.new_dataset, request)
        shown, replayed = await self._datasets.create(current_tenant(), new, request.request_id)
        return await _answer(pb.CreateDatasetResponse, shown, replayed=replayed)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: _Context) -> pb.GetDatasetResponse:
        shown = await self._datasets.get(current_tenant(), request.dataset_id)
        return await _answer(pb.GetDatasetResponse, shown)

    async def ListDatasets(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.ListDatasetsRequest, context: _Context
    ) -> bytes:
        page = await self._datasets.list(current_tenant(), await self._pages.of_all(request))

        def answer() -> bytes:
            datasets, token = fitting(page, convert_datasets.dataset)
            return _joined(
                *(pb.ListDatasetsResponse(datasets=[dataset]) for dataset in datasets),
                pb.ListDatasetsResponse(next_page_token=token),
            )

        return await compute_if(any(shown.is_wide for shown in page.items), answer)

    async def UpdateDataset(
        self, request: pb.UpdateDatasetRequest, context: _Context
    ) -> pb.UpdateDatasetResponse:
        change = await compute_if(request.ByteSize() > _MANY_BYTES, convert_datasets.dataset_change, request)
        shown = await self._datasets.update(current_tenant(), request.dataset_id, change)
        return await _answer(pb.UpdateDatasetResponse, shown)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: _Context
    ) -> pb.DeleteDatasetResponse:
        await self._datasets.delete(current_tenant(), request.dataset_id)
        return pb.DeleteDatasetResponse()

    async def PreviewDataset(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.PreviewDatasetRequest, context: _Context
    ) -> bytes:
        return await self._datasets.preview(current_tenant(), request.dataset_id, request.row_count, _preview)

    # --- Batches ---

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: _Context) -> pb.CreateBatchResponse:
        shown, replayed = await self._batches.create(
            current_tenant(), request.dataset_id, request.batch_id, request.request_id
        )
        return pb.CreateBatchResponse(batch=convert_batches.batch(shown), replayed=replayed)

    async def UploadBatch(
        self, request_iterator: AsyncIterable[pb.UploadBatchRequest], context: _Context
    ) -> pb.UploadBatchResponse:
        tenant = current_tenant()
        # grpc.aio's is a generator; left open, it is closed by whoever collects it, in whatever loop there is by then.
        messages: Any = aiter(request_iterator)
        async with aclosing(messages):
            with self._transfers.one(tenant):
                first = await first_message(messages, self._upload_idle)
                async with self._batches.upload(tenant, convert_batches.upload_start(first)) as session:
                    finish = await receive(messages, session, self._upload_idle)
                    shown = await self._batches.finish(session, finish.byte_count, finish.sha256)
                    return pb.UploadBatchResponse(
                        batch=convert_batches.batch(shown), replayed=session.replayed
                    )

    async def CompleteBatch(
        self, request: pb.CompleteBatchRequest, context: _Context
    ) -> pb.CompleteBatchResponse:
        shown, replayed = await self._batches.complete(current_tenant(), request.batch_id)
        return pb.CompleteBatchResponse(batch=convert_batches.batch(shown), replayed=replayed)

    async def AbortBatch(self, request: pb.AbortBatchRequest, context: _Context) -> pb.AbortBatchResponse:
        shown = await self._batches.abort(current_tenant(), request.batch_id, request.reason)
        return pb.AbortBatchResponse(batch=convert_batches.batch(shown))

    async def RevertBatch(self, request: pb.RevertBatchRequest, context: _Context) -> pb.RevertBatchResponse:
        shown = await self._batches.revert(current_tenant(), request.batch_id, request.reason)
        return pb.RevertBatchResponse(batch=convert_batches.batch(shown))

    async def GetBatch(self, request: pb.GetBatchRequest, context: _Context) -> pb.GetBatchResponse:
        shown = await self._batches.get(current_tenant(), request.batch_id)
        return pb.GetBatchResponse(batch=convert_batches.batch(shown))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: _Context) -> pb.ListBatchesResponse:
        page = await self._batches.list(
            current_tenant(), request.dataset_id, await self._pages.of_all(request)
        )
        batches, token = fitting(page, convert_batches.batch)
        return pb.ListBatchesResponse(batches=batches, next_page_token=token)

    async def ListRejectedRows(
        self, request: pb.ListRejectedRowsRequest, context: _Context
    ) -> pb.ListRejectedRowsResponse:
        page = await self._batches.rejected_rows(
            current_tenant(), request.batch_id, await self._pages.of_all(request)
        )
        rows, token = fitting(page, lambda one: convert_batches.rejected_row(*one))
        return pb.ListRejectedRowsResponse(rows=rows, next_page_token=token)

    # --- Files ---

    async def ListBatchFiles(
        self, request: pb.ListBatchFilesRequest, context: _Context
    ) -> pb.ListBatchFilesResponse:
        page = await self._batches.files(
            current_tenant(), request.batch_id, await self._pages.of_all(request)
        )
        files, token = fitting(
            page, lambda file: convert_batches.data_file(file, self._batches.location(file.path))
        )
        return pb.ListBatchFilesResponse(files=files, next_page_token=token)

    # A stream is written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def ReadBatchFile(  # type: ignore[override]  # as said
        self, request: pb.ReadBatchFileRequest, context: _Context
    ) -> None:
        tenant = current_tenant()
        length = request.length if request.HasField("length") else None
        file, chunks = await self._batches.read(
            tenant, request.batch_id, request.file_name, request.offset, length
        )
        facts = convert_batches.data_file(file, self._batches.location(file.path))
        with self._transfers.one(tenant):
            await context.write(pb.ReadBatchFileResponse(file=facts))
            while chunk := await asyncio.to_thread(next, chunks, b""):
                await context.write(pb.ReadBatchFileResponse(data=chunk))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: _Context) -> pb.GetReceiptResponse:
        stored = await self._batches.receipt(current_tenant(), request.batch_id)
        return await compute_if(
            len(stored.document) > _MANY_BYTES,
            lambda: pb.GetReceiptResponse(
                receipt=convert_batches.receipt(stored, self._batches.location),
                document=stored.document,
                location=self._batches.location(stored.path),
            ),
        )


async def _answer(answer: Callable[..., _Answer], shown: ShownDataset, **others: bool) -> _Answer:
    return await compute_if(shown.is_wide, lambda: answer(dataset=convert_datasets.dataset(shown), **others))


def _preview(rows: Iterable[Mapping[str, object]]) -> bytes:
    return _joined(*(pb.PreviewDatasetResponse(rows=[row]) for row in rows_that_fit(rows)))


def _joined(*parts: Message) -> bytes:
    """Write the parts of an answer one after the other, which makes one message of them.

    To copy or write one of megabytes is a single step of the library, and keeps the loop out for as long.
    """
    return b"".join(part.SerializeToString() for part in parts)
