"""What an upload sends, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from profile_export.application.uploads import UploadSession
from profile_export.domain.errors import AbortedError, InvalidArgumentError
from profile_export.v1 import dataset_service_pb2 as pb


async def first_message(messages: AsyncIterator[pb.UploadBatchRequest], idle: timedelta) -> pb.UploadStart:
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


async def receive(
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
