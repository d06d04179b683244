"""Rows one by one, whatever their format: checked, brought into their stored form, given their system columns.

What a field is may become known only in the last row, but all files of a batch have the same fields. So rows wait in
Arrow until the upload has been read; one that is too large to wait, or whose last rows taught the type of an array
that earlier ones had left out, is read a second time with all that it taught. What the last reading rejects is what
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import Reason
from profile_export.domain.schemas.learning import ValueRefusedError, check_record
from profile_export.domain.schemas.types import (
    EMPTY,
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    SEGMENT_MEMBERSHIP,
    TEXT,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    TypeConflictError,
    type_at,
)
from profile_export.ingest.output import BatchWriter, Refusals
from profile_export.ingest.rows.identities import (
    Mention,
    NamespaceTally,
    RowIdentities,
    check_identity_map,
    check_segment_namespaces,
    claim_of,
    identity_text,
    resolve,
)
from profile_export.ingest.rows.reading import AppliedReading
from profile_export.ingest.schema_documents import Rules
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.lake.data_files import SYSTEM_FIELDS, arrow_type, file_schema


def typed_part(value: Any, known: FieldType | None) -> Any:
    """Leave out of a stored value what has no known type: arrays that no row taught an item type (S13).

    Returns:
        The value; None where nothing is left, or a later row taught another type.
    """
    match known:
        case ObjectType(fields) if isinstance(value, dict):
            kept = {name: typed_part(member, fields.get(name)) for name, member in value.items()}
            return {name: member for name, member in kept.items() if member is not None} or None
        case MapType(item) if isinstance(value, dict):
            kept = {key: typed_part(member, item) for key, member in value.items()}
            return {key: member for key, member in kept.items() if member is not None} or None
        case ArrayType(item) if isinstance(value, list):
            return [typed_part(member, item) for member in value]
        case Scalar() | DecimalType() if not isinstance(value, dict | list):
            return value
    return None


def still_untyped(untyped: Iterable[FieldPath], known: ObjectType) -> set[FieldPath]:
    """Return those of the paths that `check_record` collected where even now no array with a type of items stands."""
    return {path for path in untyped if not isinstance(_found_at(path, known), ArrayType)}


def _found_at(path: FieldPath, known: ObjectType) -> FieldType | None:
    """Return what is known at a path of `check_record`; EMPTY where something else stands on the way to it."""
    member: FieldType | None = known
    for name in path:
        match member:
            case ObjectType(fields) if name != "[]":
                member = fields.get(name)
            case ArrayType(item) if name == "[]":
                member = item
            case MapType(value) if name == "*":
                member = value
            case _:
                return EMPTY
        if member is None:
            return None
    return member


EVENT_NEEDS = {EVENT_ID: Reason.EVENT_ID_MISSING, EVENT_TIME: Reason.TIMESTAMP_MISSING}
"""What an experience event must have, and how it is told that it has not."""
_MISSING = "is missing or empty, but an experience event needs it: rename the field that holds it"


def system_columns(batch_id: str, first_row: int, found: Sequence[RowIdentities]) -> list[pa.Array]:
    """Return the system columns of consecutive rows, in the order of `SYSTEM_FIELDS`."""
    rows = [(*identities.primary, identities.links or None) for identities in found]
    columns = [
        pa.array([row[place] for row in rows], field.type) for place, field in enumerate(SYSTEM_FIELDS[2:])
    ]
    return numbered(batch_id, first_row, columns)


def numbered(batch_id: str, first_row: int, columns: list[pa.Array]) -> list[pa.Array]:
    """Return the other system columns of consecutive rows, with the batch's id and the row numbers before them."""
    count = len(columns[0])
    rows = pa.array(range(first_row, first_row + count), pa.int64())
    return [pa.repeat(batch_id, count), rows, *columns]


class Accepted:
    """Accepts rows of an upload, whatever its format; collects their number and their namespaces.

    `next_row` is the `_row` of the next row that is accepted.
    """

    def __init__(self, task: IngestTask) -> None:
        self.task = task
        self.next_row = task.first_row
        self.reading = AppliedReading(task.reading)
        self.rules = Rules(task.rules) if task.rules else None
        self.identity_namespaces = NamespaceTally()
        self.segment_namespaces = NamespaceTally()

    def result(
        self, writer: BatchWriter, refusals: Refusals, fields: ObjectType, untyped: Iterable[FieldPath]
    ) -> IngestResult:
        """Finish the files and return what the upload turned out to hold."""
        return IngestResult(
            files=writer.finish(),
            rows=self.next_row - self.task.first_row,
            fields=fields,
            identity_namespaces=self.identity_namespaces.sent(),
            segment_namespaces=self.segment_namespaces.sent(),
            untyped=tuple(sorted(path for path in untyped if _found_at(path, fields) is None)),
            rejected_rows=refusals.count,
            errors=refusals.first,
            null_count=self.reading.null_count,
            notes=tuple(self.reading.notes),
        )


