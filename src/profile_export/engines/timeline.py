"""Experience events, attached to their profile as `timeSeriesEvents` (S16 to S18)."""

from __future__ import annotations

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.domain.plan import with_identities
from profile_export.domain.schema import IDENTITY_MAP, SEGMENT_MEMBERSHIP, ArrayType
from profile_export.domain.selection import IdentitySelection
from profile_export.engines.identities import (
    identity_maps,
    link_entries,
    lone_identity_map,
    primary_entries,
)
from profile_export.engines.inputs import EVENT_COLUMNS, NAMESPACES, PROFILE
from profile_export.engines.leaves import ibis_type
from profile_export.engines.maps import MERGED, merged_segments, registered
from profile_export.engines.nested import filled_object, rebuilt, trimmed
from profile_export.engines.rows import Rows
from profile_export.engines.shape import EventShape, Shape

_PLACE = ("place",)
_PRIMARY = ("namespace", "identity", "authenticated_state")


def attached_events(shape: Shape, selection: EventShape, events: Rows) -> ir.Table:
    """Collect the events in the window per profile, in the order of S17.

    Returns:
        The profile's key, the list `series` and its length `attached`; no row for a profile without such an event.
    """
    leaves = shape.event_leaves
    columns = [*PROFILE, "dataset", *EVENT_COLUMNS, *(leaf.column for leaf in leaves)]
    own = selection.identities
    shows = own.type is not None
    rows = events.current([*columns, *_PRIMARY] if shows else columns)
    rows = rows.filter(rows.attached)
    if shows and shape.respelled:
        rows = registered(rows, "namespace", NAMESPACES)
    if shows and shape.linked:
        rows = _with_own_identities(rows, shape, own, events)
    values = {leaf.path: trimmed(rows[leaf.column], leaf.type, leaf.kept) for leaf in leaves}
    memberships = [leaf.column for leaf in leaves if leaf.path == (SEGMENT_MEMBERSHIP,)]
    if memberships and shape.segments_respelled:
        rows = _with_registered_segments(rows, memberships[0], events)
        values = {leaf.path: trimmed(rows[leaf.column], leaf.type, leaf.kept) for leaf in leaves}
    members: dict[str, ir.Value] = {}
    if shows:
        lone = lone_identity_map(rows.namespace, rows.identity, rows.authenticated_state, own)
        members[IDENTITY_MAP] = ibis.coalesce(rows.identity_map, lone) if shape.linked else lone
    members |= rebuilt(selection.fields, values)
    entry = {"time": rows.event_time, "id": rows.event_id, "dataset": rows.dataset, "place": rows.place}
    # Sorting columns come first, and of two events one differs: whatever is behind them is never compared.
    sortable = ibis.struct(entry | {"event": filled_object(members)})
    collected = rows.group_by(list(PROFILE)).agg(series=sortable.collect().sort(), attached=rows.count())
    return collected.mutate(series=collected.series.map(lambda item: item.event))


def series_type(selection: EventShape) -> dt.DataType:
    """Return the type of `timeSeriesEvents`."""
    return ibis_type(ArrayType(with_identities(selection.identities, selection.fields)))


def _with_own_identities(rows: ir.Table, shape: Shape, kept: IdentitySelection, events: Rows) -> ir.Table:
    linked = events.every(["links", *_PRIMARY, "key_high", "key_low"])
    linked = linked.filter(linked.links.notnull(), linked.current, linked.attached)
    entries = ibis.union(
        primary_entries(linked, _PLACE, of_record=False), link_entries(linked, _PLACE, of_record=False)
    )
    maps = identity_maps(entries, _PLACE, kept, respelled=shape.respelled)
    joined = rows.left_join(maps, rows.place == maps.place)
    return joined.select(*(rows[name] for name in rows.columns), maps.identity_map)


def _with_registered_segments(rows: ir.Table, column: str, events: Rows) -> ir.Table:
    held = events.current([column])
    held = held.filter(held.attached, held[column].notnull())
    merged = merged_segments(held, _PLACE, column, respelled=True)
    joined = rows.left_join(merged, rows.place == merged.place)
    others = [rows[name] for name in rows.columns if name != column]
    return joined.select(*others, merged[MERGED].name(column))
