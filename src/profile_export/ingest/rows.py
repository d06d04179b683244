"""Rows one by one: checked, brought into their stored form, and given their system columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.learning import ValueRefusedError, check_record
from profile_export.domain.reasons import Reason
from profile_export.domain.schema import (
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    SEGMENT_MEMBERSHIP,
    TEXT,
    FieldPath,
    ObjectType,
    type_at,
)
from profile_export.ingest.identities import (
    Mention,
    NamespaceTally,
    RowIdentities,
    Stated,
    check_identity_map,
    check_segment_namespaces,
    claim_of,
    identity_text,
    resolve,
)
from profile_export.ingest.rules import Rules
from profile_export.ingest.task import IngestTask
from profile_export.ingest.untyped import typed_part
from profile_export.lake.arrow_types import SYSTEM_FIELDS, arrow_type, file_schema

EVENT_NEEDS = {EVENT_ID: Reason.EVENT_ID_MISSING, EVENT_TIME: Reason.TIMESTAMP_MISSING}
"""What an experience event must have, and how it is told that it has not."""
_MISSING = "is missing or empty, but an experience event needs it"


class SystemColumns:
    """The system columns of consecutive rows, filled row by row."""

    def __init__(self, batch_id: str, first_row: int) -> None:
        self._batch_id = batch_id
        self._first_row = first_row
        self._rows: list[tuple[str, str, str | None, int, int, list[Stated] | None]] = []

    def add(self, identities: RowIdentities) -> None:
        """Add the next row."""
        self._rows.append((*identities.primary, identities.links or None))

    def arrays(self) -> list[pa.Array]:
        """Return the columns in the order of `SYSTEM_FIELDS`."""
        arrays = [
            pa.array([row[place] for row in self._rows], field.type)
            for place, field in enumerate(SYSTEM_FIELDS[2:])
        ]
        return numbered(self._batch_id, self._first_row, arrays)


def numbered(batch_id: str, first_row: int, columns: list[pa.Array]) -> list[pa.Array]:
    """Return the other system columns of consecutive rows, with the batch's id and the row numbers before them."""
    count = len(columns[0])
    rows = pa.array(range(first_row, first_row + count), pa.int64())
    return [pa.repeat(batch_id, count), rows, *columns]


class RowChecker:
    """Checks one parsed record after another; `fields` and `untyped` grow with what they teach.

    `next_row` is the `_row` of the next record that is accepted. A refused one teaches nothing.
    """

    def __init__(self, task: IngestTask, fields: ObjectType) -> None:
        self.fields = fields
        self.next_row = task.first_row
        self.untyped: set[FieldPath] = set()
        self.identity_namespaces = NamespaceTally()
        self.segment_namespaces = NamespaceTally()
        self._is_event = task.kind is DatasetKind.EVENT
        self._rules = Rules(task.rules) if task.rules else None
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
        sent = dict(record) if self._rules else record
        identity_map, mentions = check_identity_map(record.pop(IDENTITY_MAP, None))
        self._take_declared(record, mentions)
        untyped: set[FieldPath] = set()
        value, fields = check_record(record, self.fields, untyped)
        if self._is_event:
            check_event(value)
        check_segment_namespaces(value.get(SEGMENT_MEMBERSHIP, ()))
        identities = resolve(mentions)
        if self._rules:
            self._rules.check(sent)
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
    """Some consecutive rows on their way into Arrow."""

    def __init__(self, batch_id: str, first_row: int) -> None:
        self.system = SystemColumns(batch_id, first_row)
        self.values: list[Mapping[str, Any]] = []

    def add(self, value: Mapping[str, Any], identities: RowIdentities) -> None:
        """Add the next row in its stored form."""
        self.values.append(value)
        self.system.add(identities)

    def table(self, fields: ObjectType, *, has_untyped: bool) -> pa.Table:
        """Return the rows as a table with the system columns and `fields`.

        Args:
            fields: What the values hold; nothing else of them is kept.
            has_untyped: Whether a value may hold an array that `fields` has no type for.
        """
        values = [typed_part(value, fields) for value in self.values] if has_untyped else self.values
        members = pa.array(values, arrow_type(fields)).flatten()
        return pa.Table.from_arrays([*self.system.arrays(), *members], schema=file_schema(fields))


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
