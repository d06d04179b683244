"""Streams of bytes: what an upload sends, and which stretch of a file a download asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from profile_export.domain.errors import InvalidArgumentError, PastEndError
from profile_export.ingest.sessions import UploadSession
from profile_export.v1 import dataset_service_pb2 as pb


async def first_message(messages: AsyncIterator[pb.UploadBatchRequest]) -> pb.UploadStart:
    """Return how an upload begins.

    Raises:
        InvalidArgumentError: It begins otherwise.
    """
    first = await anext(messages, pb.UploadBatchRequest())
    if first.WhichOneof("message") != "start":
        raise _out_of_order("the first message must be 'start'.")
    return first.start


async def receive(messages: AsyncIterator[pb.UploadBatchRequest], session: UploadSession) -> pb.UploadFinish:
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


def stretch(request: pb.ReadBatchFileRequest, size: int) -> int:
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
