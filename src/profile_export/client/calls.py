"""What the calls of all services share: the services, the headers of the tenant, errors and pages."""

from collections.abc import AsyncIterator, Awaitable
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.client.errors import checked
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceStub
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceStub

PAGE = 1000
"""How many a list asks for at once; as many as the server gives."""

_TIMEOUT_SECONDS = 60.0

_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Answer_co = TypeVar("_Answer_co", covariant=True)


class _Method(Protocol[_Request_contra, _Answer_co]):
    def __call__(
        self, request: _Request_contra, /, *, timeout: float | None, metadata: Any
    ) -> Awaitable[_Answer_co]: ...


class _Pages(Protocol):
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_PagesT = TypeVar("_PagesT", bound=_Pages)
_PageT = TypeVar("_PageT", bound=_Page)


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as plain data, named as in the protos, fields at their defaults included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def stamp(moment: datetime) -> Timestamp:
    """Return an instant as a message; one without a zone is taken as UTC."""
    stamped = Timestamp()
    stamped.FromDatetime(moment)
    return stamped


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
        method: _Method[_Request_contra, _Answer_co],
        request: _Request_contra,
        *,
        timeout: float | None = _TIMEOUT_SECONDS,  # noqa: ASYNC109 - gRPC keeps it
    ) -> _Answer_co:
        return await checked(method(request, timeout=timeout, metadata=self._metadata))

    async def _pages(self, method: _Method[_PagesT, _PageT], request: _PagesT) -> AsyncIterator[_PageT]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
