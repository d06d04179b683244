"""The tables that every engine binds: their flat columns, which of their rows count, and in what order.

- `records`, `events`: the rows of the sources that belong to the range, in normal form (S13: no entry of a map is null,
  no object or map is without a value), as the union schema types them, with `segmentMembership` in a column of its own.
  Records that are merged come as leaves, a column for each, others as the largest parts that are exported whole. Maps
  that are merged come again, those of a type in a list: each that is not null, as `held`, with its `number` among them;
  the list is null where all are. An
  event is never merged: it is one object, `event`, null where it has no value. `profile_*` is the key of the row's
  profile, `key_*` of its primary identity. Where any source upserts, `upserts` says of each record whether its own
  does (S9).
- `others`: the rows of sources that do not take part, without leaves (S10).
- `batches`: see `bound_batches`; `segments`: see `bound_segments`.
- `namespaces`, `segment_namespaces`: spellings that were sent and differ from the registered one (S2).

What binds `records` and `events` may rely on the data files being in normal form, whichever format was uploaded:
ingestion leaves no object or map without a value in them, also within arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import EventSelection, ExportPlan
from profile_export.domain.export.selection import IdentitySelection, SegmentSelection
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    EMPTY,
    SEGMENT_MEMBERSHIP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

_SCALARS = {
    ScalarKind.TEXT: dt.string,
    ScalarKind.BOOLEAN: dt.boolean,
    ScalarKind.LONG: dt.int64,
    ScalarKind.DOUBLE: dt.float64,
    ScalarKind.DATE: dt.date,
    ScalarKind.TIMESTAMP: dt.Timestamp(timezone="UTC", scale=6),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf of a source, or an object whole, and its column; typed as in the union schema, since merging needs it."""

    column: str
    path: FieldPath
    type: FieldType


_MERGED_AT_ONCE = 1_000
"""How many leaves one aggregate merges. Of some 4,600, whose states fill more than a block of memory, DuckDB dies."""
EVENT, MEMBERSHIP = "event", "membership"
NUMBER, HELD = "number", "held"


def without_empty(kind: FieldType) -> FieldType | None:
    """Drop objects without any field: no value is possible there and no file can hold them; None if nothing is left."""
    match kind:
        case ObjectType(fields):
            kept = {
                name: member for name, field in fields.items() if (member := without_empty(field)) is not None
            }
            return ObjectType(kept) if kept else None
        case ArrayType(item):
            left = without_empty(item)
            return None if left is None else ArrayType(left)
        case MapSelection(value, keys, others):
            left = without_empty(value)
            chosen = {
                key: member for key, kept in keys.items() if (member := without_empty(kept)) is not None
            }
            return None if left is None else MapSelection(left, chosen, others and without_empty(others))
        case MapType(value):
            left = without_empty(value)
            return None if left is None else MapType(left)
        case _:
            return kind


def with_whole_leaves(kept: ObjectType, schema: ObjectType) -> ObjectType:
    """Return the fields of `kept`, which is a subtree of `schema`, each array and map as the schema has it."""
    members: dict[str, FieldType] = {}
    for name, member in kept.fields.items():
        whole = schema.fields[name]
        if isinstance(member, ObjectType) and isinstance(whole, ObjectType):
            members[name] = with_whole_leaves(member, whole)
        else:
            members[name] = whole
    return ObjectType(members)


def _numbered(name: str, found: Iterable[tuple[FieldPath, FieldType]]) -> tuple[Part, ...]:
    # Dotted paths are ambiguous as soon as a name holds a dot itself.
    return tuple(Part(f"{name}_{index}", *part) for index, part in enumerate(found))


def _leaves(fields: ObjectType, path: FieldPath = ()) -> Iterator[tuple[FieldPath, FieldType]]:
    for name, member in fields.fields.items():
        if isinstance(member, ObjectType):
            yield from _leaves(member, (*path, name))
        else:
            yield (*path, name), member


