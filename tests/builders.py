"""Builders: rows, the plan that exports them, their files, and an engine's files read back as the reference writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.catalog.batches import (
    AUTHENTICATED_STATE,
    BATCH_ID,
    IDENTITY,
    KEY_HIGH,
    KEY_LOW,
    LINKS,
    NAMESPACE,
    PROFILE_ID,
    ROW,
)
from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, DatasetKind
from profile_export.domain.export.plan import (
    ExportPlan,
    PinnedBatch,
    PinnedFile,
    Snapshot,
    Source,
    SourcePart,
    plan_export,
)
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.export.selection import SegmentSelection
from profile_export.domain.merging.identity import Identity, fold_namespace, identity_key
from profile_export.domain.merging.merge import SourceRow, StatedIdentity
from profile_export.domain.merging.policy import AttributeMerge, IdentityGraph, MergePolicy, each_once
from profile_export.domain.schemas.types import (
    IDENTITY_MAP,
    SEGMENT_MEMBERSHIP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    union_objects,
)

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
_BUILT_IN = {schema.kind: schema.fields for schema in BUILT_IN_SCHEMAS.values()}


def at(minutes: float) -> datetime:
    """An instant so many minutes after noon."""
    return NOON + timedelta(minutes=minutes)


# --- Rows ---


def who(text: str, state: str | None = None) -> StatedIdentity:
    """An identity written as `Email:ann@example.com`."""
    namespace, _, identity = text.partition(":")
    return StatedIdentity(Identity(namespace, identity), state)


def row(
    dataset_id: str,
    primary: str | StatedIdentity,
    value: Mapping[str, Any] | None = None,
    *,
    links: Iterable[str | StatedIdentity] = (),
    batch: str = "b1",
    number: int = 0,
) -> SourceRow:
    """A record or event."""
    first, *others = [
        identity if isinstance(identity, StatedIdentity) else who(identity) for identity in (primary, *links)
    ]
    return SourceRow(dataset_id, batch, number, first, value or {}, tuple(others))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a dataset that were written with the same fields."""

    dataset_id: str
    kind: DatasetKind
    fields: ObjectType
    rows: tuple[SourceRow, ...]
    upserts: bool = False


def records(
    dataset_id: str, fields: Mapping[str, FieldType], *rows: SourceRow, upserts: bool = False
) -> Part:
    """A part of a record dataset; the built-in fields come by themselves."""
    return replace(_part(dataset_id, DatasetKind.RECORD, fields, rows), upserts=upserts)


def events(dataset_id: str, fields: Mapping[str, FieldType], *rows: SourceRow) -> Part:
    """A part of an event dataset; the built-in fields come by themselves."""
    return _part(dataset_id, DatasetKind.EVENT, fields, rows)


def _part(
    dataset_id: str, kind: DatasetKind, fields: Mapping[str, FieldType], rows: tuple[SourceRow, ...]
) -> Part:
    return Part(dataset_id, kind, union_objects(_BUILT_IN[kind], ObjectType(fields)), rows)


# --- Plans ---


