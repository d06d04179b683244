"""Parquet uploads: whole columns are brought into their stored form, only identities are looked at row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.catalog import DatasetKind, RowError
from profile_export.domain.learning import ValueRefusedError
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
from profile_export.ingest.conform import Place, accepted_fields, conform
from profile_export.ingest.identities import (
    EMPTY_ID,
    Mention,
    NamespaceTally,
    check_identity_map,
    claim_of,
    resolve,
)
from profile_export.ingest.identity_columns import DeclaredColumn, Identified, identify
from profile_export.ingest.refusals import Refusals, RowsRefusedError
from profile_export.ingest.rows import MISSING_IN_EVENT, SystemColumns, numbered
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.writer import ROWS_PER_GROUP, BatchWriter
from profile_export.lake.arrow_types import arrow_type, file_schema


def ingest_parquet(task: IngestTask, writer: BatchWriter) -> IngestResult:
    """Turn a Parquet upload into data files.

    Raises:
        RowsRefusedError: The file is not Parquet, contradicts the dataset's fields, or has rows that cannot be stored.
    """
    with _refusing_unsound(), pq.ParquetFile(task.source, coerce_int96_timestamp_unit="us") as file:
        schema = file.schema_arrow
    columns = _Columns(task, schema)
    for batch in _batches(task):
        writer.add(columns.stored(batch))
    return IngestResult(
        files=writer.finish(),
        rows=columns.rows,
        fields=columns.fields,
        identity_namespaces=columns.identity_namespaces.sent(),
        segment_namespaces=columns.segment_namespaces.sent(),
        untyped=columns.untyped,
    )


def _batches(task: IngestTask) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(task.source, coerce_int96_timestamp_unit="us") as file:
        batches = file.iter_batches(ROWS_PER_GROUP)
        while True:
            with _refusing_unsound():
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)  # the reader takes bytes for text that are not UTF-8
            if batch.num_rows:
                yield batch


@contextmanager
def _refusing_unsound() -> Iterator[None]:
    """Tell a file that is not sound Parquet as a refusal."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file's content
        message = f"The file is not sound Parquet: {error}"
        raise RowsRefusedError((RowError(None, message),)) from None


