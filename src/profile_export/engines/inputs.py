"""The tables that every engine binds: unbound here, so that the expression is text and nothing else.

- `records`, `events`: the rows of the sources that belong to the range, in normal form (S13: no entry of a map is null,
  no object or map is without a value), leaves cast to the union schema. `profile_*` is the key of the row's profile,
  `key_*` of its primary identity. Where any source upserts, `upserts` says of each record whether its own does (S9).
- `batches`: see `bound_batches`.
- `namespaces`, `segment_namespaces`: spellings that were sent and differ from the registered one (S2).

What binds `records` and `events` may rely on this about the data files, whichever format was uploaded: a map has at
least one entry or is null; an entry has a value, and no map or object that is its value is without one. Only objects
that are items of an array or members of an object within an array or map may be there without any value: ingestion
keeps those of Parquet uploads as they came. Objects around leaves do not matter, since only leaves are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.domain.plan import ExportPlan
from profile_export.engines.leaves import Leaf, ibis_type

RECORDS, EVENTS, BATCHES = "records", "events", "batches"
NAMESPACES, SEGMENT_NAMESPACES = "namespaces", "segment_namespaces"

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
_COMMON = {
    **dict.fromkeys((*PROFILE, *KEY), _LONG),
    "dataset": dt.Int32(nullable=False),
    "batch_id": _TEXT,
    "row": _LONG,
    "namespace": _TEXT,
    "identity": _TEXT,
    "authenticated_state": dt.string,
    "links": dt.Array(dt.Struct(LINK)),
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


def batches_table() -> ir.Table:
    """Return the unbound table of `bound_batches`."""
    return ibis.table(
        {"batch_id": _TEXT, "first_place": _LONG, "attached": dt.Boolean(nullable=False)}, name=BATCHES
    )


def spellings_table(name: str) -> ir.Table:
    """Return an unbound table of namespaces as sent and as registered."""
    return ibis.table({"sent": _TEXT, "registered": _TEXT}, name=name)


def bound_batches(plan: ExportPlan) -> list[tuple[str, int, bool]]:
    """Say of each batch its id, the place of its first row (S8) and whether its events lie in the window (S18).

    A place is one integer, the batch number above the row number: comparing two integers is what makes merging fast.
    """
    return [
        (batch.id, batch.number * _PLACES_PER_BATCH, _attached(plan, batch.ingest_time))
        for batch in plan.batches
    ]


def _attached(plan: ExportPlan, ingest_time: datetime) -> bool:
    window = plan.events
    if window is None:
        return False
    after, up_to = window.from_ingest_time, window.to_ingest_time
    return (after is None or after < ingest_time) and (up_to is None or ingest_time <= up_to)