def _parts(
    fields: ObjectType, schema: ObjectType, path: FieldPath = ()
) -> Iterator[tuple[FieldPath, FieldType]]:
    """List what is there whole of a schema: leaves, and objects that lack no member."""
    for name, member in fields.fields.items():
        whole = schema.fields[name]
        if isinstance(member, ObjectType) and isinstance(whole, ObjectType) and member != whole:
            yield from _parts(member, whole, (*path, name))
        else:
            yield (*path, name), whole


def ibis_type(kind: FieldType) -> dt.DataType:
    """Translate a field type for the expression."""
    match kind:
        case ObjectType(fields):
            return dt.Struct({name: ibis_type(member) for name, member in fields.items()})
        case ArrayType(item):
            return dt.Array(ibis_type(item))
        case MapType(value):
            return dt.Map(dt.string, ibis_type(value))
        case DecimalType(precision, scale):
            return dt.Decimal(precision, scale)
        case Scalar(scalar):
            return _SCALARS[scalar]


RECORDS, EVENTS, OTHERS, BATCHES = "records", "events", "others", "batches"
NAMESPACES, SEGMENT_NAMESPACES, SEGMENTS = "namespaces", "segment_namespaces", "segments"

PROFILE = ("profile_high", "profile_low")
KEY = ("key_high", "key_low")
LINK = {
    "namespace": dt.string,
    "id": dt.string,
    "authenticated_state": dt.string,
    "key_high": dt.int64,
    "key_low": dt.int64,
}
_PLACES_PER_BATCH = 2**32
_ANY = dt.string
"""The type of what the expression only passes on."""
_LONG = dt.Int64(nullable=False)
_TEXT = dt.String(nullable=False)
_IDENTITIES = {
    **dict.fromkeys((*PROFILE, *KEY), _LONG),
    "namespace": _TEXT,
    "identity": _TEXT,
    "links": dt.Array(dt.Struct(LINK)),
}
_COMMON = {
    **_IDENTITIES,
    "dataset": dt.Int32(nullable=False),
    "batch_id": _TEXT,
    "row": _LONG,
    "authenticated_state": dt.string,
}
EVENT_COLUMNS = {"event_id": _TEXT, "event_time": dt.Timestamp(timezone="UTC", scale=6, nullable=False)}


def records_table(shape: Shape) -> ir.Table:
    """Return the unbound table of record rows, with `stand_ins` in place of the parts that they stand for."""
    flags = {"upserts": dt.Boolean(nullable=False)} if shape.upserts else {}
    alike = dict.fromkeys(shape.stand_ins, _ANY)
    kinds = {part.column: ibis_type(part.type) for part in shape.read_memberships}
    for column, maps in shape.maps.items():
        kinds[column] = dt.Array(dt.Struct({NUMBER: dt.int64, HELD: ibis_type(maps[0].type)}))
    return ibis.table({**_COMMON, **flags, **alike, **kinds}, name=RECORDS)


def events_table(shape: Shape) -> ir.Table:
    """Return the unbound table of event rows."""
    columns = {EVENT: _ANY} if shape.event_parts else {}
    if shape.event_membership is not None:
        columns[MEMBERSHIP] = ibis_type(shape.event_membership)
    return ibis.table({**_COMMON, **EVENT_COLUMNS, **columns}, name=EVENTS)


def others_table() -> ir.Table:
    """Return the unbound table of rows that only say who is one person."""
    # Nullable, as the columns are that they are united with, which come out of a join.
    columns = {name: kind.copy(nullable=True) for name, kind in _IDENTITIES.items()}
    return ibis.table(columns, name=OTHERS)


def batches_table() -> ir.Table:
    """Return the unbound table of `bound_batches`."""
    flag = dt.Boolean(nullable=False)
    return ibis.table(
        {"batch_id": _TEXT, "first_place": _LONG, "attached": flag, "newer": flag}, name=BATCHES
    )