class _Columns:
    """Brings the columns of one batch of rows after another into their stored form.

    `fields` are those of the dataset and of the file. Row numbers go on from batch to batch.
    """

    def __init__(self, task: IngestTask, found: pa.Schema) -> None:
        self._task = task
        self._refusals = Refusals()
        self.rows = 0
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
            self._refusals.add(None, error)
            self._refusals.settle()
            raise
        return fields, tuple(sorted(path for path in untyped if type_at(fields, path) is None))

    def stored(self, batch: pa.RecordBatch) -> pa.Table:
        """Return the next rows of the file with their system columns.

        Raises:
            RowsRefusedError: Some cannot be stored.
        """
        place = Place((), self.rows, self._refusals)
        columns = {
            name: conform(batch.column(name), target, place.member(name))
            if name in batch.schema.names
            else pa.nulls(batch.num_rows, arrow_type(target))
            for name, target in self.fields.fields.items()
            if name != IDENTITY_MAP
        }
        if self._task.kind is DatasetKind.EVENT:
            _refuse_incomplete_events(columns, place)
        system, columns[IDENTITY_MAP] = self._identify(batch, columns)
        self._refusals.settle()
        self._see_segments(columns.get(SEGMENT_MEMBERSHIP))
        self.rows += batch.num_rows
        ordered = [columns[name] for name in self.fields.fields]
        return pa.Table.from_arrays([*system, *ordered], schema=file_schema(self.fields))

    def _identify(
        self, batch: pa.RecordBatch, columns: dict[str, pa.Array]
    ) -> tuple[list[pa.Array], pa.Array]:
        """Return the system columns and the column `identityMap`."""
        declared = [
            DeclaredColumn(field.namespace, claim_of(field), self._ids_at(columns, field.path))
            for field in self._task.identity_fields
        ]
        sent = batch.column(IDENTITY_MAP) if IDENTITY_MAP in batch.schema.names else None
        found = identify(sent, declared, batch.num_rows)
        if found is None:
            return self._identify_rows(batch, declared)
        self._see_identities(found)
        return numbered(self._task.batch_id, self.rows, found.system), found.identity_map

    def _identify_rows(
        self, batch: pa.RecordBatch, declared_columns: list[DeclaredColumn]
    ) -> tuple[list[pa.Array], pa.Array]:
        system = SystemColumns(self._task.batch_id, self.rows)
        maps = _identity_maps(batch)
        declared = [(field.namespace, field.claim, field.ids.to_pylist()) for field in declared_columns]
        stored: list[dict[str, Any] | None] = []
        for index, sent in enumerate(maps):
            try:
                identity_map, mentions = check_identity_map(sent) if sent else (None, [])
                for namespace, claim, ids in declared:
                    text = ids[index]
                    if text is not None:
                        mentions.append(Mention(namespace, text, None, claim))
                identities = resolve(mentions)
            except (ValueRefusedError, TypeConflictError) as error:
                self._refusals.add(self.rows + index + 1, error)
                continue
            stored.append(identity_map)
            system.add(identities)
            for mention in mentions:
                self.identity_namespaces.see(mention.namespace, self.rows + index)
        self._refusals.settle()
        return system.arrays(), pa.array(stored, arrow_type(IDENTITY_MAP_TYPE))

    def _see_identities(self, found: Identified) -> None:
        firsts = [pc.index(found.namespaces, name).as_py() for name in pc.unique(found.namespaces)]
        for first in sorted(firsts):
            spelling, row = found.namespaces[first].as_py(), found.rows[first].as_py()
            self.identity_namespaces.see(spelling, self.rows + row)

    def _ids_at(self, columns: dict[str, pa.Array], path: FieldPath) -> pa.Array:
        """Return what a declared identity field holds, as text."""
        name, *members = path
        column = columns[name]
        ids = (pc.struct_field(column, members) if members else column).cast(pa.string())
        Place(path, self.rows, self._refusals).refuse_where(pc.equal(ids, ""), EMPTY_ID)
        return ids

    def _see_segments(self, column: pa.Array | None) -> None:
        if column is None or column.null_count == len(column):
            return
        keys, offsets = column.keys.to_pylist(), column.offsets.to_pylist()
        for index, (start, end) in enumerate(pairwise(offsets)):
            for spelling in keys[start:end]:
                self.segment_namespaces.see(spelling, self.rows + index)


def _check_identity_types(fields: ObjectType, paths: Iterable[FieldPath]) -> None:
    for path in paths:
        if type_at(fields, path) not in {TEXT, LONG}:
            raise ValueRefusedError(path, "holds an identity, which is text or an integer")


def _refuse_incomplete_events(columns: dict[str, pa.Array], place: Place) -> None:
    ids = columns[EVENT_ID]
    place.member(EVENT_ID).refuse_where(pc.or_kleene(ids.is_null(), pc.equal(ids, "")), MISSING_IN_EVENT)
    place.member(EVENT_TIME).refuse_where(columns[EVENT_TIME].is_null(), MISSING_IN_EVENT)


def _identity_maps(batch: pa.RecordBatch) -> list[Any]:
    """Return `identityMap` of every row as JSON would have it."""
    if IDENTITY_MAP not in batch.schema.names:
        return [None] * batch.num_rows
    column = batch.column(IDENTITY_MAP)
    # A namespace twice in a row: its items are told apart by no reader, so they count as one list.
    if pa.types.is_map(column.type):
        return [None if entries is None else _joined(entries) for entries in column.to_pylist()]
    return list(column.to_pylist())


def _joined(entries: list[tuple[str, list[Any] | None]]) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for namespace, items in entries:
        joined.setdefault(namespace, []).extend(items or ())
    return joined
