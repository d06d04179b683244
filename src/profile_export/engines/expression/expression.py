"""A plan's shape as ONE expression over unbound tables.

Ibis is a compiler here and nothing else: every engine runs the text that it makes for its dialect.
Only constructs that every engine has: nulls are filtered out before `argmax`, its order is one integer that is never
null, null order is always said, and whatever must be ordered is collected first and sorted then.
"""

from __future__ import annotations

from functools import reduce

import ibis
import ibis.expr.types as ir

from profile_export.domain.merging.identity import MAX_IDENTITIES
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import IDENTITY_MAP, SEGMENT_MEMBERSHIP, TIME_SERIES_EVENTS, MapType
from profile_export.engines.expression.attached import (
    attached_events,
    identity_maps,
    link_entries,
    lone_identity_map,
    other_entries,
    primary_entries,
    series_type,
)
from profile_export.engines.expression.nested import (
    MERGED,
    admissions,
    held_by_several,
    merged_maps,
    merged_segments,
    rebuilt,
    registered,
    trimmed,
)
from profile_export.engines.expression.shape import Shape
from profile_export.engines.expression.tables import (
    KEY,
    NAMESPACES,
    PROFILE,
    SAME_EVENT,
    SAME_RECORD,
    Leaf,
    Rows,
    events_table,
    ibis_type,
    others_table,
    records_table,
    wide,
)

_PRIMARY = ("namespace", "identity", "authenticated_state")


def output_columns(shape: Shape) -> dict[str, str]:
    """Name the columns of the export, in order, and the expression's column that holds each.

    They differ, since users may name a field like one of our own columns.
    """
    names = [IDENTITY_MAP] if shape.identities.type else []
    names += shape.fields.fields
    names += [] if shape.events is None else [TIME_SERIES_EVENTS]
    return {name: f"out_{index}" for index, name in enumerate(names)}


def export_expression(shape: Shape) -> ir.Table:
    """Return all profiles of a range, those that are left out among them.

    The shape must have records, events or others. Columns besides `output_columns`: the profile's key, how many current
    `fragments`, `events`, `attached` events and `identities` it has, its `namespace` (the only one) or `namespaces`
    (the other is null), the reason for which it is `left_out` (S22; null if it is not), and of the segments that were
    asked for the positions of those it has an entry for (`members`) and is in (`admitted`).
    """
    records = _records(shape) if shape.has_records else None
    events = Rows(events_table(shape.event_leaves), SAME_EVENT) if shape.has_events else None
    parts = []
    if records is not None:
        parts.append(_merged_records(shape, records))
    if events is not None:
        parts.append(_counted_events(shape, events))
    if shape.has_others:
        parts.append(_unlisted())
    profiles = reduce(_either, parts)
    if shape.respelled:
        profiles = registered(profiles, "namespace", NAMESPACES)
    if records is not None:
        profiles = _with_merged_maps(shape, profiles, records)
    if records is not None and shape.selects_segments:
        profiles = _beside(profiles, _admissions(shape, records))
    if events is not None and shape.events is not None:
        profiles = _beside(profiles, attached_events(shape, shape.events, events))
    if shape.linked:
        profiles = _beside(profiles, _identities(shape, records, events))
    return _output(shape, profiles)


def _records(shape: Shape) -> Rows:
    table = records_table(shape.bound_record_leaves, upserts=shape.upserts)
    return Rows(table, SAME_RECORD, upserts=shape.upserts)


def _merged_records(shape: Shape, records: Rows) -> ir.Table:
    """Merge fragments leaf by leaf: each from the latest place that has it (S10, S12)."""
    leaves = [leaf.column for leaf in shape.record_leaves]
    rows = records.current([*PROFILE, *_PRIMARY, *leaves])
    state = rows.authenticated_state
    return rows.group_by(list(PROFILE)).agg(
        fragments=rows.count(where=rows.newest if shape.upserts else None),
        namespace=rows.namespace.arbitrary(),
        identity=rows.identity.arbitrary(),
        state=state.argmax(rows.place, where=state.notnull()),
        **_newer(shape, rows),
        **{leaf: rows[leaf].argmax(rows.place, where=rows[leaf].notnull()) for leaf in leaves},
    )