def segments_table() -> ir.Table:
    """Return the unbound table of `bound_segments`."""
    instant = dt.Timestamp(timezone="UTC", scale=6)
    columns = {
        "position": dt.Int64(nullable=False),
        "namespace": _TEXT,
        "segment_id": _TEXT,
        "statuses": dt.Array(dt.string),
        "start_time": instant,
        "end_time": instant,
    }
    return ibis.table(columns, name=SEGMENTS)


def spellings_table(name: str) -> ir.Table:
    """Return an unbound table of namespaces as sent and as registered."""
    return ibis.table({"sent": _TEXT, "registered": _TEXT}, name=name)


def bound_batches(plan: ExportPlan) -> list[tuple[str, int, bool, bool]]:
    """Say of each batch its id, the place of its first row, and whether its rows count for the two filters by time.

    These are: whether its events are attached (S18), and whether its records keep their profile (S20). A place is
    one integer, the batch above the row number: comparing two integers is what makes merging fast. Batches are numbered
    anew in the order that the policy gives them, a stronger dataset's later (S8, S10).
    """
    in_order = sorted(plan.batches, key=lambda batch: (batch.strength, batch.number))
    return [
        (
            batch.id,
            rank * _PLACES_PER_BATCH,
            _attached(plan, batch.ingest_time),
            _newer(plan, batch.ingest_time),
        )
        for rank, batch in enumerate(in_order)
    ]


def bound_segments(selection: SegmentSelection) -> list[tuple[Any, ...]]:
    """Say of each segment its position, namespace and id, and what an entry needs to let its profile in (S21)."""
    ends = (selection.start_time, selection.end_time)
    return [
        (position, one.namespace, one.segment_id, [status.value for status in one.statuses], *ends)
        for position, one in enumerate(selection.segments)
    ]


def _newer(plan: ExportPlan, ingest_time: datetime) -> bool:
    return plan.newer_than is None or ingest_time > plan.newer_than


def _attached(plan: ExportPlan, ingest_time: datetime) -> bool:
    window = plan.events
    if window is None:
        return False
    after, up_to = window.from_ingest_time, window.to_ingest_time
    return (after is None or after < ingest_time) and (up_to is None or ingest_time <= up_to)


SAME_RECORD = ("dataset", *KEY)
"""Records alike in these replace each other, or patch the older ones (S9)."""
SAME_EVENT = ("dataset", *KEY, "event_id")
"""Events alike in these are one event (S16)."""
_OF_BATCH = ("first_place", "attached", "newer")
WIDE = dt.Decimal(38, 0, nullable=False)


def beside(rows: ir.Table, found: ir.Table, same: Sequence[str]) -> ir.Table:
    """Add what was found out about those rows that are alike in some columns; null for the others."""
    joined = rows.left_join(found, [rows[name] == found[name] for name in same])
    return joined.select(
        *(rows[name] for name in rows.columns),
        *(found[name] for name in found.columns if name not in same),
    )