def plan_of(
    parts: Sequence[Part],
    *,
    graph: IdentityGraph = IdentityGraph.NONE,
    fields: Sequence[str] = (),
    event_fields: Sequence[str] | None = None,
    window: tuple[datetime | None, datetime | None] = (None, None),
    empty_profiles: bool = False,
    segments: SegmentSelection | None = None,
    segment_batches: tuple[str, ...] = (),
    newer_than: datetime | None = None,
    order: Sequence[str] | None = None,
    excluded: Iterable[Identity] = (),
    lake: Path | None = None,
) -> ExportPlan:
    """The plan of an export of these parts. Batches count in the order of their ids, one a minute from noon on.

    Args:
        fields: Field paths, as in a request.
        event_fields: Those of the event list; None attaches no events.
        window: The event list's ingest times.
        order: The datasets of `dataSetPrecedence`; None orders by time.
        excluded: The identities that link nobody.
        lake: Where to write the files; without it the plan is for the reference alone.
    """
    in_place = sorted((row for part in parts for row in part.rows), key=lambda row: (row.batch_id, row.row))
    datasets = {part.dataset_id: part.kind for part in parts}
    of_batch = {row.batch_id: row.dataset_id for row in in_place}
    named = {SEGMENT_MEMBERSHIP: [row.value.get(SEGMENT_MEMBERSHIP) or () for row in in_place]}
    named[IDENTITY_MAP] = [_namespaces(row) for row in in_place]
    spellings = {field: _registered(found) for field, found in named.items()}
    snapshot = Snapshot(
        datasets=datasets,
        sources=_sources(parts, lake),
        batches=tuple(
            PinnedBatch(batch, index, at(index), of_batch[batch])
            for index, batch in enumerate(sorted(of_batch), start=1)
        ),
        unions={kind: _union_schema(parts, kind) for kind in (DatasetKind.RECORD, DatasetKind.EVENT)},
        namespaces=_respelled(named[IDENTITY_MAP], spellings[IDENTITY_MAP]),
        segment_namespaces=_respelled(named[SEGMENT_MEMBERSHIP], spellings[SEGMENT_MEMBERSHIP]),
        spellings=spellings,
    )
    events = None if event_fields is None else EventList(tuple(event_fields), *window)
    chosen = segments or SegmentSelection(())
    request = ExportRequest(
        "destination",
        tuple(fields),
        policy_id="policy",
        event_list=events,
        empty_profiles=empty_profiles,
        segments=chosen.segments,
        qualified_from=chosen.start_time,
        qualified_to=chosen.end_time,
        from_ingest_time=newer_than,
        segment_per_batch=bool(segment_batches),
    )
    merge = AttributeMerge.TIMESTAMP_ORDERED if order is None else AttributeMerge.DATASET_PRECEDENCE
    policy = MergePolicy(
        "policy", 1, "", graph, merge, order=tuple(order or ()), excluded_identities=each_once(excluded)
    )
    return plan_export(
        BoundRequest(request, policy), snapshot, "" if segment_batches else "export", segment_batches
    )


def rows_of(parts: Iterable[Part]) -> list[SourceRow]:
    """All rows, as the reference takes them."""
    return [row for part in parts for row in part.rows]


def _union_schema(parts: Iterable[Part], kind: DatasetKind) -> ObjectType:
    union = _BUILT_IN[kind]
    for part in parts:
        if part.kind is kind:
            union = union_objects(union, part.fields)
    return union


def _namespaces(row: SourceRow) -> list[str]:
    return [stated.identity.namespace for stated in (row.primary, *row.links)]


def _registered(rows: Iterable[Iterable[str]]) -> dict[str, str]:
    """Register namespaces by place, of one row the smallest spelling (S2)."""
    registered: dict[str, str] = {}
    for namespaces in rows:
        for namespace in sorted(namespaces):
            registered.setdefault(fold_namespace(namespace), namespace)
    return registered


def _respelled(rows: Iterable[Iterable[str]], registered: Mapping[str, str]) -> dict[str, str]:
    sent = {namespace: registered[fold_namespace(namespace)] for row in rows for namespace in row}
    return {namespace: spelled for namespace, spelled in sent.items() if namespace != spelled}


# --- Files in ---


def _sources(parts: Sequence[Part], lake: Path | None) -> tuple[Source, ...]:
    """Source parts of equal fields are one, as the store pins them."""
    found: dict[tuple[str, DatasetKind, bool], list[SourcePart]] = {}
    for index, part in enumerate(parts):
        files = () if lake is None else (_write(part, lake, f"{part.dataset_id}/{index}.parquet"),)
        of_source = found.setdefault((part.dataset_id, part.kind, part.upserts), [])
        of_source.append(SourcePart(part.fields, files))
    return tuple(
        Source(dataset_id, kind, tuple(written), upserts)
        for (dataset_id, kind, upserts), written in found.items()
    )


_LINK = pa.struct(
    [
        ("namespace", pa.string()),
        ("id", pa.string()),
        ("authenticated_state", pa.string()),
        (KEY_HIGH.removeprefix("_"), pa.int64()),
        (KEY_LOW.removeprefix("_"), pa.int64()),
    ]
)
_SYSTEM = (
    (BATCH_ID, pa.string()),
    (ROW, pa.int64()),
    (NAMESPACE, pa.string()),
    (IDENTITY, pa.string()),
    (AUTHENTICATED_STATE, pa.string()),
    (KEY_HIGH, pa.int64()),
    (KEY_LOW, pa.int64()),
    (LINKS, pa.list_(_LINK)),
)
_SCALARS = {
    ScalarKind.TEXT: pa.string(),
    ScalarKind.BOOLEAN: pa.bool_(),
    ScalarKind.LONG: pa.int64(),
    ScalarKind.DOUBLE: pa.float64(),
    ScalarKind.DATE: pa.date32(),
    ScalarKind.TIMESTAMP: pa.timestamp("us", tz="UTC"),
}


