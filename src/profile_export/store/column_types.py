"""Column types of our own: instants, lengths of time, and domain values as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import BigInteger, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """Return the instant that many microseconds after 1970 in UTC."""
    return _EPOCH + micros * _MICROSECOND


def to_micros(instant: datetime) -> int:
    """Return the microseconds since 1970 of an aware datetime."""
    return (instant - _EPOCH) // _MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware datetime, kept as microseconds since 1970: SQLite would give back a naive one."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - its signature
        """To the database."""
        return None if value is None else to_micros(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - its signature
        """From the database."""
        return None if value is None else from_micros(value)


class Span(TypeDecorator[timedelta]):
    """A length of time, kept as microseconds."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - its signature
        """To the database."""
        return None if value is None else value // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> timedelta | None:  # noqa: ARG002 - its signature
        """From the database."""
        return None if value is None else value * _MICROSECOND


class Json(TypeDecorator[Any]):
    """A domain value of one declared type, kept as JSON text; `indent` is None for text that nobody reads."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any, indent: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.indent = indent
        self._adapter: TypeAdapter[Any] | None = None

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """The codec, made at first use: building all of them would slow every start."""
        if self._adapter is None:
            self._adapter = TypeAdapter(self.kind)
        return self._adapter

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - its signature
        """To the database."""
        return None if value is None else self.adapter.dump_json(value, indent=self.indent).decode()

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002 - its signature
        """From the database."""
        return None if value is None else self.adapter.validate_json(value)


def digest_of(value: Any) -> str:
    """Return the SHA-256, in hex, of a domain value's JSON: equal values have equal digests.

    What is at its default is left out, so that a digest stays when a later version's values can say more.
    """
    kind: Any = type(value)
    return sha256(_adapter_of(kind).dump_json(value, exclude_defaults=True)).hexdigest()


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
