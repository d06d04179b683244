"""Messages to domain and back: what requests of all services share. Pure, as its neighbours `convert_…` are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.domain.errors import InvalidArgumentError, UnimplementedError


def required(value: str, field: str) -> str:
    """Return a text that has to be there.

    Raises:
        InvalidArgumentError: It is empty.
    """
    if not value:
        raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
    return value


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


def length_of_time(value: Duration, field: str) -> timedelta:
    """Read a Duration.

    Raises:
        InvalidArgumentError: It is longer than any clock runs.
    """
    try:
        return value.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of_field(field, "is not a length of time.") from None


def instant(message: Message, field: str, prefix: str = "") -> datetime | None:
    """Read a Timestamp field; None if it is absent.

    Raises:
        InvalidArgumentError: It is no valid time.
    """
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of_field(
            f"{prefix}{field}", "is not a time of the years 1 to 9999."
        ) from None
