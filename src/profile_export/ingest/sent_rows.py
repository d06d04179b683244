"""Uploads that are read row by row, whatever their format: it yields rows, and all else is done here.

What a field is may become known only in the last row, but all files of a batch have the same fields. So rows wait in
Arrow until the upload has been read; one that is too large to wait, or whose last rows taught the type of an array
that earlier ones had left out, is read a second time with all that it taught. What the last reading rejects is what
counts: the second may reject a row more, whose empty array turned out to be something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.reasons import Reason
from profile_export.domain.schema import FieldPath, ObjectType, TypeConflictError
from profile_export.ingest.identities import RowIdentities
from profile_export.ingest.refusals import Refusals
from profile_export.ingest.rows import RowBatch, RowChecker
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.untyped import still_untyped
from profile_export.ingest.writer import BatchWriter
from profile_export.lake.arrow_types import file_schema

_ROWS_PER_BATCH = 16_384
_BYTES_PER_BATCH = 8 * 1024 * 1024
_CELLS_PER_BATCH = 2**20


class SentRow(NamedTuple):
    """One row of an upload.

    `number` counts from 1 in the file; `record` is what a JSON parser makes of it, or why it cannot be read; `text` is
    the row as sent, of one that is too long at least as much as is kept of it.
    """

    number: int
    record: Any
    text: str | bytes


ReadRows = Callable[[IngestTask], Iterator[SentRow]]
"""Reads an upload from its beginning, in bounded memory.

Raises:
    FileRefusedError: It cannot be read on.
"""


class _Waiting(NamedTuple):
    """Rows that wait for the end of the upload, and the arrays that were left out of them."""

    table: pa.Table
    left_out: set[FieldPath]


def too_large(limit: int) -> ValueRefusedError:
    """Return the refusal of a row that has more bytes than it may."""
    return ValueRefusedError((), f"has more than {limit} bytes", Reason.RECORD_TOO_LARGE)


def ingest_rows(read: ReadRows, task: IngestTask, writer: BatchWriter, refusals: Refusals) -> IngestResult:
    """Turn an upload into data files.

    Raises:
        RowsRefusedError: It has more rows than allowed that cannot be stored.
        FileRefusedError: As `read`.
    """
    checker = RowChecker(task, task.fields)
    waiting = _read_once(read, task, checker, refusals)
    fields, left_out = checker.fields, _left_out(checker)
    if waiting is not None and left_out is not None and all(part.left_out <= left_out for part in waiting):
        for part in waiting:
            writer.add(_grown(part.table, fields))
    else:
        waiting = None
        refusals.restart()
        checker = RowChecker(task, fields)
        for batch in _batches(read, task, checker, refusals):
            writer.add(batch.table(fields, has_untyped=left_out != set()))
        left_out = _left_out(checker)
    return IngestResult(
        files=writer.finish(),
        rows=checker.next_row - task.first_row,
        fields=fields,
        identity_namespaces=checker.identity_namespaces.sent(),
        segment_namespaces=checker.segment_namespaces.sent(),
        untyped=tuple(sorted(left_out or ())),
        rejected_rows=refusals.count,
        errors=refusals.first,
    )


def _read_once(
    read: ReadRows, task: IngestTask, checker: RowChecker, refusals: Refusals
) -> list[_Waiting] | None:
    """Read an upload and return its rows, None if they must be read again."""
    waiting: list[_Waiting] | None = []
    bytes_held = 0
    for batch in _batches(read, task, checker, refusals):
        left_out = _left_out(checker)
        if waiting is None or left_out is None:
            waiting = None
            continue
        waiting.append(_Waiting(batch.table(checker.fields, has_untyped=bool(left_out)), left_out))
        bytes_held += waiting[-1].table.nbytes
        if bytes_held > task.bytes_held or checker.next_row - task.first_row > task.rows_per_file:
            waiting = None
    return waiting


def _left_out(checker: RowChecker) -> set[FieldPath] | None:
    """Return the paths of arrays without a type; None if a later row contradicts one: reading again finds the row."""
    try:
        return still_untyped(checker.untyped, checker.fields)
    except TypeConflictError:
        return None


def _grown(table: pa.Table, fields: ObjectType) -> pa.Table:
    """Return rows with all fields of the batch, null where they did not know one."""
    schema = file_schema(fields)
    known = dict(zip(table.schema.names, table.columns, strict=True))
    columns = [
        known[field.name] if field.name in known else pa.nulls(table.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


def _batches(read: ReadRows, task: IngestTask, checker: RowChecker, refusals: Refusals) -> Iterator[RowBatch]:
    """Read an upload once and yield its rows, some thousand at a time.

    Raises:
        RowsRefusedError: Too many cannot be stored; told when they are found, or at the end.
    """
    batch = RowBatch(task.batch_id, task.first_row)
    size = 0
    for number, record, text in read(task):
        try:
            value, identities = _checked(checker, record)
        except (ValueRefusedError, TypeConflictError) as error:
            refusals.add(number, error, text)
            continue
        batch.add(value, identities)
        size += len(text)
        if len(batch.values) == _ROWS_PER_BATCH or size >= _BYTES_PER_BATCH or _is_wide(batch, checker):
            yield batch
            batch, size = RowBatch(task.batch_id, checker.next_row), 0
    refusals.settle()
    if batch.values:
        yield batch


def _is_wide(batch: RowBatch, checker: RowChecker) -> bool:
    """Whether rows take more room for what they do not hold than for what they do."""
    return len(batch.values) * len(checker.fields.fields) >= _CELLS_PER_BATCH


def _checked(checker: RowChecker, record: Any) -> tuple[dict[str, Any], RowIdentities]:
    if isinstance(record, dict):
        return checker.check(record)
    if isinstance(record, ValueRefusedError):
        raise record
    raise ValueRefusedError((), "is not a JSON object", Reason.NOT_AN_OBJECT)
