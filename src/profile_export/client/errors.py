"""Errors of calls, and how long to wait before the next try."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_Answer = TypeVar("_Answer")
_Message = TypeVar("_Message", bound=Message)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_BROKEN_OFF = "Internal error from Core"
"""What gRPC itself says of a call that ended while its messages were still being sent."""


@dataclass(frozen=True)
class Violation:
    """One field of a request that the server refused."""

    field: str
    description: str


@dataclass(eq=False)
class ClientError(Exception):
    """An error of a call.

    Attributes:
        code: Name of the gRPC status, such as `NOT_FOUND`.
        reason: Stable upper-case word of the server, such as `DATASET_NOT_FOUND`. Empty: the server said none.
        message: A sentence for people.
        violations: The fields of the request that are wrong.
        metadata: Facts that belong to the reason.
        retry_after: After which time a repetition may help. None: the server gave no advice.
    """

    code: str
    reason: str
    message: str
    violations: tuple[Violation, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after: timedelta | None = None

    def __str__(self) -> str:
        return self.message


async def checked(answer: Awaitable[_Answer]) -> _Answer:
    """Wait for the answer of a call, or raise its error as a ClientError."""
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        raise _decode(error) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody has cancelled us: gRPC did so to the call, which ended just as its last message was being sent.
        raise _ended_while_sent() from None


async def messages(
    call: "grpc.aio.UnaryStreamCall[Any, _Message]", silence: float
) -> AsyncIterator[_Message]:
    """Yield the messages of a stream; an error, or a silence of so many seconds, is a ClientError."""
    while True:
        try:
            async with asyncio.timeout(silence):
                message = await checked(call.read())
        except TimeoutError:
            raise ClientError("UNAVAILABLE", "", f"The server has been silent for {silence:g} s.") from None
        if message is grpc.aio.EOF:
            return
        yield cast("_Message", message)


class BackOff:
    """Jittered, growing delays for as long as the patience lasts.

    A server that has never answered is not waited for, unless it says so itself.
    """

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience.total_seconds()
        self._answered = False
        self._lost_since: float | None = None
        self._tries = 0

    def heard(self) -> None:
        """Note a sign of life: patience and delays begin again with the next error."""
        self._answered, self._lost_since, self._tries = True, None, 0

    async def wait(self, error: ClientError) -> None:
        """Wait before the next try, or raise the error when there should be none."""
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
        known = self._answered or error.retry_after is not None
        if not known or now - self._lost_since > self._patience:
            raise error
        delay = min(_FIRST_DELAY_SECONDS * 2**self._tries, _LONGEST_DELAY_SECONDS)
        self._tries += 1
        advice = error.retry_after.total_seconds() if error.retry_after else 0.0
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, guards no secret
        await asyncio.sleep(min(advice, self._patience) + delay * jitter)


def _decode(error: grpc.aio.AioRpcError) -> ClientError:
    if error.details() == _BROKEN_OFF:
        return _ended_while_sent()
    decoded = ClientError(error.code().name, "", error.details() or error.code().name)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            _add_details(decoded, Status.FromString(value))
    return decoded


def _ended_while_sent() -> ClientError:
    return ClientError("UNAVAILABLE", "", "The call ended while it was being sent. Try again.")


def _add_details(decoded: ClientError, status: Status) -> None:
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            decoded.reason, decoded.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            decoded.violations = tuple(
                Violation(one.field, one.description) for one in request.field_violations
            )
        elif detail.Unpack(retry):
            decoded.retry_after = retry.retry_delay.ToTimedelta()
