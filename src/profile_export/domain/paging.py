"""Pages of lists: tokens bound to the arguments they were given with, by key and never by offset (AIP-158)."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Generic, TypeVar

from profile_export.domain.errors import InvalidArgumentError

Item = TypeVar("Item")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_LONGEST_NUMBER = 18  # digits that every 64-bit integer has room for


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: up to `size` items after the one with the key `cursor`; an empty cursor is the beginning.

    `arguments` digests the list's other arguments; a token is good for the same ones only.
    """

    size: int
    cursor: str
    arguments: str

    @classmethod
    def of(cls, page_size: int, page_token: str, *arguments: str) -> PageRequest:
        """Read a page request; a size of 0 means `DEFAULT_PAGE_SIZE`, one above `MAX_PAGE_SIZE` means that.

        Raises:
            InvalidArgumentError: The size is negative, or the token is not one of ours for these arguments.
        """
        if page_size < 0:
            raise InvalidArgumentError.of_field("page_size", "must not be negative.")
        digest = sha256(json.dumps(arguments).encode()).hexdigest()[:16]
        cursor = _read_token(page_token, digest) if page_token else ""
        return cls(min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), cursor, digest)

    @property
    def number(self) -> int:
        """The cursor of a list whose key is a number.

        Raises:
            InvalidArgumentError: It is none: the token was made up.
        """
        if not self.cursor.isdecimal() or len(self.cursor) > _LONGEST_NUMBER:
            raise refused_token()
        return int(self.cursor)

    @property
    def place(self) -> tuple[str, int]:
        """The cursor of a list whose key is a name and a number; the empty name and 0 for the beginning.

        Raises:
            InvalidArgumentError: It is none: the token was made up.
        """
        name, _, number = self.cursor.rpartition(" ")
        if not self.cursor:
            return "", 0
        return name, replace(self, cursor=number).number


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items in their order, and the token of the next page; an empty token means there is none."""

    items: tuple[Item, ...]
    next_token: str


def cut_page(items: Sequence[Item], request: PageRequest, key: Callable[[Item], str]) -> Page[Item]:
    """Cut one page from up to `request.size + 1` items; the surplus one only tells that there are more."""
    page = tuple(items[: request.size])
    more = len(items) > request.size
    return Page(page, _write_token(key(page[-1]), request.arguments) if more else "")


def _write_token(cursor: str, arguments: str) -> str:
    return urlsafe_b64encode(json.dumps([cursor, arguments]).encode()).decode()


def _read_token(token: str, arguments: str) -> str:
    try:
        cursor, bound_to = json.loads(urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError):  # no Base64, no JSON, no pair, nested without end
        cursor, bound_to = None, None
    if not isinstance(cursor, str) or bound_to != arguments:
        raise refused_token()
    return cursor


def refused_token() -> InvalidArgumentError:
    """Return the error of a page token that is not one of ours, or holds no key of the list it is for."""
    return InvalidArgumentError.of_field(
        "page_token",
        "must be empty or the next_page_token of a call with the same other arguments.",
        "PAGE_TOKEN_INVALID",
    )
