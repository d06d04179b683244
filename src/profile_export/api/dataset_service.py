"""DatasetService: datasets, batches, uploads, data files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from profile_export.api.convert import datasets as convert
from profile_export.api.convert.lists import Pages, fitting, rows_that_fit
from profile_export.api.convert.values import given
from profile_export.api.interceptors import Context, current_tenant
from profile_export.application.batches import BatchUseCases
from profile_export.application.datasets import DatasetUseCases, ShownDataset
from profile_export.application.doors import Streams, compute_if
from profile_export.application.uploads import UploadSession
from profile_export.domain.catalog.batches import BATCH_LIST, FILE_LIST, REJECTED_LIST
from profile_export.domain.catalog.datasets import DATASET_LIST
from profile_export.domain.errors import AbortedError, InvalidArgumentError
from profile_export.v1 import dataset_service_pb2 as pb
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceServicer

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
        self, request: pb.CreateDatasetRequest, context: Context
    ) -> pb.CreateDatasetResponse:
        new = await compute_if(request.ByteSize() > _MANY_BYTES, convert.new_dataset, request)
        shown, replayed = await self._datasets.create(current_tenant(), new, request.request_id)
        return await _answer(pb.CreateDatasetResponse, shown, replayed=replayed)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        shown = await self._datasets.get(current_tenant(), request.dataset_id)
        return await _answer(pb.GetDatasetResponse, shown)

    async def ListDatasets(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> bytes:
        page = await self._datasets.list(
            current_tenant(),
            await self._pages.among(DATASET_LIST, request),
            show_deleted=request.show_deleted,
        )

        def answer() -> bytes:
            datasets, token = fitting(page, convert.dataset)
            return _joined(
                *(pb.ListDatasetsResponse(datasets=[dataset]) for dataset in datasets),
                pb.ListDatasetsResponse(next_page_token=token),
            )

        return await compute_if(any(shown.is_wide for shown in page.items), answer)

    async def UpdateDataset(
        self, request: pb.UpdateDatasetRequest, context: Context
    ) -> pb.UpdateDatasetResponse:
        change = await compute_if(request.ByteSize() > _MANY_BYTES, convert.dataset_change, request)
        shown = await self._datasets.update(current_tenant(), request.dataset_id, change, request.etag)
        return await _answer(pb.UpdateDatasetResponse, shown)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: Context
    ) -> pb.DeleteDatasetResponse:
        shown = await self._datasets.delete(current_tenant(), request.dataset_id, request.etag)
        return await _answer(pb.DeleteDatasetResponse, shown)

    async def UndeleteDataset(
        self, request: pb.UndeleteDatasetRequest, context: Context
    ) -> pb.UndeleteDatasetResponse:
        shown = await self._datasets.undelete(current_tenant(), request.dataset_id)
        return await _answer(pb.UndeleteDatasetResponse, shown)

    async def PreviewDataset(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.PreviewDatasetRequest, context: Context
    ) -> bytes:
        return await self._datasets.preview(current_tenant(), request.dataset_id, request.row_count, _preview)

    # --- Batches ---

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: Context) -> pb.CreateBatchResponse:
        shown, replayed = await self._batches.create(
            current_tenant(), request.dataset_id, request.batch_id, request.request_id
        )
        return pb.CreateBatchResponse(batch=convert.batch(shown), replayed=replayed)

    async def UploadBatch(
        self, request_iterator: AsyncIterable[pb.UploadBatchRequest], context: Context
    ) -> pb.UploadBatchResponse:
        tenant = current_tenant()
        # grpc.aio's is a generator; left open, it is closed by whoever collects it, in whatever loop there is by then.
        messages: Any = aiter(request_iterator)
        async with aclosing(messages):
            with self._transfers.one(tenant):
                first = await _first_message(messages, self._upload_idle)
                async with self._batches.upload(tenant, convert.upload_start(first)) as session:
                    finish = await _receive(messages, session, self._upload_idle)
                    shown = await self._batches.finish(session, finish.byte_count, finish.sha256)
                    return pb.UploadBatchResponse(batch=convert.batch(shown), replayed=session.replayed)

    async def CompleteBatch(
        self, request: pb.CompleteBatchRequest, context: Context
    ) -> pb.CompleteBatchResponse:
        shown, replayed = await self._batches.complete(current_tenant(), request.batch_id)
        return pb.CompleteBatchResponse(batch=convert.batch(shown), replayed=replayed)

    async def AbortBatch(self, request: pb.AbortBatchRequest, context: Context) -> pb.AbortBatchResponse:
        shown = await self._batches.abort(current_tenant(), request.batch_id, request.reason)
        return pb.AbortBatchResponse(batch=convert.batch(shown))

    async def RevertBatch(self, request: pb.RevertBatchRequest, context: Context) -> pb.RevertBatchResponse:
        shown = await self._batches.revert(current_tenant(), request.batch_id, request.reason)
        return pb.RevertBatchResponse(batch=convert.batch(shown))

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        shown = await self._batches.get(current_tenant(), request.batch_id)
        return pb.GetBatchResponse(batch=convert.batch(shown))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> pb.ListBatchesResponse:
        page = await self._batches.list(
            current_tenant(), request.dataset_id, await self._pages.among(BATCH_LIST, request)
        )
        batches, token = fitting(page, convert.batch)
        return pb.ListBatchesResponse(batches=batches, next_page_token=token)

    async def ListRejectedRows(
        self, request: pb.ListRejectedRowsRequest, context: Context
    ) -> pb.ListRejectedRowsResponse:
        page = await self._batches.rejected_rows(
            current_tenant(), request.batch_id, await self._pages.among(REJECTED_LIST, request)
        )
        rows, token = fitting(page, lambda one: convert.rejected_row(*one))
        return pb.ListRejectedRowsResponse(rows=rows, next_page_token=token)

    # --- Files ---

    async def ListBatchFiles(
        self, request: pb.ListBatchFilesRequest, context: Context
    ) -> pb.ListBatchFilesResponse:
        page = await self._batches.files(
            current_tenant(), request.batch_id, await self._pages.among(FILE_LIST, request)
        )
        files, token = fitting(page, lambda file: convert.data_file(file, self._batches.location(file.path)))
        return pb.ListBatchFilesResponse(files=files, next_page_token=token)

    # A stream is written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def ReadBatchFile(  # type: ignore[override]  # as said
        self, request: pb.ReadBatchFileRequest, context: Context
    ) -> None:
        tenant = current_tenant()
        file, chunks = await self._batches.read(
            tenant, request.batch_id, request.file_name, request.offset, given(request, "length")
        )
        facts = convert.data_file(file, self._batches.location(file.path))
        with self._transfers.one(tenant):
            await context.write(pb.ReadBatchFileResponse(file=facts))
            while chunk := await asyncio.to_thread(next, chunks, b""):
                await context.write(pb.ReadBatchFileResponse(data=chunk))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Context) -> pb.GetReceiptResponse:
        stored = await self._batches.receipt(current_tenant(), request.batch_id)
        return await compute_if(
            len(stored.document) > _MANY_BYTES,
            lambda: pb.GetReceiptResponse(
                receipt=convert.receipt(stored, self._batches.location),
                document=stored.document,
                location=self._batches.location(stored.path),
            ),
        )


async def _answer(answer: Callable[..., _Answer], shown: ShownDataset, **others: bool) -> _Answer:
    return await compute_if(shown.is_wide, lambda: answer(dataset=convert.dataset(shown), **others))


def _preview(rows: Iterable[Mapping[str, object]]) -> bytes:
    return _joined(*(pb.PreviewDatasetResponse(rows=[row]) for row in rows_that_fit(rows)))


def _joined(*parts: Message) -> bytes:
    """Write the parts of an answer one after the other, which makes one message of them.

    To copy or write one of megabytes is a single step of the library, and keeps the loop out for as long.
    """
    return b"".join(part.SerializeToString() for part in parts)


async def _first_message(messages: AsyncIterator[pb.UploadBatchRequest], idle: timedelta) -> pb.UploadStart:
    """Return how an upload begins.

    Raises:
        InvalidArgumentError: It begins otherwise.
        AbortedError: Nothing comes for that long.
    """
    async with _ended_when_silent(idle):
        first = await anext(messages, pb.UploadBatchRequest())
    if first.WhichOneof("message") != "start":
        raise _out_of_order("the first message must be 'start'.")
    return first.start


async def _receive(
    messages: AsyncIterator[pb.UploadBatchRequest], session: UploadSession, idle: timedelta
) -> pb.UploadFinish:
    """Take the bytes of an upload up to its last message, and return that.

    Raises:
        InvalidArgumentError: The messages come in another order, or end too early.
        AbortedError: No byte comes for that long.
        DomainError: As `UploadSession.append`.
    """
    async with _ended_when_silent(idle) as heard:
        async for message in messages:
            match message.WhichOneof("message"):
                case "data":
                    await session.append(message.data)
                    if message.data:
                        heard()
                case "finish":
                    return message.finish
                case _:
                    raise _out_of_order("after 'start' come 'data' and, once, 'finish'.")
    raise InvalidArgumentError.of_field(
        "message",
        "the stream ended without 'finish'; what has arrived is kept: resume at received_bytes.",
        "UPLOAD_TRUNCATED",
    )


@asynccontextmanager
async def _ended_when_silent(idle: timedelta) -> AsyncIterator[Callable[[], None]]:
    """End the block when nothing was heard for so long; yield what tells that something was."""
    loop = asyncio.get_running_loop()
    silence = asyncio.timeout(idle.total_seconds())
    try:
        async with silence:
            yield lambda: silence.reschedule(loop.time() + idle.total_seconds())
    except TimeoutError:
        if not silence.expired():
            raise
        raise AbortedError(
            "UPLOAD_IDLE",
            f"Nothing was sent for {idle.total_seconds() / 60:g} minutes; what has arrived is kept: resume at "
            "received_bytes.",
            retry_after=timedelta(seconds=1),
        ) from None


def _out_of_order(description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field("message", description, "MESSAGE_ORDER")
