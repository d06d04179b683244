"""Lists: which page a request asks for, and how many items an answer has room for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from profile_export.api.convert.values import row
from profile_export.api.interceptors import current_tenant
from profile_export.domain.lists import (
    MAX_PAGE_BYTES,
    Item,
    ListFields,
    Page,
    PageRequest,
    Seal,
    read_filter,
    read_order,
)

_Item = TypeVar("_Item")
_Written = TypeVar("_Written", bound=Message)


class Pages:
    """Reads the page requests of all lists; their tokens hold at every server of the same database."""

    def __init__(self, token_key: Callable[[], Awaitable[bytes]]) -> None:
        self._token_key = token_key

    async def among(self, fields: ListFields, request: Any) -> PageRequest:
        """Read the page that is asked for of a list with these fields.

        Raises:
            InvalidArgumentError: The filter or the order is wrong, or as `of`.
        """
        return replace(
            await self.of(request),
            filter=read_filter(request.filter, fields.filters),
            order=read_order(request.order_by, fields.orders),
        )

    async def of(self, request: Any) -> PageRequest:
        """Read the page that is asked for, whatever it is filtered and sorted by.

        Tokens hold for this tenant and the same request only.

        Raises:
            InvalidArgumentError: As `PageRequest.of`.
        """
        tenant = current_tenant()
        rest = type(request)()
        rest.CopyFrom(request)
        rest.ClearField("page_size")
        rest.ClearField("page_token")
        arguments = sha256(rest.SerializeToString(deterministic=True)).hexdigest()
        bound_to = (tenant.org, tenant.sandbox, request.DESCRIPTOR.full_name, arguments)
        return PageRequest.of(request.page_size, request.page_token, Seal(await self._token_key(), bound_to))


def fitting(page: Page[Item], write: Callable[[Item], _Written]) -> tuple[list[_Written], str]:
    """Write the items of a page that fit into an answer, at least one; return the token of what follows them, too."""
    written = _that_fit(page.items, write)
    return written, page.first(len(written)).next_token


def rows_that_fit(values: Iterable[Mapping[str, object]]) -> list[Struct]:
    """Write rows as objects, as many as an answer has room for, and at least one."""
    return _that_fit(values, row)


def _that_fit(items: Iterable[_Item], write: Callable[[_Item], _Written]) -> list[_Written]:
    written: list[_Written] = []
    room = MAX_PAGE_BYTES
    for item in items:
        message = write(item)
        room -= message.ByteSize()
        if written and room < 0:
            break
        written.append(message)
    return written