def _counted_events(shape: Shape, events: Rows) -> ir.Table:
    rows = events.current([*PROFILE, *_PRIMARY])
    state = rows.authenticated_state
    return rows.group_by(list(PROFILE)).agg(
        events=rows.count(),
        namespace=rows.namespace.arbitrary(),
        identity=rows.identity.arbitrary(),
        state=state.argmax(rows.place, where=state.notnull()),
        **_newer(shape, rows),
    )


def _newer(shape: Shape, rows: ir.Table) -> dict[str, ir.Value]:
    return {"newer": rows.newer.any()} if shape.selects_newer else {}


def _unlisted() -> ir.Table:
    """Find the profiles that sources know which do not take part (S10); most have something else, too."""
    rows = others_table()
    return rows.group_by(list(PROFILE)).agg(
        namespace=rows.namespace.arbitrary(), identity=rows.identity.arbitrary()
    )


def _either(merged: ir.Table, happened: ir.Table) -> ir.Table:
    """Bring together profiles that are known from either or both; records say more than events (S6)."""
    shared = [name for name in merged.columns if name in happened.columns]
    other = happened.rename({f"event_{name}": name for name in shared})
    joined = merged.outer_join(other, [merged[name] == other[f"event_{name}"] for name in PROFILE])
    found = joined.select(*(table[name] for table in (merged, other) for name in table.columns))
    either = {name: ibis.coalesce(found[name], found[f"event_{name}"]) for name in shared}
    return found.select(
        **either, **{name: found[name] for name in (*merged.columns, *happened.columns) if name not in shared}
    )


def _beside(profiles: ir.Table, found: ir.Table) -> ir.Table:
    """Add what was found out about some profiles; null for the others."""
    joined = profiles.left_join(found, [profiles[name] == found[name] for name in PROFILE])
    return joined.select(
        *(profiles[name] for name in profiles.columns),
        *(found[name] for name in found.columns if name not in PROFILE),
    )


def _with_merged_maps(shape: Shape, profiles: ir.Table, records: Rows) -> ir.Table:
    for leaf in shape.record_leaves:
        if isinstance(leaf.type, MapType):
            merged = _merged_map(shape, leaf, records).rename({f"{MERGED}_{leaf.column}": MERGED})
            profiles = _beside(profiles, merged)
    return profiles


def _merged_map(shape: Shape, leaf: Leaf, records: Rows) -> ir.Table:
    rows = records.current([*PROFILE, leaf.column])
    rows = rows.filter(rows[leaf.column].notnull())
    if leaf.path != (SEGMENT_MEMBERSHIP,):
        return merged_maps(held_by_several(rows, PROFILE), PROFILE, leaf.column)
    if not shape.segments_respelled:
        rows = held_by_several(rows, PROFILE)
    return merged_segments(rows, PROFILE, leaf.column, respelled=shape.segments_respelled)


def _admissions(shape: Shape, records: Rows) -> ir.Table:
    column = shape.membership.column
    rows = records.current([*PROFILE, column])
    rows = rows.filter(rows[column].notnull())
    return admissions(rows, PROFILE, column, respelled=shape.segments_respelled)


