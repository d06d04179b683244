"""Parquet: whole columns are brought into their stored form, only identities are looked at row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import Reason
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import (
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    LARGE_LONG,
    LONG,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    FieldPath,
    ObjectType,
    TypeConflictError,
    type_at,
    union_objects,
)
from profile_export.ingest.output import BatchWriter, FileRefusedError, Refusals, RowsRefusedError, row_error
from profile_export.ingest.rows.conform import (
    Place,
    Refused,
    accepted_fields,
    conform,
    entries_of,
    is_list,
    lengths_of,
    object_type,
    offsets_of,
    plain_type,
    plain_values,
    with_large,
    with_singles,
)
from profile_export.ingest.rows.identities import (
    EMPTY_ID,
    DeclaredColumn,
    Identified,
    Mention,
    RowIdentities,
    check_identity_map,
    claim_of,
    identify,
    resolve,
    segment_namespace_refused,
)
from profile_export.ingest.rows.rows import Accepted, missing_in_event, numbered, system_columns, too_large
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.lake.data_files import ROWS_PER_GROUP, arrow_type, file_schema

MOST_FOOTER_BYTES = 32 * 2**20
MOST_COLUMNS = 10_000
MOST_ROW_GROUPS = 20_000
_TAIL_BYTES = 8
_MAGIC = b"PAR1"
_MOST_BYTES_OF_A_VALUE = 8
"""The most bytes of a value of fixed width, as Arrow holds most values. Text is limited by what its row may have."""
_LIBRARYS_OWN = re.compile(r"\b\w+(?:Exception|Error): ")
"""The name of an exception, which stands in what the reader says and means nothing to who sent the file."""


def judged_schema(task: IngestTask) -> pa.Schema:
    """Return the columns of a file whose footer says nothing that speaks against reading it.

    Raises:
        FileRefusedError: It is not sound Parquet, or so large in some way that it is not decoded.
    """
    with _refusing_unsound(task), task.source.open("rb") as source:
        source.seek(0, 2)
        source.seek(max(0, source.tell() - _TAIL_BYTES))
        tail = source.read()
        if tail.endswith(_MAGIC):
            _judge(int.from_bytes(tail[:4], "little"), MOST_FOOTER_BYTES, "a footer of {} bytes")
    with _refusing_unsound(task), _opened(task) as file:
        _judge(file.metadata.num_columns, MOST_COLUMNS, "{} columns")
        _judge(file.metadata.num_row_groups, MOST_ROW_GROUPS, "{} row groups")
        _judge_values(file.metadata, task.max_row_bytes)
        return file.schema_arrow


def read_batches(task: IngestTask) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a judged file, as many at a time as are worked on well and fit into memory.

    Raises:
        FileRefusedError: It is not sound Parquet.
    """
    most_bytes = task.bytes_held // 2
    _refuse_lost_digits(task, most_bytes)
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in _slices(task, most_bytes):
        if _has_dictionaries(batch.schema):  # which cannot all be joined
            yield batch
            continue
        if held and (rows + batch.num_rows > ROWS_PER_GROUP or size + batch.nbytes > most_bytes):
            yield pa.concat_batches(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
    if held:
        yield pa.concat_batches(held)


def _has_dictionaries(schema: pa.Schema) -> bool:
    return any("dictionary" in str(found) for found in schema.types)


def _opened(task: IngestTask, int96_unit: str = "us") -> pq.ParquetFile:
    # A page that was damaged on its way may still be read, as other values, where nobody looks at its checksum.
    return pq.ParquetFile(
        task.source, coerce_int96_timestamp_unit=int96_unit, page_checksum_verification=True
    )


def _refuse_lost_digits(task: IngestTask, most_bytes: int) -> None:
    """Refuse a file with instants in the legacy type INT96 that have digits behind the microsecond.

    Arrow reads them to a unit and says nothing of what it drops. Read to nanoseconds, those far from 1970 come out
    wrong, but so do microseconds that are cast to nanoseconds: they are the same where nothing was dropped.
    """
    with _opened(task) as file, _opened(task, "ns") as finer, _refusing_unsound(task):
        leaves = (file.schema.column(place) for place in range(len(file.schema)))
        paths = [leaf.path for leaf in leaves if leaf.physical_type == "INT96"]
        if not paths:
            return
        rows = _rows_at_once(file.metadata, most_bytes, task.max_row_bytes)
        for coarse, fine in zip(
            *(one.iter_batches(rows, columns=paths) for one in (file, finer)), strict=True
        ):
            for name, column in zip(fine.schema.names, fine.columns, strict=True):
                if not coarse.column(name).cast(column.type, safe=False).equals(column):
                    message = (
                        f"The column '{name}' (INT96) has digits behind the microsecond, which would be lost: write it "
                        "as a timestamp in microseconds."
                    )
                    raise FileRefusedError(message)


def _slices(task: IngestTask, most_bytes: int) -> Iterator[pa.RecordBatch]:
    with _opened(task) as file:
        batches = file.iter_batches(_rows_at_once(file.metadata, most_bytes, task.max_row_bytes))
        while True:
            with _refusing_unsound(task):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)  # the reader takes bytes for text that are not UTF-8
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays(
                    [_taken(column) for column in batch.columns], batch.schema.names
                )


