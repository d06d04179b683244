"""What can be wrong with a call or a row, as exceptions that carry everything a caller needs to act.

Each class is one kind of refusal; `api/status.py` holds the one table that gives each kind its gRPC code. An error
of the *work* of a job is data (`JobError`) and never one of these.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: its path in the request, and what is wrong with it."""

    field: str
    description: str


class DomainError(Exception):
    """A refusal. `reason` is a stable UPPER_SNAKE_CASE code, `metadata` the facts behind it as text."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes as it is: what `__init__` was told is not kept as such."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidArgumentError(DomainError):
    """The request itself is wrong, whatever the state of the service."""

    @classmethod
    def of_field(
        cls, field: str, description: str, reason: str = "FIELD_INVALID", **metadata: str
    ) -> InvalidArgumentError:
        """Refuse one field of the request; `field` is its path there, such as `spec.fields[2]`."""
        return cls(
            reason,
            f"{field}: {description}",
            metadata={"field": field, **metadata},
            violations=(FieldViolation(field, description),),
        )


class NotFoundError(DomainError):
    """A resource that does not exist for this tenant."""

    @classmethod
    def of(cls, kind: str, resource_id: str | int) -> NotFoundError:
        """Name the missing resource: `kind` in words such as `merge policy`, and its id."""
        reason = f"{kind.upper().replace(' ', '_')}_NOT_FOUND"
        return cls(reason, f"There is no {kind} {resource_id!r}.", metadata={"id": str(resource_id)})


class AlreadyExistsError(DomainError):
    """An id or request id that stands for something else already."""


class FailedPreconditionError(DomainError):
    """Right in itself, but not in the state that the resource is in; repeating it as it is does not help.

    `violations` name what must be changed first, such as `jobs/7`; none means the resource itself.
    """


class AbortedError(DomainError):
    """Lost a race; the same call may succeed after `retry_after`."""


def check_etag(etag: str, present: str, resource_id: str) -> None:
    """Refuse what is meant for a resource as it was; an empty `etag` is meant for it as it is.

    Raises:
        AbortedError: It has changed since.
    """
    if etag and etag != present:
        raise AbortedError(
            "ETAG_MISMATCH",
            f"'{resource_id}' has changed since it had this etag: look at it again, then repeat the call with its "
            "present etag if it is still meant.",
            metadata={"id": resource_id, "etag": present},
        )


class PastEndError(DomainError):
    """A position (revision, byte offset) beyond what exists."""


class UnimplementedError(DomainError):
    """In the contract, but not built yet."""

    @classmethod
    def of_field(cls, field: str) -> UnimplementedError:
        """Refuse a request field that nothing would act upon."""
        return cls(
            "NOT_BUILT", f"The field '{field}' is not built yet; leave it out.", metadata={"field": field}
        )

    @classmethod
    def of_method(cls, method: str) -> UnimplementedError:
        """Refuse a whole method."""
        return cls("NOT_BUILT", f"The method '{method}' is not built yet.", metadata={"method": method})


class ExhaustedError(DomainError):
    """More than the caller's share, or than one call may cost; `retry_after` where waiting helps."""


class UnavailableError(DomainError):
    """The server cannot do this now; the same call may succeed after `retry_after`, perhaps elsewhere."""


def server_draining() -> UnavailableError:
    """Return the error that ends watches, and refuses new calls, of a server that stops."""
    return UnavailableError(
        "SERVER_DRAINING",
        "This server is stopping; the same call will be answered by the next one.",
        retry_after=timedelta(seconds=1),
    )


class Reason(StrEnum):
    """A stable word for a kind of refusal; the sentence beside it is for people."""

    JSON_INVALID = "JSON_INVALID"
    NOT_AN_OBJECT = "NOT_AN_OBJECT"
    PRIMARY_IDENTITY_MISSING = "PRIMARY_IDENTITY_MISSING"
    PRIMARY_IDENTITY_AMBIGUOUS = "PRIMARY_IDENTITY_AMBIGUOUS"
    IDENTITY_INVALID = "IDENTITY_INVALID"
    EVENT_ID_MISSING = "EVENT_ID_MISSING"
    TIMESTAMP_MISSING = "TIMESTAMP_MISSING"
    VALUE_INVALID = "VALUE_INVALID"
    NUMBER_NOT_EXACT = "NUMBER_NOT_EXACT"
    """No value of the field's type is this number: it would lose digits."""
    FIELD_TYPE_CONFLICT = "FIELD_TYPE_CONFLICT"
    RECORD_TOO_LARGE = "RECORD_TOO_LARGE"
    FILE_INVALID = "FILE_INVALID"
    """The file as a whole is not what its format says."""
    TOO_MANY_NAMESPACES = "TOO_MANY_NAMESPACES"
    FILE_UNREADABLE = "FILE_UNREADABLE"
    """Nobody knows what the file is: reading it failed in a way that is not foreseen."""
    INGEST_TOO_EXPENSIVE = "INGEST_TOO_EXPENSIVE"
    """Reading it took more time or memory than it may."""
