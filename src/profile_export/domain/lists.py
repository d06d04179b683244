"""Pages of lists, bound to their list, by key and never by offset (AIP-158); and their `filter` and `order_by`."""

from __future__ import annotations

import hmac
import json
import operator
import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Generic, TypeVar

from profile_export.domain.errors import InvalidArgumentError

Item = TypeVar("Item")
Other = TypeVar("Other")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 * 2**20
"""About how many bytes a page may have: it ends early, but has one item at least."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Seal:
    """Makes the page tokens of one list, and knows them again.

    Attributes:
        key: What only the servers of one installation know.
        bound_to: What a token is good for: the tenant, the list and its other arguments.
    """

    key: bytes = field(repr=False)
    bound_to: tuple[str, ...]

    def token(self, cursor: str) -> str:
        """Return the token of what follows a key of the list."""
        return self._sealed(cursor.encode())

    def cursor(self, token: str) -> str:
        """Return the key that a token was made of.

        Raises:
            InvalidArgumentError: It was not made with this seal, or has been changed since.
        """
        try:
            content = b64decode(token, altchars=b"-_", validate=True)[_MAC_BYTES:]
        except ValueError:
            raise refused_token() from None
        # Compared as text: of one content there is one token, whatever else Base64 would take for it.
        if not hmac.compare_digest(self._sealed(content), token):
            raise refused_token()
        return content.decode()

    def _sealed(self, content: bytes) -> str:
        bound = json.dumps(self.bound_to).encode()
        mac = hmac.digest(self.key, bound + b"\0" + content, "sha256")[:_MAC_BYTES]
        return urlsafe_b64encode(mac + content).decode()


Reader = Callable[[str], Any]
"""Reads the value of a condition; raises ValueError, whose text says what a value must be, if it is none."""

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUALITY = {"=", "!="}


@dataclass(frozen=True, slots=True)
class Condition:
    """What a field of everything listed has to be."""

    field: str
    operator: str
    value: Any

    def compared(self, value: Any) -> Any:
        """Compare the field's value, or a database's column of such values; text compares as its UTF-8 bytes do."""
        return _OPERATORS[self.operator](value, self.value)

    def holds(self, value: Any) -> bool:
        """Say whether a value meets the condition; None, for a field that is absent, meets none."""
        return value is not None and self.compared(value)


Filter = tuple[Condition, ...]
"""Conditions that all have to hold; none lets everything through."""


@dataclass(frozen=True, slots=True)
class Order:
    """By which field a list is ordered, and whether the greatest comes first."""

    field: str
    descending: bool = False

    def place(self, item: Any, key: str = "id") -> tuple[Any, Any]:
        """Return where an item stands: the value of its member of the field's name, and of equals the one of `key`."""
        return _plain(getattr(item, self.field)), getattr(item, key)

    def is_behind(self, one: Any, other: Any) -> Any:
        """Compare two places, or a database's columns of them: whether one comes after the other."""
        return one < other if self.descending else one > other


@dataclass(frozen=True, slots=True)
class ListFields:
    """What a list can be filtered by, by name with what reads the values of each, and what it can be sorted by."""

    filters: Mapping[str, Reader]
    orders: Collection[str]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: up to `size` items after the one with the key `cursor`; an empty cursor is the beginning.

    Of those that `filter` lets through, in `order`; None: in the list's own.
    """

    size: int
    cursor: str
    seal: Seal
    filter: Filter = ()
    order: Order | None = None

    @classmethod
    def of(cls, page_size: int, page_token: str, seal: Seal) -> PageRequest:
        """Read a page request; a size of 0 means `DEFAULT_PAGE_SIZE`, one above `MAX_PAGE_SIZE` means that.

        Raises:
            InvalidArgumentError: The size is negative, or the token is not one of this list.
        """
        if page_size < 0:
            raise InvalidArgumentError.of_field("page_size", "must not be negative.")
        cursor = seal.cursor(page_token) if page_token else ""
        return cls(min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), cursor, seal)

    @property
    def after(self) -> tuple[Any, Any] | None:
        """The place that the page begins behind, as `cursor_at` has written it; None: it is the first page.

        Raises:
            InvalidArgumentError: The cursor is of another list, as that of a made-up token.
        """
        if not self.cursor:
            return None
        try:
            value, key = json.loads(self.cursor)
        except (ValueError, TypeError):
            raise refused_token() from None
        return value, key


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items in their order with their keys, and whether others follow."""

    items: tuple[Item, ...]
    cursors: tuple[str, ...]
    has_more: bool
    seal: Seal

    @property
    def next_token(self) -> str:
        """The token of the next page; empty if there is none."""
        return self.seal.token(self.cursors[-1]) if self.has_more else ""

    def first(self, count: int) -> Page[Item]:
        """Return a page of the first items, at least one; the others are for the next page."""
        more = self.has_more or count < len(self.items)
        return replace(self, items=self.items[:count], cursors=self.cursors[:count], has_more=more)

    def turned(self, change: Callable[[Item], Other]) -> Page[Other]:
        """Return the page with something else in the place of each item."""
        return Page(tuple(map(change, self.items)), self.cursors, self.has_more, self.seal)


def cut_page(
    items: Sequence[Item], request: PageRequest, key: Callable[[Item], str], *, has_more: bool = False
) -> Page[Item]:
    """Cut one page from up to `request.size + 1` items; the surplus one only tells that there are more.

    `has_more` says so where not even that one was read.
    """
    page = tuple(items[: request.size])
    return Page(page, tuple(map(key, page)), has_more or len(items) > request.size, request.seal)


