"""What went wrong, as gRPC says it: THE table from kinds of domain errors to codes, and their details."""

from __future__ import annotations

from collections.abc import MutableSequence
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, RetryInfo
from google.rpc.status_pb2 import Status

from profile_export.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PastEndError,
    UnavailableError,
    UnimplementedError,
)
from profile_export.domain.system_faults import system_fault

DOMAIN = "profile-export"
CODES: dict[type[DomainError], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    AbortedError: grpc.StatusCode.ABORTED,
    PastEndError: grpc.StatusCode.OUT_OF_RANGE,
    UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
}

_SYSTEM_RETRY_AFTER = timedelta(seconds=5)
# A status travels twice in the trailers (grpc-message, percent-encoded, and the details, in base64), and a client
# refuses trailers above 8 KiB: it would then see RESOURCE_EXHAUSTED instead of the error.
_MOST_MESSAGE_BYTES = 800
_MOST_TEXT_BYTES = 300
_MOST_DETAIL_BYTES = 3_600


def code_of(error: DomainError) -> grpc.StatusCode:
    """Return the code of an error's kind; a subclass has that of the kind it belongs to."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def status_of(error: DomainError) -> Status:
    """Return the status of a refused call: exactly one ErrorInfo, then what else fits.

    Long texts are cut, and field violations that do not fit into the trailers are left out.
    """
    message = _cut(error.message, _MOST_MESSAGE_BYTES)
    info = ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: _cut(value, _MOST_TEXT_BYTES) for key, value in error.metadata.items()},
    )
    status = _status(code_of(error), message, info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(error.retry_after)
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    if isinstance(error, FailedPreconditionError):
        told = [(one.field, one.description) for one in error.violations]
        preconditions = [
            PreconditionFailure.Violation(
                type=error.reason, subject=subject, description=_cut(text, _MOST_TEXT_BYTES)
            )
            for subject, text in told or [(info.metadata.get("id", ""), message)]
        ]
        failure = PreconditionFailure(violations=preconditions)
        _add_fitting(status, failure, failure.violations)
    elif error.violations:
        fields = [
            BadRequest.FieldViolation(
                field=_cut(one.field, _MOST_TEXT_BYTES), description=_cut(one.description, _MOST_TEXT_BYTES)
            )
            for one in error.violations
        ]
        request = BadRequest(field_violations=fields)
        _add_fitting(status, request, request.field_violations)
    return status


def internal_status(request_id: str) -> Status:
    """Return the status of a failure that is ours. It tells nothing of it but how to find it in the log."""
    return _status(
        grpc.StatusCode.INTERNAL,
        f"Internal error. Report it with the request id {request_id}.",
        ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id}),
    )


def system_refusal(error: Exception) -> UnavailableError | None:
    """Return what tells a caller that the server's system or disk fails it now; None if the error is another."""
    fault = system_fault(error)
    if fault is None:
        return None
    message = f"The server's {fault.what}. {fault.way_out}, then send the same call again."
    return UnavailableError(fault.reason, message, retry_after=_SYSTEM_RETRY_AFTER)


def _status(code: grpc.StatusCode, message: str, info: ErrorInfo) -> Status:
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    return status


def _add_fitting(status: Status, detail: Message, violations: MutableSequence[Any]) -> None:
    room = _MOST_DETAIL_BYTES - status.ByteSize()
    while violations and detail.ByteSize() > room:
        del violations[-1]
    if violations:
        status.details.add().Pack(detail)


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= most_bytes:
        return text
    return encoded[:most_bytes].decode(errors="ignore") + "…"
