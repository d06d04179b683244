"""The tables that every engine binds: unbound here, so that the expression is text and nothing else.

- `records`, `events`: the rows of the sources that belong to the range, in normal form (S13: no entry of a map is null,
  no object or map is without a value), leaves cast to the union schema. `profile_*` is the key of the row's profile,
  `key_*` of its primary identity. Where any source upserts, `upserts` says of each record whether its own does (S9).
- `others`: the rows of sources that do not take part, without leaves (S10).
- `batches`: see `bound_batches`; `segments`: see `bound_segments`.
- `namespaces`, `segment_namespaces`: spellings that were sent and differ from the registered one (S2).

What binds `records` and `events` may rely on this about the data files, whichever format was uploaded: a map has at
least one entry or is null; an entry has a value, and no map or object that is its value is without one. Only objects
that are items of an array or members of an object within an array or map may be there without any value: ingestion
keeps those of Parquet uploads as they came. Objects around leaves do not matter, since only leaves are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.domain.plan import ExportPlan
from profile_export.domain.segments import SegmentSelection
from profile_export.engines.leaves import Leaf, ibis_type

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


def _leaf_types(leaves: Iterable[Leaf]) -> dict[str, dt.DataType]:
    return {leaf.column: ibis_type(leaf.type) for leaf in leaves}


def records_table(leaves: Iterable[Leaf], *, upserts: bool) -> ir.Table:
    """Return the unbound table of record rows; `upserts` where any source does."""
    flags = {"upserts": dt.Boolean(nullable=False)} if upserts else {}
    return ibis.table({**_COMMON, **flags, **_leaf_types(leaves)}, name=RECORDS)


def events_table(leaves: Iterable[Leaf]) -> ir.Table:
    """Return the unbound table of event rows."""
    return ibis.table({**_COMMON, **EVENT_COLUMNS, **_leaf_types(leaves)}, name=EVENTS)


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
