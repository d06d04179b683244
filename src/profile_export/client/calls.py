"""What the calls of all services share: the services, the headers of the tenant, pages, errors, and further tries."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, cast

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceStub
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceStub

PAGE = 1000
"""How many a list asks for at once; as many as the server gives."""

_TIMEOUT_SECONDS = 60.0
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_BROKEN_OFF = "Internal error from Core"
"""What gRPC itself says of a call that ended while its messages were still being sent."""

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")
_Message = TypeVar("_Message", bound=Message)
_Request = TypeVar("_Request")


class _Pages(Protocol):
    page_size: int
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_PagesT = TypeVar("_PagesT", bound=_Pages)
_PageT = TypeVar("_PageT", bound=_Page)


class Calls:
    """What a Client is for the calls of one service; Client fills the attributes in."""

    _datasets: DatasetServiceStub
    _exports: ExportServiceStub
    _profiles: ProfileServiceStub
    _schemas: SchemaServiceStub
    _metadata: tuple[tuple[str, str], ...]
    _patience: timedelta

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Answer]",
        request: _Request,
        *,
        timeout: float | None = _TIMEOUT_SECONDS,  # noqa: ASYNC109 - gRPC keeps it
    ) -> _Answer:
        return await checked(method(request, timeout=timeout, metadata=self._metadata))

    async def _pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_PagesT, _PageT]", request: _PagesT
    ) -> AsyncIterator[_PageT]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _list(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_PagesT, _PageT]",
        request: _PagesT,
        items: Callable[[_PageT], Iterable[_Item]],
        limit: int | None = None,
    ) -> list[_Item]:
        """Return the items of all pages of a list, or the first `limit` of them."""
        request.page_size = min(limit or PAGE, PAGE)
        listed: list[_Item] = []
        async for page in self._pages(method, request):
            listed.extend(items(page))
            if limit is not None and len(listed) >= limit:
                break
        return listed[:limit]


def quoted(text: str) -> str:
    """Write a text as a value in a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- Messages ---


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as plain data, named as in the protos, fields at their defaults included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def stamp(moment: datetime | None) -> Timestamp | None:
    """Return an instant as a message; one without a zone is taken as UTC. None stays absent."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def duration(time: timedelta | None) -> Duration | None:
    """Return a length of time as a message; None stays absent."""
    if time is None:
        return None
    message = Duration()
    message.FromTimedelta(time)
    return message


# --- Errors, and the wait before the next try ---


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