class Rows:
    """The rows of one kind of source. Of rows that are the same thing only the one of the latest place is current.

    Records of sources that upsert are all current: they make up one fragment, in the place of its `newest` (S9). For
    that, `place` is made `wide` wherever `upserts` says that there are such sources.

    Every method reads the columns it is asked for and no others, and starts from the bound table again: a shared
    wide intermediate would be materialised.
    """

    def __init__(self, table: ir.Table, same: Sequence[str], *, upserts: bool = False) -> None:
        self._table = table
        self._same = tuple(same)
        self._upserts = upserts
        # Nearly every row is the only one of its kind, so it pays to look at narrow rows first and to take the few
        # that are superseded out of the wide ones, instead of ordering wide rows.
        narrow = self._placed(self._same)
        repeated = narrow.group_by(self._same).agg(latest=narrow.place.max(), rows=narrow.count())
        self._repeated = repeated.filter(repeated.rows > 1).drop("rows")

    def current(self, columns: Sequence[str]) -> ir.Table:
        """Return columns of the current rows, with `place`, `attached`, `newer`, and `newest` if there are upserts."""
        if self._upserts:
            rows = self.every(columns)
            return rows.filter(rows.current)
        rows = self._placed(dict.fromkeys((*columns, *self._same)))
        newer = self._repeated
        same = [rows[name] == newer[name] for name in self._same]
        return rows.anti_join(newer, [*same, rows.place < newer.latest])

    def every(self, columns: Sequence[str]) -> ir.Table:
        """Return columns of all rows, as `current`, and whether the row is `current`."""
        upserts = ("upserts",) if self._upserts else ()
        rows = self._placed(dict.fromkeys((*columns, *self._same, *upserts)))
        found = beside(rows, self._repeated, self._same)
        newest = found.latest.isnull() | (found.place == found.latest)
        if not self._upserts:
            return found.select(*rows.columns, current=newest)
        others = [name for name in rows.columns if name not in {"place", "upserts"}]
        place = wide(ibis.coalesce(found.latest, found.place), found.place)
        return found.select(*others, newest=newest, current=newest | found.upserts, place=place)

    def _placed(self, columns: Sequence[str] | dict[str, None]) -> ir.Table:
        batches = batches_table()
        rows = self._table.select(*columns, "batch_id", "row")
        joined = rows.join(batches, rows.batch_id == batches.batch_id)
        placed = joined.select(
            *(rows[name] for name in columns), rows.row, *(batches[name] for name in _OF_BATCH)
        )
        return placed.select(*columns, "attached", "newer", place=placed.first_place + placed.row)


def wide(place: ir.IntegerValue, below: ir.IntegerValue | None = None) -> ir.Value:
    """Return a place, or a place above another, as one number: comparing two columns takes much longer.

    What is cast to `WIDE` on the way may be any integer of 128 bits; its type is told from users' decimals by not being
    nullable.
    """
    # In two steps, since 2**63 itself is no integer of 64 bits.
    above = place.cast(WIDE) * 2**32 * 2**31
    return above if below is None else above + below


# --- What decides the text of the expression ---