def _identities(shape: Shape, records: Rows | None, events: Rows | None) -> ir.Table:
    """Find all identities of the profiles that have more than one."""
    sides = [(rows, of_record) for rows, of_record in ((records, True), (events, False)) if rows is not None]
    links, primaries, linked = [], [], []
    for rows, of_record in sides:
        having = rows.every([*PROFILE, "links"])
        having = having.filter(having.links.notnull())
        named = rows.every([*PROFILE, *KEY, *_PRIMARY])
        if shape.graph is IdentityGraph.NONE:
            having, named = having.filter(having.current), named.filter(named.current)
        if shape.upserts and not of_record:
            having, named = (found.mutate(place=wide(found.place)) for found in (having, named))
        linked.append(having.select(*PROFILE))
        links.append(link_entries(having, PROFILE, of_record=of_record))
        primaries.append((named, of_record))
    others = others_table() if shape.has_others and shape.graph is IdentityGraph.PDG else None
    if others is not None:
        linked.append(others.filter(others.links.notnull()).select(*PROFILE))
    several = ibis.union(*linked) if len(linked) > 1 else linked[0]
    entries = [
        primary_entries(named.semi_join(several, list(PROFILE)), PROFILE, of_record=of_record)
        for named, of_record in primaries
    ]
    if others is not None:
        unlisted = other_entries(others.semi_join(several, list(PROFILE)))
        if shape.upserts:
            unlisted = unlisted.mutate(place=wide(unlisted.place))
        entries.append(unlisted)
    return identity_maps(ibis.union(*entries, *links), PROFILE, shape.identities, respelled=shape.respelled)


def _output(shape: Shape, profiles: ir.Table) -> ir.Table:
    def column(name: str, otherwise: ir.Value) -> ir.Value:
        return ibis.coalesce(profiles[name], otherwise) if name in profiles.columns else otherwise

    none = ibis.literal(0, "int64")
    fragments, events = column("fragments", none), column("events", none)
    identities = column("identities", ibis.literal(1, "int64"))
    positions = ibis.null("array<int64>")
    admitted = column("admitted", positions)
    reasons = {
        "not_listed": (fragments == none) & (events == none),
        "too_many_identities": identities > MAX_IDENTITIES,
        "events_only": (fragments == none) & ibis.literal(not shape.empty_profiles),
    }
    if shape.selects_newer:
        reasons["not_newer"] = ~column("newer", ibis.literal(value=False))
    if shape.selects_segments:
        reasons["not_in_segments"] = ibis.coalesce(admitted.length(), none) == none
    no_names = ibis.null("array<string>")
    namespaces = profiles.namespaces if shape.linked else no_names
    columns = {
        "fragments": fragments,
        "events": events,
        "attached": column("attached", none),
        "identities": identities,
        "namespace": namespaces.isnull().ifelse(profiles.namespace, ibis.null("string")),
        "namespaces": namespaces,
        "left_out": ibis.cases(*((holds, ibis.literal(name)) for name, holds in reasons.items())),
        "members": column("members", positions),
        "admitted": admitted,
    }
    values = _values(shape, profiles)
    named = {column: values[name] for name, column in output_columns(shape).items()}
    return profiles.select(*PROFILE, **columns, **named)


def _values(shape: Shape, profiles: ir.Table) -> dict[str, ir.Value]:
    members: dict[str, ir.Value] = {}
    if shape.identities.type:
        lone = lone_identity_map(profiles.namespace, profiles.identity, _state(profiles), shape.identities)
        members[IDENTITY_MAP] = ibis.coalesce(profiles.identity_map, lone) if shape.linked else lone
    leaves = {leaf.path: _leaf(profiles, leaf) for leaf in shape.record_leaves}
    members |= rebuilt(shape.fields, leaves)
    if shape.events is not None:
        members[TIME_SERIES_EVENTS] = (
            profiles.series if shape.has_events else ibis.null(series_type(shape.events))
        )
    return members


def _state(profiles: ir.Table) -> ir.Value:
    return profiles.state if "state" in profiles.columns else ibis.null("string")


def _leaf(profiles: ir.Table, leaf: Leaf) -> ir.Value:
    merged = f"{MERGED}_{leaf.column}"
    if leaf.column not in profiles.columns:
        value: ir.Value = ibis.null(ibis_type(leaf.type))
    elif merged in profiles.columns:
        value = ibis.coalesce(profiles[merged], profiles[leaf.column])
    else:
        value = profiles[leaf.column]
    return trimmed(value, leaf.type, leaf.kept)