def _judge(found: int, most: int, what: str) -> None:
    if found > most:
        message = f"The file has {what.format(found)}, but may have {most}: write its rows as smaller files."
        raise FileRefusedError(message)


def _judge_values(metadata: pq.FileMetaData, most: int) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            if column.num_values > most * max(group.num_rows, 1):
                message = (
                    f"The row group {number + 1} of the file has {column.num_values} values of "
                    f"'{column.path_in_schema}' in {group.num_rows} rows, but a row may have {most}, as it may have "
                    "bytes."
                )
                raise FileRefusedError(message)


def _rows_at_once(metadata: pq.FileMetaData, most_bytes: int, max_row_bytes: int) -> int:
    """Return how many rows, if none has more bytes than it may, take no more than so many.

    What the footer says of their bytes is only what they take with a dictionary, which the reader does away with.
    """
    widest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = sum(group.column(place).num_values for place in range(group.num_columns))
        size = max(group.total_byte_size, values * _MOST_BYTES_OF_A_VALUE)
        widest = max(widest, size // max(group.num_rows, 1))
    return max(1, min(ROWS_PER_GROUP, most_bytes // max(widest, max_row_bytes)))


def _taken(column: pa.Array) -> pa.Array:
    """Return a column with text that can be taken out of it by row: Arrow cannot do so with views."""
    viewless = with_singles(
        column.type, lambda single: pa.string() if pa.types.is_string_view(single) else single
    )
    return column.cast(viewless) if "string_view" in str(column.type) else column


@contextmanager
def _refusing_unsound(task: IngestTask) -> Iterator[None]:
    """Tell a file that is not sound Parquet as a refusal."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file's content
        if isinstance(error, MemoryError):
            raise
        told = _LIBRARYS_OWN.sub("", str(error).replace(str(task.source), "the upload"))
        raise FileRefusedError(f"The file is not sound Parquet: {told}") from None


_BITS = 8
_ROWS_AT_ONCE = 256


def row_bytes(batch: pa.RecordBatch) -> pa.Array:
    """Return how many bytes the values of each row have: text as many as it is long, others their width.

    An item of a list has one at least, also if it is null or empty: a row is not to hold any number of them.
    """
    return _value_bytes(batch.to_struct_array())


def _value_bytes(column: pa.Array) -> pa.Array:
    column = plain_values(column)
    found = column.type
    if pa.types.is_map(found):
        column = entries_of(column)
        found = column.type
    if pa.types.is_struct(found):
        total = pa.repeat(pa.scalar(0, pa.int64()), len(column))
        for member in column.flatten():
            total = pc.add(total, _value_bytes(member))
        return total
    if is_list(found):
        until = pc.cumulative_sum(pc.max_element_wise(_value_bytes(column.flatten()), 1))
        until = pa.concat_arrays([pa.array([0], pa.int64()), until]).take(offsets_of(lengths_of(column)))
        return pc.subtract(until[1:], until[:-1])
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return pc.fill_null(pc.binary_length(column), 0).cast(pa.int64())
    width = 0 if pa.types.is_null(found) else -(-found.bit_width // _BITS)
    return pc.if_else(column.is_valid(), pa.scalar(width, pa.int64()), pa.scalar(0, pa.int64()))


def row_values(batch: pa.RecordBatch, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield some rows of a batch as JSON has them: instants and days as text, decimals as `Decimal`."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        taken = batch.take(pa.array(rows[start : start + _ROWS_AT_ONCE], pa.int64()))
        yield from _json_values(taken.to_struct_array())


def _json_values(column: pa.Array) -> list[Any]:
    # By way of Arrow's text: Python has no nanoseconds and no year 10000.
    column = plain_values(column)
    kinds = column.type
    for change in (_in_utc, _as_text):
        column = column.cast(with_singles(column.type, change), safe=False)
    return [_json_value(value, kinds) for value in column.to_pylist()]


def _in_utc(single: pa.DataType) -> pa.DataType:
    return pa.timestamp(single.unit, "UTC") if pa.types.is_timestamp(single) else single


def _as_text(single: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(single) else single


def _json_value(value: Any, found: pa.DataType) -> Any:
    found = plain_type(found)
    if value is None:
        return None
    if pa.types.is_struct(found):
        return {member.name: _json_value(value[member.name], member.type) for member in found}
    if is_list(found):
        return [_json_value(item, found.value_type) for item in value]
    if pa.types.is_map(found):
        entries = [(key, _json_value(item, found.item_type)) for key, item in value]
        # A key that stands twice may be why the row was refused.
        return dict(entries) if len(dict(entries)) == len(entries) else entries
    return value.replace(" ", "T") if pa.types.is_timestamp(found) else value


_MOST_VALUES_OF_A_BYTE = 8
"""How many values one byte holds if they are booleans or null."""


def ingest_parquet(task: IngestTask, writer: BatchWriter, refusals: Refusals) -> IngestResult:
    """Turn a Parquet upload into data files.

    Raises:
        RowsRefusedError: It contradicts the dataset's fields, or has more rows than allowed that cannot be stored.
        FileRefusedError: It is not sound Parquet.
    """
    schema = judged_schema(task)
    columns = _Columns(task, schema)
    number = 1
    for batch in read_batches(task):
        table, refused = columns.stored(batch)
        rows = sorted(refused)
        for row, value in zip(rows, row_values(batch, rows), strict=True):
            text = json.dumps(value, ensure_ascii=False, default=str)
            refusals.add(number + row, refused[row], text)
        number += batch.num_rows
        writer.add(table)
    refusals.settle()
    return columns.result(writer, refusals, columns.fields, columns.untyped)


class _Columns(Accepted):
    """Brings the columns of one batch of rows after another into their stored form.

    `fields` are those of the dataset and of the file.
    """

    def __init__(self, task: IngestTask, found: pa.Schema) -> None:
        super().__init__(task)
        self._names = self.reading.names(found.names)
        named = [field.with_name(name) for field, name in zip(found, self._names, strict=True)]
        self.fields, self.untyped = self._accept(pa.schema(named))

    def _accept(self, found: pa.Schema) -> tuple[ObjectType, set[FieldPath]]:
        known = self.task.fields
        if SEGMENT_MEMBERSHIP in found.names:
            known = union_objects(known, ObjectType({SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE}))
        untyped: set[FieldPath] = set()
        paths = {declared.path for declared in self.task.identity_fields}
        try:
            learned = dict(object_type(found, (), untyped).fields)
            learned.pop(IDENTITY_MAP, None)  # checked row by row
            fields = accepted_fields(known, ObjectType(learned), (), paths)
            _check_identity_types(fields, paths)
        except (ValueRefusedError, TypeConflictError) as error:
            raise RowsRefusedError((row_error(None, error),), 0) from None
        return fields, untyped

    def stored(self, batch: pa.RecordBatch) -> tuple[pa.Table, Refused]:
        """Return the next rows of the file that are accepted, with their system columns, and those that are not."""
        refused: Refused = {}
        batch = self.reading.columns(batch, self._names)
        columns, rows = _without(self._conformed(batch, refused), batch.num_rows, refused)
        system, identity_map, nobodies = self._identify(columns, len(rows))
        columns, _ = _without(columns, len(rows), nobodies)
        refused.update((rows[index], error) for index, error in nobodies.items())
        columns[IDENTITY_MAP] = identity_map
        self._see_segments(columns.get(SEGMENT_MEMBERSHIP))
        self.next_row += len(identity_map)
        ordered = [columns[name] for name in self.fields.fields]
        self.fields = ObjectType(
            {
                name: with_large(kind, column)
                for (name, kind), column in zip(self.fields.fields.items(), ordered, strict=True)
            }
        )
        return pa.Table.from_arrays([*system, *ordered], schema=file_schema(self.fields)), refused

    def _conformed(self, batch: pa.RecordBatch, refused: Refused) -> dict[str, pa.Array]:
        """Return the columns in their stored form, but `identityMap` as sent if it was."""
        place = Place((), refused)
        limit = self.task.max_row_bytes
        if _MOST_VALUES_OF_A_BYTE * batch.nbytes > limit:
            place.refuse_where(pc.greater(row_bytes(batch), limit), too_large(limit))
        sent = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns = {
            name: conform(sent[name], target, place.member(name))
            if name in sent
            else pa.nulls(batch.num_rows, arrow_type(target))
            for name, target in self.fields.fields.items()
            if name != IDENTITY_MAP
        }
        if self.task.kind is DatasetKind.EVENT:
            _refuse_incomplete_events(columns, place)
        for declared in self.task.identity_fields:
            empty = pc.equal(_ids_at(columns, declared.path), "")
            place.refuse_where(empty, ValueRefusedError(declared.path, EMPTY_ID, Reason.IDENTITY_INVALID))
        if SEGMENT_MEMBERSHIP in sent:
            _refuse_segment_namespaces(columns[SEGMENT_MEMBERSHIP], place.member(SEGMENT_MEMBERSHIP))
        self._refuse_by_rules(batch, refused)
        if IDENTITY_MAP in sent:
            columns[IDENTITY_MAP] = sent[IDENTITY_MAP]
        return columns

    def _refuse_by_rules(self, batch: pa.RecordBatch, refused: Refused) -> None:
        if self.rules is None:
            return
        rows = [row for row in range(batch.num_rows) if row not in refused]
        for row, value in zip(rows, row_values(batch, rows), strict=True):
            try:
                self.rules.check(value)
            except ValueRefusedError as error:
                refused[row] = error

    def _identify(self, columns: dict[str, pa.Array], count: int) -> tuple[list[pa.Array], pa.Array, Refused]:
        """Return the system columns and the column `identityMap` of rows with sound identities, and the others."""
        sent = columns.get(IDENTITY_MAP)
        declared = [
            DeclaredColumn(field.namespace, claim_of(field), _ids_at(columns, field.path))
            for field in self.task.identity_fields
        ]
        found = identify(sent, declared, count)
        if found is None:
            return self._identify_rows(_identity_maps(sent, count), declared)
        self._see_identities(found)
        return numbered(self.task.batch_id, self.next_row, found.system), found.identity_map, {}

    def _identify_rows(
        self, maps: list[Any], declared_columns: list[DeclaredColumn]
    ) -> tuple[list[pa.Array], pa.Array, Refused]:
        declared = [(field.namespace, field.claim, field.ids.to_pylist()) for field in declared_columns]
        stored: list[dict[str, Any] | None] = []
        found: list[RowIdentities] = []
        refused: Refused = {}
        for index, sent in enumerate(maps):
            try:
                identity_map, mentions = check_identity_map(sent) if sent else (None, [])
                for namespace, claim, ids in declared:
                    text = ids[index]
                    if text is not None:
                        mentions.append(Mention(namespace, text, None, claim))
                identities = resolve(mentions)
            except (ValueRefusedError, TypeConflictError) as error:
                refused[index] = error
                continue
            for mention in mentions:
                self.identity_namespaces.see(mention.namespace, self.next_row + len(stored))
            stored.append(identity_map)
            found.append(identities)
        system = system_columns(self.task.batch_id, self.next_row, found)
        return system, pa.array(stored, arrow_type(IDENTITY_MAP_TYPE)), refused

    def _see_identities(self, found: Identified) -> None:
        firsts = [pc.index(found.namespaces, name).as_py() for name in pc.unique(found.namespaces)]
        for first in sorted(firsts):
            spelling, row = found.namespaces[first].as_py(), found.rows[first].as_py()
            self.identity_namespaces.see(spelling, self.next_row + row)

    def _see_segments(self, column: pa.Array | None) -> None:
        if column is None or column.null_count == len(column):
            return
        keys, offsets = column.keys.to_pylist(), column.offsets.to_pylist()
        for index, (start, end) in enumerate(pairwise(offsets)):
            for spelling in keys[start:end]:
                self.segment_namespaces.see(spelling, self.next_row + index)


def _without(
    columns: dict[str, pa.Array], count: int, refused: Refused
) -> tuple[dict[str, pa.Array], Sequence[int]]:
    """Leave refused rows out of columns; also returns which rows are left."""
    if not refused:
        return columns, range(count)
    rows = [row for row in range(count) if row not in refused]
    left = pa.array(rows, pa.int64())
    return {name: column.take(left) for name, column in columns.items()}, rows


def _ids_at(columns: dict[str, pa.Array], path: FieldPath) -> pa.Array:
    """Return what a declared identity field holds, as text."""
    name, *members = path
    column = columns[name]
    return (pc.struct_field(column, members) if members else column).cast(pa.string())


def _check_identity_types(fields: ObjectType, paths: Iterable[FieldPath]) -> None:
    for path in paths:
        if type_at(fields, path) not in {TEXT, LONG, LARGE_LONG}:
            complaint = "holds an identity, which is text or an integer"
            raise ValueRefusedError(path, complaint, Reason.IDENTITY_INVALID)


def _refuse_incomplete_events(columns: dict[str, pa.Array], place: Place) -> None:
    ids = columns[EVENT_ID]
    place.refuse_where(pc.or_kleene(ids.is_null(), pc.equal(ids, "")), missing_in_event(EVENT_ID))
    place.refuse_where(columns[EVENT_TIME].is_null(), missing_in_event(EVENT_TIME))


def _refuse_segment_namespaces(column: pa.Array, place: Place) -> None:
    entries = entries_of(column)
    keys = entries.flatten().field("key")
    inside = place.items("*", pc.list_parent_indices(entries))
    for index in pc.indices_nonzero(pc.match_substring(keys, "\0")).to_pylist():
        inside.refuse(index, segment_namespace_refused(keys[index].as_py()))


def _identity_maps(sent: pa.Array | None, count: int) -> list[Any]:
    """Return `identityMap` of every row as JSON would have it."""
    if sent is None:
        return [None] * count
    maps = sent.to_pylist()
    # A namespace twice in a row: its items are told apart by no reader, so they count as one list.
    if pa.types.is_map(sent.type):
        maps = [None if entries is None else _joined(entries) for entries in maps]
    return [_with_integers(identity_map) for identity_map in maps]


def _with_integers(value: Any) -> Any:
    """Return what `identityMap` holds with an integer for each decimal without a fraction (S1)."""
    match value:
        case dict():
            return {name: _with_integers(member) for name, member in value.items()}
        case list():
            return [_with_integers(item) for item in value]
        case Decimal() if value == int(value):
            return int(value)
    return value


def _joined(entries: list[tuple[str, list[Any] | None]]) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for namespace, items in entries:
        joined.setdefault(namespace, []).extend(items or ())
    return joined
