"""What a profile carries of others: its `identityMap` (S6, S7), and its events as `timeSeriesEvents` (S16 to S18)."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.domain.export.plan import with_identities
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.schemas.types import (
    IDENTITY_MAP,
    IDENTITY_MEMBERS,
    SEGMENT_MEMBERSHIP,
    ArrayType,
    identity_item_type,
    identity_map_type,
)
from profile_export.engines.expression.nested import (
    MERGED,
    filled_object,
    map_of,
    merged_segments,
    rebuilt,
    registered,
    trimmed,
)
from profile_export.engines.expression.shape import EventShape, Shape
from profile_export.engines.expression.tables import EVENT_COLUMNS, KEY, NAMESPACES, PROFILE, Rows, ibis_type


def primary_entries(rows: ir.Table, owner: Sequence[str], *, of_record: bool) -> ir.Table:
    """Return each row's primary identity as an entry of its owner's."""
    return rows.select(
        *dict.fromkeys((*owner, *KEY, "namespace", "place")),
        id=rows.identity,
        state=_state(rows, rows.authenticated_state),
        is_primary=ibis.literal(value=True),
        of_record=ibis.literal(of_record),
    )


def link_entries(rows: ir.Table, owner: Sequence[str], *, of_record: bool) -> ir.Table:
    """Return each row's other identities as entries of its owner's; the rows must have some."""
    one = rows.select(*dict.fromkeys((*owner, "place", "current")), link=rows.links.unnest())
    return one.select(
        *dict.fromkeys((*owner, "place")),
        key_high=one.link.key_high,
        key_low=one.link.key_low,
        namespace=one.link.namespace,
        id=one.link.id,
        state=_state(one, one.link.authenticated_state),
        is_primary=ibis.literal(value=False),
        of_record=ibis.literal(of_record),
    )


def _state(rows: ir.Table, state: ir.Value) -> ir.Value:
    """Rows that no longer count still say who belongs together (S4), but nothing else."""
    return rows.current.ifelse(state, ibis.null("string"))


def other_entries(rows: ir.Table) -> ir.Table:
    """Return the identities on rows of sources that do not take part, as entries of their profiles (S4, S6)."""
    none, no_place = ibis.null("string"), ibis.literal(0, "int64")
    flags = {"state": none, "is_primary": ibis.literal(value=False), "of_record": ibis.literal(value=False)}
    own = rows.select(*PROFILE, *KEY, "namespace", place=no_place, id=rows.identity, **flags)
    linking = rows.filter(rows.links.notnull())
    one = linking.select(*PROFILE, link=linking.links.unnest())
    linked = one.select(
        *PROFILE,
        key_high=one.link.key_high,
        key_low=one.link.key_low,
        namespace=one.link.namespace,
        place=no_place,
        id=one.link.id,
        **flags,
    )
    return ibis.union(own, linked)


def identity_maps(
    entries: ir.Table, owner: Sequence[str], kept: IdentitySelection, *, respelled: bool
) -> ir.Table:
    """Bring entries together per owner, every identity once.

    Returns:
        The owner's columns, how many `identities` it has, their `namespaces`, and the `identity_map` if any is kept.
    """
    state, of_record = entries.state, entries.of_record
    known = entries.group_by([*owner, *KEY]).agg(
        namespace=entries.namespace.max(),
        id=entries.id.max(),
        primary=entries.is_primary.any(),
        record_state=state.argmax(entries.place, where=state.notnull() & of_record),
        event_state=state.argmax(entries.place, where=state.notnull() & ~of_record),
    )
    if respelled:
        known = registered(known, "namespace", NAMESPACES)
    item = ibis.struct(
        {
            "id": known.id,
            "authenticatedState": ibis.coalesce(known.record_state, known.event_state),
            "primary": known.primary.nullif(ibis.literal(value=False)),
        }
    )
    spaces = known.group_by([*owner, "namespace"]).agg(items=item.collect().sort(), size=known.count())
    pair = ibis.struct({"k": spaces.namespace, "v": spaces["items"]})
    people = spaces.group_by(list(owner)).agg(identities=spaces["size"].sum(), spaces=pair.collect().sort())
    columns = {"namespaces": people.spaces.map(lambda space: space.k)}
    members = kept.any_members
    if members:
        cut_down = people.spaces.map(
            lambda space: ibis.struct({"k": space.k, "v": space.v.map(lambda item: _kept(item, members))})
        )
        columns["identity_map"] = _chosen(map_of(cut_down, "k", "v"), kept)
    return people.select(*owner, "identities", **columns)


def lone_identity_map(
    namespace: ir.Value, identity: ir.Value, state: ir.Value, kept: IdentitySelection
) -> ir.Value:
    """Return the `identityMap` of whoever has one identity only."""
    whole = {"id": identity, "authenticatedState": state, "primary": ibis.literal(value=True)}
    item = filled_object({member: whole[member] for member in kept.any_members})
    return _chosen(ibis.map(ibis.array([namespace]), ibis.array([ibis.array([item])])), kept)


def _chosen(whole: ir.Value, kept: IdentitySelection) -> ir.Value:
    """Keep of the map what is chosen by namespace."""
    if kept.type is None or not kept.namespaces:
        return whole
    return trimmed(whole, identity_map_type(kept.any_members), kept.type)


def _kept(item: ir.StructValue, members: Sequence[str]) -> ir.Value:
    if tuple(members) == IDENTITY_MEMBERS:
        return item
    types = identity_item_type(members).fields
    return filled_object({member: item[member].cast(ibis_type(kind)) for member, kind in types.items()})


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