@dataclass(frozen=True, slots=True)
class Read(Generic[Item]):
    """What was read of a list for one page, in its order, and whether others follow that were not read."""

    items: Sequence[Item]
    has_more: bool


def joined_page(
    built_in: Iterable[Item],
    stored: Read[Item],
    request: PageRequest,
    order: Order,
    told: Callable[[Item], Mapping[str, Any]],
) -> Page[Item]:
    """Cut one page of a list that holds what is built in beside what is stored, each in its place.

    Args:
        built_in: In any order, and without regard to the request.
        stored: What the request asks for, without what is built in.
        request: The page; its own order goes before `order`.
        order: The order of the list.
        told: Returns the values of the fields that something built in can be filtered by.
    """
    order = request.order or order
    after = request.after
    found = [
        item
        for item in built_in
        if all(condition.holds(told(item)[condition.field]) for condition in request.filter)
        and (after is None or order.is_behind(order.place(item), after))
    ]
    if stored.has_more and stored.items:
        # What stands behind the last one that was read comes with a later page, behind what follows that.
        last = order.place(stored.items[-1])
        found = [item for item in found if not order.is_behind(order.place(item), last)]
    items = sorted([*found, *stored.items], key=order.place, reverse=order.descending)
    return cut_page(items, request, lambda last: cursor_at(order.place(last)), has_more=stored.has_more)


def refused_token() -> InvalidArgumentError:
    """Return the error of a page token that is not one of ours, or holds no key of the list it is for."""
    return InvalidArgumentError.of_field(
        "page_token",
        "must be empty or the next_page_token of a call with the same other arguments.",
        "PAGE_TOKEN_INVALID",
    )


_ONE = (
    r"""(?P<field>[A-Za-z_][\w.]*)\s*(?P<operator>[!<>]=|[=<>])\s*"""
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s"'=<>!]+))\s*"""
)
_FIRST, _NEXT = re.compile(_ONE, re.DOTALL), re.compile(rf"AND\s+{_ONE}", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SHOWN = 40


def read_filter(text: str, fields: Mapping[str, Reader]) -> Filter:
    """Read a filter such as `dataset_id = 5f0c AND ingest_time > "2026-01-31T00:00:00Z"`; empty text is no filter.

    Args:
        text: Conditions with AND between them. A value that holds blanks, quotes or operators stands in quotes, single
            or double, in which a backslash takes the next character as it is.
        fields: What reads the values of each field that may be named.

    Raises:
        InvalidArgumentError: It is no such text, names another field, or a value is not of the field's type.
    """
    conditions: list[Condition] = []
    text, place = text.strip(), 0
    while place < len(text):
        found = (_NEXT if conditions else _FIRST).match(text, place)
        if found is None:
            expected = "AND and a condition" if conditions else "a condition"
            rest = text[place : place + _SHOWN].strip()
            raise _refused(f"needs {expected} such as `{next(iter(fields))} = value`, not '{rest}'.")
        conditions.append(_condition(found, fields))
        place = found.end()
    return tuple(conditions)


def read_order(text: str, fields: Collection[str]) -> Order | None:
    """Read an order such as `create_time desc`; None for empty text.

    Raises:
        InvalidArgumentError: It names no field that may be named, or says more.
    """
    match text.split():
        case []:
            return None
        case [field] if field in fields:
            return Order(field)
        case [field, "desc"] if field in fields:
            return Order(field, descending=True)
    known = " or ".join(f"'{field}'" for field in fields)
    raise InvalidArgumentError.of_field("order_by", f"must be {known}, perhaps with ' desc'.")


def instant(text: str) -> datetime:
    """Read the value of a condition on an instant.

    Raises:
        ValueError: It is none, or says no offset from UTC.
    """
    message = "a time with an offset, such as 2026-01-31T00:00:00Z"
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(message) from None
    if found.tzinfo is None:
        raise ValueError(message)
    return found


def truth(text: str) -> bool:
    """Read the value of a condition on what is true or false.

    Raises:
        ValueError: It is neither.
    """
    if text not in {"true", "false"}:
        message = "true or false"
        raise ValueError(message)
    return text == "true"


def word(members: Mapping[str, Item], prefix: str) -> Callable[[str], Item]:
    """Return what reads the name of a member of an enum, with or without a prefix."""

    def read(text: str) -> Item:
        name = text.removeprefix(prefix)
        if name not in members:
            raise ValueError(f"one of {', '.join(members)}")
        return members[name]

    return read


def cursor_at(place: tuple[Any, Any]) -> str:
    """Write where an item stands as the cursor of what follows it."""
    return json.dumps(place)


def _plain(value: Any) -> Any:
    """Return what stands for the value of a field where a list is sorted: for an instant its microseconds since 1970.

    What is absent stands before every instant.
    """
    if isinstance(value, datetime):
        return (value - _EPOCH) // _MICROSECOND
    return 0 if value is None else value


def _condition(found: re.Match[str], fields: Mapping[str, Reader]) -> Condition:
    field = found["field"]
    if field not in fields:
        raise _refused(f"knows no field '{field[:_SHOWN]}', only {', '.join(fields)}.")
    quoted = next((text for text in (found["double"], found["single"]) if text is not None), None)
    value = found["bare"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
    try:
        condition = Condition(field, found["operator"], fields[field](value))
    except ValueError as error:
        raise _refused(f"compares '{field}' with '{value[:_SHOWN]}', which is not {error}.") from None
    if isinstance(condition.value, bool | Enum) and condition.operator not in _EQUALITY:
        raise _refused(f"compares '{field}' by {condition.operator}; it can be compared with = and != only.")
    return condition


def _refused(description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field("filter", description)
