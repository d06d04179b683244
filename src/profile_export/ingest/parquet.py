"""Parquet uploads: whole columns are brought into their stored form, only identities are looked at row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.reasons import Reason
from profile_export.domain.schema import (
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
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
from profile_export.ingest.arrow_types import object_type
from profile_export.ingest.conform import Place, Refused, accepted_fields, conform, entries_of
from profile_export.ingest.identities import (
    EMPTY_ID,
    Mention,
    NamespaceTally,
    check_identity_map,
    claim_of,
    resolve,
    segment_namespace_refused,
)
from profile_export.ingest.identity_columns import DeclaredColumn, Identified, identify
from profile_export.ingest.parquet_rows import row_bytes, row_texts, row_values
from profile_export.ingest.parquet_source import judged_schema, read_batches
from profile_export.ingest.refusals import Refusals, RowsRefusedError, row_error
from profile_export.ingest.rows import SystemColumns, missing_in_event, numbered
from profile_export.ingest.rules import Rules
from profile_export.ingest.sent_rows import too_large
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.writer import BatchWriter
from profile_export.lake.arrow_types import arrow_type, file_schema

_MOST_VALUES_OF_A_BYTE = 8
"""Of booleans, and of what is null."""


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
        for row, text in zip(sorted(refused), row_texts(batch, sorted(refused)), strict=True):
            refusals.add(number + row, refused[row], text)
        number += batch.num_rows
        writer.add(table)
    refusals.settle()
    return IngestResult(
        files=writer.finish(),
        rows=columns.next_row - task.first_row,
        fields=columns.fields,
        identity_namespaces=columns.identity_namespaces.sent(),
        segment_namespaces=columns.segment_namespaces.sent(),
        untyped=columns.untyped,
        rejected_rows=refusals.count,
        errors=refusals.first,
    )


class _Columns:
    """Brings the columns of one batch of rows after another into their stored form.

    `fields` are those of the dataset and of the file. The rows that are accepted are numbered on from batch to batch.
    """

    def __init__(self, task: IngestTask, found: pa.Schema) -> None:
        self._task = task
        self.next_row = task.first_row
        self._rules = Rules(task.rules) if task.rules else None
        self.fields, self.untyped = self._accept(found)
        self.identity_namespaces = NamespaceTally()
        self.segment_namespaces = NamespaceTally()

    def _accept(self, found: pa.Schema) -> tuple[ObjectType, tuple[FieldPath, ...]]:
        known = self._task.fields
        if SEGMENT_MEMBERSHIP in found.names:
            known = union_objects(known, ObjectType({SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE}))
        untyped: set[FieldPath] = set()
        paths = {declared.path for declared in self._task.identity_fields}
        try:
            learned = dict(object_type(found, (), untyped).fields)
            learned.pop(IDENTITY_MAP, None)  # checked row by row
            fields = accepted_fields(known, ObjectType(learned), (), paths)
            _check_identity_types(fields, paths)
        except (ValueRefusedError, TypeConflictError) as error:
            raise RowsRefusedError((row_error(None, error),), 0) from None
        return fields, tuple(sorted(path for path in untyped if type_at(fields, path) is None))

    def stored(self, batch: pa.RecordBatch) -> tuple[pa.Table, Refused]:
        """Return the next rows of the file that are accepted, with their system columns, and those that are not."""
        refused: Refused = {}
        columns, rows = _without(self._conformed(batch, refused), batch.num_rows, refused)
        system, identity_map, nobodies = self._identify(columns, len(rows))
        columns, _ = _without(columns, len(rows), nobodies)
        refused.update((rows[index], error) for index, error in nobodies.items())
        columns[IDENTITY_MAP] = identity_map
        self._see_segments(columns.get(SEGMENT_MEMBERSHIP))
        self.next_row += len(identity_map)
        ordered = [columns[name] for name in self.fields.fields]
        return pa.Table.from_arrays([*system, *ordered], schema=file_schema(self.fields)), refused

    def _conformed(self, batch: pa.RecordBatch, refused: Refused) -> dict[str, pa.Array]:
        """Return the columns in their stored form, but `identityMap` as sent if it was."""
        place = Place((), refused)
        limit = self._task.max_row_bytes
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
        if self._task.kind is DatasetKind.EVENT:
            _refuse_incomplete_events(columns, place)
        for declared in self._task.identity_fields:
            empty = pc.equal(_ids_at(columns, declared.path), "")
            place.refuse_where(empty, ValueRefusedError(declared.path, EMPTY_ID, Reason.IDENTITY_INVALID))
        if SEGMENT_MEMBERSHIP in sent:
            _refuse_segment_namespaces(columns[SEGMENT_MEMBERSHIP], place.member(SEGMENT_MEMBERSHIP))
        self._refuse_by_rules(batch, refused)
        if IDENTITY_MAP in sent:
            columns[IDENTITY_MAP] = sent[IDENTITY_MAP]
        return columns

    def _refuse_by_rules(self, batch: pa.RecordBatch, refused: Refused) -> None:
        if self._rules is None:
            return
        rows = [row for row in range(batch.num_rows) if row not in refused]
        for row, value in zip(rows, row_values(batch, rows), strict=True):
            try:
                self._rules.check(value)
            except ValueRefusedError as error:
                refused[row] = error

    def _identify(self, columns: dict[str, pa.Array], count: int) -> tuple[list[pa.Array], pa.Array, Refused]:
        """Return the system columns and the column `identityMap` of rows with sound identities, and the others."""
        sent = columns.get(IDENTITY_MAP)
        declared = [
            DeclaredColumn(field.namespace, claim_of(field), _ids_at(columns, field.path))
            for field in self._task.identity_fields
        ]
        found = identify(sent, declared, count)
        if found is None:
            return self._identify_rows(_identity_maps(sent, count), declared)
        self._see_identities(found)
        return numbered(self._task.batch_id, self.next_row, found.system), found.identity_map, {}

    def _identify_rows(
        self, maps: list[Any], declared_columns: list[DeclaredColumn]
    ) -> tuple[list[pa.Array], pa.Array, Refused]:
        system = SystemColumns(self._task.batch_id, self.next_row)
        declared = [(field.namespace, field.claim, field.ids.to_pylist()) for field in declared_columns]
        stored: list[dict[str, Any] | None] = []
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
            system.add(identities)
        return system.arrays(), pa.array(stored, arrow_type(IDENTITY_MAP_TYPE)), refused

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
        if type_at(fields, path) not in {TEXT, LONG}:
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
    # A namespace twice in a row: its items are told apart by no reader, so they count as one list.
    if pa.types.is_map(sent.type):
        return [None if entries is None else _joined(entries) for entries in sent.to_pylist()]
    return list(sent.to_pylist())


def _joined(entries: list[tuple[str, list[Any] | None]]) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for namespace, items in entries:
        joined.setdefault(namespace, []).extend(items or ())
    return joined