def _write(part: Part, lake: Path, name: str) -> PinnedFile:
    """Write a data file as ingestion does: system columns, user fields without `identityMap`, sorted by key."""
    users = {name: kind for name, kind in part.fields.fields.items() if name != IDENTITY_MAP}
    schema = pa.schema([*_SYSTEM, *((name, _arrow_type(kind)) for name, kind in users.items())])
    lines = [
        _system_columns(row) | {name: _arrow_value(row.value.get(name), kind) for name, kind in users.items()}
        for row in part.rows
    ]
    lines.sort(key=lambda line: (line[KEY_HIGH], line[KEY_LOW], line[ROW]))
    path = lake / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), path, row_group_size=4)
    return PinnedFile(name, len(lines), path.stat().st_size)


def _system_columns(row: SourceRow) -> dict[str, Any]:
    high, low = identity_key(row.primary.identity)
    links = [
        dict(zip(_LINK.names, (*_stated(link), *identity_key(link.identity)), strict=True))
        for link in row.links
    ]
    columns = (row.batch_id, row.row, *_stated(row.primary), high, low, links or None)
    return {name: value for (name, _), value in zip(_SYSTEM, columns, strict=True)}


def _stated(stated: StatedIdentity) -> tuple[str, str, str | None]:
    return stated.identity.namespace, stated.identity.id, stated.authenticated_state


def _arrow_type(kind: FieldType) -> Any:
    match kind:
        case ObjectType(fields):
            return pa.struct([(name, _arrow_type(member)) for name, member in fields.items()])
        case ArrayType(item):
            return pa.list_(_arrow_type(item))
        case MapType(value):
            return pa.map_(pa.string(), _arrow_type(value))
        case DecimalType(precision, scale):
            return pa.decimal128(precision, scale)
        case Scalar(scalar):
            return _SCALARS[scalar]


def _arrow_value(value: Any, kind: FieldType) -> Any:
    """Write a plain value as ingestion stores it and Arrow takes it: a map as pairs, without absent entries."""
    if value is None:
        return None
    match kind:
        case ObjectType(fields):
            return {name: _arrow_value(value.get(name), member) for name, member in fields.items()}
        case ArrayType(item):
            return [_arrow_value(entry, item) for entry in value]
        case MapType(member):
            pairs = [(key, _arrow_value(entry, member)) for key, entry in value.items()]
            return [(key, entry) for key, entry in pairs if not _is_absent(entry)] or None
        case _:
            return value


def _is_absent(stored: Any) -> bool:
    return stored is None or (isinstance(stored, dict) and all(map(_is_absent, stored.values())))


# --- Files out ---


def read_export(
    folder: Path, names: Iterable[str], batch_id: str, *, with_ids: bool = False
) -> list[dict[str, Any]]:
    """Read exported files back as the reference writes profiles: no null, no empty object or map, maps as dicts.

    Every row must name the batch that it belongs to, and whose it is, which is kept `with_ids` alone.
    """
    profiles = []
    for name in names:
        table = pq.read_table(folder / name, partitioning=None)
        for line in table.to_pylist():
            assert line.pop(BATCH_ID) == batch_id
            own = line.pop(PROFILE_ID)
            assert re.fullmatch("[0-9a-f]{32}", own)
            pruned = {
                column: _pruned(value, table.schema.field(column).type) for column, value in line.items()
            }
            ids = {PROFILE_ID: own} if with_ids else {}
            profiles.append({column: value for column, value in pruned.items() if value is not None} | ids)
    return profiles


def _pruned(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        found = {member.name: _pruned(value[member.name], member.type) for member in kind}
    elif pa.types.is_map(kind):
        found = {key: _pruned(entry, kind.item_type) for key, entry in value}
        assert len(found) == len(value), f"a map holds a key twice: {value}"
    elif pa.types.is_list(kind):
        return [_pruned(entry, kind.value_type) for entry in value]
    else:
        return value
    return {name: entry for name, entry in found.items() if entry is not None} or None
