"""What comes of a file: what ingestion made of it, as the store keeps it, or why it is refused, as a caller is told."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from profile_export.domain.batch import DataFile, RowError, Upload
from profile_export.domain.errors import (
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
)
from profile_export.domain.reasons import Reason
from profile_export.domain.registered import MOST_BATCH_SPELLINGS, TooManyError
from profile_export.ingest.refusals import RowsRefusedError
from profile_export.ingest.task import IngestResult, NamespacesSent
from profile_export.processes.errors import ChildDiedError, TooExpensiveError
from profile_export.store.facts import NamespaceUse, UploadFacts

_VIOLATIONS_TOLD = 10
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that has arrived in full; `folder` is that of its batch."""

    batch_id: str
    folder: str
    upload: Upload
    sha256: str
    byte_count: int


def facts_of(result: IngestResult, folder: str, sent: SentFile, first_row: int) -> UploadFacts:
    """Return what was made of a file, with its data files in `folder` of the lake."""
    return UploadFacts(
        folder=folder,
        files=tuple(
            DataFile(file.name, f"{folder}/{file.name}", file.rows, file.bytes, file.sha256)
            for file in result.files
        ),
        first_row=first_row,
        rows=result.rows,
        fields=result.fields,
        identity_namespaces=_use(result.identity_namespaces),
        segment_namespaces=_use(result.segment_namespaces),
        untyped=result.untyped,
        sha256=sent.sha256,
        byte_count=sent.byte_count,
        rejected_rows=result.rejected_rows,
        errors=result.errors,
    )


def _use(sent: NamespacesSent) -> NamespaceUse:
    return NamespaceUse(tuple(use.spelling for use in sent.uses), sent.spellings)


def rows_rejected(refused: RowsRefusedError) -> DomainError:
    """Return the refusal of a file, which names its first bad row, or itself."""
    first = refused.rows[0]
    told = [f"row {error.row}: {error.message}" if error.row else error.message for error in refused.rows]
    is_conflict = first.code == Reason.FIELD_TYPE_CONFLICT
    way_out = " Send it as that, or give it another name." if is_conflict else ""
    message = f"Nothing was kept. {told[0]}{way_out}"
    if is_conflict and first.row is None:
        return FailedPreconditionError(first.code, message, metadata={"path": first.path})
    if first.code == Reason.TOO_MANY_NAMESPACES:
        return TooManyError(first.code, message, metadata={"limit": str(MOST_BATCH_SPELLINGS)})
    if first.code == Reason.INGEST_TOO_EXPENSIVE:
        return ExhaustedError(first.code, message)
    about_rows = first.row is not None and first.code != Reason.FILE_INVALID
    return InvalidArgumentError(
        "ROW_REJECTED" if about_rows else first.code,
        message,
        metadata={
            "row_number": str(first.row or ""),
            "row_reason": first.code,
            "path": first.path,
            "rejected_rows": str(refused.rejected_rows),
        },
        violations=tuple(FieldViolation("data", text) for text in told[:_VIOLATIONS_TOLD]),
    )


def fault_of_file(error: Exception, batch_id: str) -> RowsRefusedError | None:
    """Return the refusal of a file whose reading ended with an error; None where it is not the file's fault.

    What nobody foresaw goes into the log.
    """
    match error:
        case RowsRefusedError():
            if error.rows[0].code == Reason.FILE_UNREADABLE:
                _log.warning("file_unreadable", batch_id=batch_id, exc_info=error)
            return error
        case TooExpensiveError():
            message = (
                f"Reading the file took more than {error}: send its rows in smaller files, with shorter values or "
                "simpler rules."
            )
            return _of_whole_file(Reason.INGEST_TOO_EXPENSIVE, message)
        case ChildDiedError(is_crash=True):
            _log.warning("file_unreadable", batch_id=batch_id, exit_code=error.exit_code)
            message = (
                "The file cannot be read: its content breaks the reader. Write it anew, or in another format."
            )
            return _of_whole_file(Reason.FILE_UNREADABLE, message)
    return None


def _of_whole_file(reason: Reason, message: str) -> RowsRefusedError:
    return RowsRefusedError((RowError(None, reason.value, message),), 0)
