"""What requests and answers of all services share: required fields, times, and rows as JSON has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.domain.errors import InvalidArgumentError, UnimplementedError
from profile_export.domain.schemas.types import EXACT_IN_A_DOUBLE


def given(message: Message, field: str) -> Any:
    """Return an optional field; None if the caller does not say."""
    return getattr(message, field) if message.HasField(field) else None


def required(value: str, field: str) -> str:
    """Return a text that has to be there.

    Raises:
        InvalidArgumentError: It is empty.
    """
    if not value:
        raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
    return value


def refuse_no_change(change: object) -> None:
    """Refuse a change that leaves all as it is.

    Raises:
        InvalidArgumentError: No field of it is set.
    """
    if change == type(change)():
        raise InvalidArgumentError.of_field(
            "name", "or another field is required: nothing is to change.", "FIELD_REQUIRED"
        )


def refuse_unbuilt(message: Message, *fields: str, prefix: str = "") -> None:
    """Refuse fields that nothing would act upon.

    Raises:
        UnimplementedError: One of them is set; it is named, behind `prefix`.
    """
    listed = {descriptor.name for descriptor, _ in message.ListFields()}
    for field in fields:
        if field in listed:
            raise UnimplementedError.of_field(f"{prefix}{field}")


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Write an instant; None stays absent."""
    if instant is None:
        return None
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def duration(value: timedelta | None) -> Duration | None:
    """Write a length of time; None stays absent."""
    if value is None:
        return None
    message = Duration()
    message.FromTimedelta(value)
    return message


def length_of_time(message: Message, field: str, prefix: str = "") -> timedelta | None:
    """Read a Duration field; None if it is absent.

    Raises:
        InvalidArgumentError: It is longer than any clock runs.
    """
    value: Duration | None = given(message, field)
    try:
        return None if value is None else value.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of_field(f"{prefix}{field}", "is not a length of time.") from None


def instant(message: Message, field: str, prefix: str = "") -> datetime | None:
    """Read a Timestamp field; None if it is absent.

    Raises:
        InvalidArgumentError: It is no valid time.
    """
    value: Timestamp | None = given(message, field)
    try:
        return None if value is None else value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of_field(
            f"{prefix}{field}", "is not a time of the years 1 to 9999."
        ) from None


MOST_LEVELS = 30
"""How many objects, arrays and maps stand in one another in an answer.

Each is up to three messages in one another, and no language's protobuf reads more than a hundred. Data goes deeper.
"""


def row(value: Mapping[str, object]) -> Struct:
    """Write a row as an object; what it does not have is left out."""
    message = Struct()
    message.update(plain(value))
    return message


def plain(value: Any, level: int = 0) -> Any:
    """Return a value for `google.protobuf.Struct`, whose numbers are doubles.

    Instants are RFC 3339 text in UTC, days ISO text; decimals, and integers that a double cannot hold exactly, are
    text. Members that are null are left out, items of an array stay. What lies below `MOST_LEVELS` is JSON text.
    """
    match value:
        case Mapping():
            written: Any = {
                name: plain(member, level + 1) for name, member in value.items() if member is not None
            }
        case list():
            written = [plain(item, level + 1) for item in value]
        case _:
            return _single(value)
    return json.dumps(written, ensure_ascii=False) if level == MOST_LEVELS else written


def _single(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Decimal():
            return str(value)
        case int() if not -EXACT_IN_A_DOUBLE <= value <= EXACT_IN_A_DOUBLE:
            return str(value)
    return value