class RowChecker(Accepted):
    """Checks one parsed record after another; `fields` and `untyped` grow with what the accepted ones teach."""

    def __init__(self, task: IngestTask, fields: ObjectType) -> None:
        super().__init__(task)
        self.fields = fields
        self.untyped: set[FieldPath] = set()
        self._is_event = task.kind is DatasetKind.EVENT
        self._declared = [
            (declared, declared.path[:-1], declared.path[-1], claim_of(declared))
            for declared in task.identity_fields
        ]

    def check(self, record: dict[str, Any]) -> tuple[dict[str, Any], RowIdentities]:
        """Return a record in its stored form, and its identities; it is used up.

        Raises:
            ValueRefusedError: It cannot be stored, has no primary identity, is an event without `_id` or time, or
                breaks a rule of its schema.
            TypeConflictError: It contradicts what is known.
        """
        sent = dict(record) if self.rules else record
        identity_map, mentions = check_identity_map(record.pop(IDENTITY_MAP, None))
        self._take_declared(record, mentions)
        untyped: set[FieldPath] = set()
        value, fields = check_record(record, self.fields, untyped)
        if self._is_event:
            check_event(value)
        check_segment_namespaces(value.get(SEGMENT_MEMBERSHIP, ()))
        identities = resolve(mentions)
        if self.rules:
            self.rules.check(sent)
        if identity_map:
            value[IDENTITY_MAP] = identity_map
        self.fields = fields
        if untyped:
            self.untyped |= untyped
        for mention in mentions:
            self.identity_namespaces.see(mention.namespace, self.next_row)
        for spelling in value.get(SEGMENT_MEMBERSHIP, ()):
            self.segment_namespaces.see(spelling, self.next_row)
        self.next_row += 1
        return value, identities

    def _take_declared(self, record: dict[str, Any], mentions: list[Mention]) -> None:
        """Add the declared identities to the mentions, and write integers there as text."""
        for declared, parents, name, claim in self._declared:
            holder: Any = record
            for parent in parents:
                holder = holder.get(parent) if isinstance(holder, dict) else None
            if not isinstance(holder, dict):
                continue  # absent, or a conflict that the check of the record tells
            sent = holder.get(name)
            text = identity_text(sent, declared.path)
            if text is None:
                continue
            mentions.append(Mention(declared.namespace, text, None, claim))
            if text is not sent and type_at(self.fields, declared.path) == TEXT:
                holder[name] = text


class RowBatch:
    """Some consecutive rows on their way into Arrow: their values in the stored form, and whose they are."""

    def __init__(self, batch_id: str, first_row: int) -> None:
        self._batch_id, self._first_row = batch_id, first_row
        self.values: list[Mapping[str, Any]] = []
        self.identities: list[RowIdentities] = []

    def table(self, fields: ObjectType, *, has_untyped: bool) -> pa.Table:
        """Return the rows as a table with the system columns and `fields`.

        Args:
            fields: What the values hold; nothing else of them is kept.
            has_untyped: Whether a value may hold an array that `fields` has no type for.
        """
        values = [typed_part(value, fields) for value in self.values] if has_untyped else self.values
        members = pa.array(values, arrow_type(fields)).flatten()
        system = system_columns(self._batch_id, self._first_row, self.identities)
        return pa.Table.from_arrays([*system, *members], schema=file_schema(fields))


def check_event(value: Mapping[str, Any]) -> None:
    """Refuse an experience event without `_id` or `timestamp`; both have their types already.

    Raises:
        ValueRefusedError: One is missing or empty.
    """
    for name in EVENT_NEEDS:
        if not value.get(name):
            raise missing_in_event(name)


def missing_in_event(name: str) -> ValueRefusedError:
    """Return the refusal of an experience event without one of `EVENT_NEEDS`."""
    return ValueRefusedError((name,), _MISSING, EVENT_NEEDS[name])


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


ReadRows = Callable[[IngestTask, AppliedReading], Iterator[SentRow]]
"""Reads an upload from its beginning, in bounded memory. What has columns gives them the names of the reading.

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
    fields, left_out = checker.fields, still_untyped(checker.untyped, checker.fields)
    if waiting is not None and all(part.left_out <= left_out for part in waiting):
        for part in waiting:
            writer.add(_grown(part.table, fields))
    else:
        waiting = None
        refusals.restart()
        checker = RowChecker(task, fields)
        for batch in _batches(read, task, checker, refusals):
            writer.add(batch.table(fields, has_untyped=bool(left_out)))
    return checker.result(writer, refusals, fields, left_out)


def _read_once(
    read: ReadRows, task: IngestTask, checker: RowChecker, refusals: Refusals
) -> list[_Waiting] | None:
    """Read an upload and return its rows, None if they must be read again."""
    waiting: list[_Waiting] | None = []
    bytes_held = 0
    for batch in _batches(read, task, checker, refusals):
        if waiting is None:
            continue
        left_out = still_untyped(checker.untyped, checker.fields)
        waiting.append(_Waiting(batch.table(checker.fields, has_untyped=bool(left_out)), left_out))
        bytes_held += waiting[-1].table.nbytes
        if bytes_held > task.bytes_held or checker.next_row - task.first_row > task.rows_per_file:
            waiting = None
    return waiting


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
    for number, record, text in read(task, checker.reading):
        try:
            value, identities = _checked(checker, record)
        except (ValueRefusedError, TypeConflictError) as error:
            refusals.add(number, error, text)
            continue
        batch.values.append(value)
        batch.identities.append(identities)
        size += len(text)
        if len(batch.values) == _ROWS_PER_BATCH or size >= _BYTES_PER_BATCH or _is_wide(batch, checker):
            yield batch
            batch, size = RowBatch(task.batch_id, checker.next_row), 0
    refusals.settle()
    if checker.next_row > task.first_row:
        checker.reading.check_used()
    if batch.values:
        yield batch


def _is_wide(batch: RowBatch, checker: RowChecker) -> bool:
    """Whether rows take more room for what they do not hold than for what they do."""
    return len(batch.values) * len(checker.fields.fields) >= _CELLS_PER_BATCH


def _checked(checker: RowChecker, record: Any) -> tuple[dict[str, Any], RowIdentities]:
    if isinstance(record, dict):
        return checker.check(checker.reading.record(record))
    if isinstance(record, ValueRefusedError):
        raise record
    raise ValueRefusedError((), "is not a JSON object", Reason.NOT_AN_OBJECT)