@dataclass(frozen=True)
class Shape:
    """The form of an export, without its data: see `ExportPlan` for the members it shares with it.

    Everything else of a plan is bound, so that equal shapes compile once. `events` has no window therefore.

    `has_others` says whether any source that does not take part has rows, `linked` whether any row has more identities
    than its primary one, `merges` whether a profile may have several fragments, `respelled` and `segments_respelled`
    whether any namespace was sent in another than its
    registered spelling (S2), `upserts` whether any source of records does (S9), `selects_segments` and `selects_newer`
    whether profiles are chosen by segments (S21) and by ingest time (S20). Object types hold no empty objects.
    """

    graph: IdentityGraph
    record_fields: ObjectType
    event_fields: ObjectType
    fields: ObjectType
    identities: IdentitySelection
    events: EventSelection | None
    empty_profiles: bool
    has_records: bool
    has_events: bool
    has_others: bool
    linked: bool
    merges: bool
    respelled: bool
    segments_respelled: bool
    upserts: bool
    selects_segments: bool
    selects_newer: bool

    @cached_property
    def merged_fields(self) -> ObjectType:
        """What comes of merging records: `fields`, each array and map whole."""
        return with_whole_leaves(self.fields, self.record_fields)

    @cached_property
    def record_parts(self) -> tuple[Part, ...]:
        """What is read of record sources, without memberships: the largest parts that `merged_fields` has whole."""
        fields = _without_membership(self.merged_fields)
        return _numbered("part", _parts(fields, self.record_fields))

    @cached_property
    def merged_parts(self) -> tuple[Part, ...]:
        """What the expression gets of records, without memberships: leaves if they are merged, else `record_parts`."""
        if not self.merges:
            return self.record_parts
        return _numbered("leaf", _leaves(_without_membership(self.merged_fields)))

    @cached_property
    def maps(self) -> dict[str, tuple[Part, ...]]:
        """Those of `merged_parts` that are merged per key, by the column of `records` that has those of one type."""
        alike: dict[dt.DataType, list[Part]] = {}
        for part in self.merged_parts if self.merges else ():
            if isinstance(part.type, MapType):
                alike.setdefault(ibis_type(part.type), []).append(part)
        return {f"maps_{number}": tuple(parts) for number, parts in enumerate(alike.values())}

    @cached_property
    def stand_ins(self) -> dict[str, tuple[str, ...]]:
        """Columns that the expression has in place of all others, which are treated alike, and those they stand for."""
        alike = tuple(part.column for part in self.merged_parts)
        # No name begins another.
        return {
            f"any_leaf_{begin}_": alike[begin : begin + _MERGED_AT_ONCE]
            for begin in range(0, len(alike), _MERGED_AT_ONCE)
        }

    @property
    def memberships(self) -> tuple[Part, ...]:
        """The `segmentMembership` of records, if that is exported."""
        return self.read_memberships if SEGMENT_MEMBERSHIP in self.fields.fields else ()

    @property
    def read_memberships(self) -> tuple[Part, ...]:
        """The `segmentMembership` of records, if it is exported or profiles are chosen by it."""
        if SEGMENT_MEMBERSHIP not in self.fields.fields and not self.selects_segments:
            return ()
        kind = self.record_fields.fields[SEGMENT_MEMBERSHIP]
        return (Part(MEMBERSHIP, (SEGMENT_MEMBERSHIP,), kind),)

    @property
    def merged_columns(self) -> list[str]:
        """The columns of `records` that are exported."""
        return [*self.stand_ins, *(part.column for part in self.memberships)]

    @cached_property
    def attached_fields(self) -> ObjectType:
        """What is attached of an event: the fields of `events`, each array and map whole; none if no event is."""
        return EMPTY if self.events is None else with_whole_leaves(self.events.fields, self.event_fields)

    @cached_property
    def event_object(self) -> ObjectType:
        """The type of the column `event`; without any field there is none."""
        return _without_membership(self.attached_fields)

    @cached_property
    def event_parts(self) -> tuple[Part, ...]:
        """The parts of event sources that `event_object` is made of."""
        return _numbered("part", _parts(self.event_object, self.event_fields))

    @property
    def event_membership(self) -> FieldType | None:
        """The type of the column `membership` of events; None if there is none."""
        return self.attached_fields.fields.get(SEGMENT_MEMBERSHIP)


def shape_of(plan: ExportPlan, *, linked: bool) -> Shape:
    """Take from a plan what its expression depends on."""
    having_rows = [source for source in plan.sources if source.rows]
    taking_part = [source for source in having_rows if source.takes_part]
    kinds = Counter(source.kind for source in taking_part)
    upserts = any(source.upserts for source in taking_part)
    several_identities = linked and plan.graph is IdentityGraph.PDG
    events = plan.events and replace(
        plan.events, fields=_filled(plan.events.fields), from_ingest_time=None, to_ingest_time=None
    )
    return Shape(
        graph=plan.graph,
        record_fields=_filled(plan.record_fields),
        event_fields=_filled(plan.event_fields),
        fields=_filled(plan.fields),
        identities=plan.identities,
        events=events,
        empty_profiles=plan.empty_profiles,
        has_records=DatasetKind.RECORD in kinds,
        has_events=DatasetKind.EVENT in kinds,
        has_others=any(not source.takes_part for source in having_rows),
        linked=linked,
        merges=kinds[DatasetKind.RECORD] > 1 or upserts or several_identities,
        respelled=bool(plan.namespaces),
        segments_respelled=bool(plan.segment_namespaces),
        upserts=upserts,
        selects_segments=plan.segments is not None,
        selects_newer=plan.newer_than is not None,
    )


def _without_membership(fields: ObjectType) -> ObjectType:
    return ObjectType({name: kind for name, kind in fields.fields.items() if name != SEGMENT_MEMBERSHIP})


def _filled(fields: ObjectType) -> ObjectType:
    left = without_empty(fields)
    return left if isinstance(left, ObjectType) else EMPTY
