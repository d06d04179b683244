"""JSON lines uploads: one object per line, in UTF-8.

What a field is may become known only in the last row, but all files of a batch have the same fields. So rows wait in
Arrow until the upload has been read; one that is too large to wait, or whose last rows taught the type of an array
that earlier ones had left out, is read a second time with all that it taught.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from profile_export.domain.learning import MAX_DEPTH, ValueRefusedError
from profile_export.domain.schema import (
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
)
from profile_export.ingest.refusals import Refusals
from profile_export.ingest.rows import RowBatch, RowChecker
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.untyped import still_untyped
from profile_export.ingest.writer import MAX_BYTES_HELD, BatchWriter
from profile_export.lake.arrow_types import file_schema

MAX_LINE_BYTES = 16 * 1024 * 1024
"""How long a line may be; a file without line breaks would fill the memory."""
_ROWS_PER_BATCH = 16_384
_BYTES_PER_BATCH = 8 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Waiting(NamedTuple):
    """Rows that wait for the end of the upload, and the arrays that were left out of them."""

    table: pa.Table
    left_out: set[FieldPath]


def ingest_json_lines(task: IngestTask, writer: BatchWriter) -> IngestResult:
    """Turn a JSON lines upload into data files.

    Raises:
        RowsRefusedError: It has rows that cannot be stored.
    """
    checker = RowChecker(task, task.fields)
    waiting: list[_Waiting] | None = []
    rows = bytes_held = 0
    for batch in _batches(task, checker):
        rows = batch.system.next_row
        left_out = _left_out(checker)
        if waiting is None or left_out is None:
            waiting = None
            continue
        waiting.append(_Waiting(batch.table(checker.fields, has_untyped=bool(left_out)), left_out))
        bytes_held += waiting[-1].table.nbytes
        if bytes_held > MAX_BYTES_HELD or rows > task.rows_per_file:
            waiting = None
    fields, left_out = checker.fields, _left_out(checker)
    if waiting is not None and left_out is not None and all(part.left_out <= left_out for part in waiting):
        for part in waiting:
            writer.add(_grown(part.table, fields))
    else:
        waiting = None
        for batch in _batches(task, RowChecker(task, fields)):
            writer.add(batch.table(fields, has_untyped=bool(left_out)))
    return IngestResult(
        files=writer.finish(),
        rows=rows,
        fields=fields,
        identity_namespaces=checker.identity_namespaces.sent(),
        segment_namespaces=checker.segment_namespaces.sent(),
        untyped=tuple(sorted(left_out or ())),
    )


def _left_out(checker: RowChecker) -> set[FieldPath] | None:
    """Return the paths of arrays without a type; None if a later row contradicts one: reading again finds the row."""
    try:
        return still_untyped(checker.untyped, checker.fields)
    except TypeConflictError:
        return None


def _grown(table: pa.Table, fields: ObjectType) -> pa.Table:
    """Return rows with all fields of the batch, null where they did not know one."""
    schema = file_schema(fields)
    missing = [field for field in schema if field.name not in table.schema.names]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


# --- Lines ---


def _batches(task: IngestTask, checker: RowChecker) -> Iterator[RowBatch]:
    """Read an upload once and yield its rows, some thousand at a time.

    Raises:
        RowsRefusedError: Some cannot be stored; told when enough of them are found, or at the end.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_object,
        parse_constant=_refuse_constant,
        # Where a field is decimal every digit counts; elsewhere floats are much faster.
        parse_float=Decimal if _has_decimal(task.fields) else None,
    )
    refusals = Refusals()
    batch = RowBatch(task.batch_id, 0)
    bytes_read = 0
    with task.source.open("rb") as source:
        number = 0
        while line := source.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.isspace():
                continue
            try:
                record = _parse(line, decoder)
                value, identities = checker.check(record, batch.system.next_row)
            except (ValueRefusedError, TypeConflictError) as error:
                refusals.add(number, error)
                if len(line) > MAX_LINE_BYTES:
                    refusals.settle()  # the rest of the line is not the next row
                continue
            batch.add(value, identities)
            bytes_read += len(line)
            if len(batch.values) == _ROWS_PER_BATCH or bytes_read >= _BYTES_PER_BATCH:
                yield batch
                batch, bytes_read = RowBatch(task.batch_id, batch.system.next_row), 0
    refusals.settle()
    if batch.values:
        yield batch


def _parse(line: bytes, decoder: json.JSONDecoder) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueRefusedError((), f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        record = decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueRefusedError((), f"is not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueRefusedError((), f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueRefusedError((), f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise ValueRefusedError((), "has an integer of thousands of digits") from None
    if not isinstance(record, dict):
        raise ValueRefusedError((), "is not a JSON object")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueRefusedError((), f"has the name {name[:40]!r} twice in one object")
        seen.add(name)
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueRefusedError((), f"is not JSON: {name} is no number there")


def _has_decimal(known: FieldType) -> bool:
    match known:
        case ObjectType(fields):
            return any(_has_decimal(member) for member in fields.values())
        case ArrayType(inner) | MapType(inner):
            return _has_decimal(inner)
    return isinstance(known, DecimalType)
