"""A plan's shape as ONE expression over unbound tables.

It says which rows count and who wins. What it merges are leaves: engines take values apart that they read, and put
together what comes of it.

Ibis is a compiler here and nothing else: every engine runs the text that it makes for its dialect.
Only constructs that every engine has: nulls are filtered out before `argmax`, its order is one integer that is never
null, null order is always said, and whatever must be ordered is collected first and sorted then.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import ibis
import ibis.expr.types as ir
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.base import SQLGlotCompiler

from profile_export.domain.export.plan import EventSelection
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.merging.identity import MAX_IDENTITIES
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    IDENTITY_MEMBERS,
    identity_item_type,
)
from profile_export.engines.expression.nested import (
    MERGED,
    admissions,
    filled_object,
    held_by_several,
    map_of,
    merged_maps,
    merged_segments,
    registered,
)
from profile_export.engines.expression.tables import (
    EVENT,
    EVENT_COLUMNS,
    HELD,
    KEY,
    MEMBERSHIP,
    NAMESPACES,
    NUMBER,
    PROFILE,
    SAME_EVENT,
    SAME_RECORD,
    Rows,
    Shape,
    beside,
    events_table,
    ibis_type,
    others_table,
    records_table,
    wide,
)

_PRIMARY = ("namespace", "identity", "authenticated_state")
_PLACE = ("place",)
ABOUT_PROFILE = (
    *PROFILE,
    "fragments",
    "events",
    "attached",
    "identities",
    "namespace",
    "namespaces",
    "left_out",
    "members",
    "admitted",
)
IDENTITIES, SERIES = "identity_map", "series"


def merged_column(column: str) -> str:
    """Name what comes of merging a column per key: null where nothing had to be merged."""
    return f"{MERGED}_{column}"


def export_expression(shape: Shape) -> ir.Table:
    """Return all profiles of a range, those that are left out among them.

    The shape must have records, events or others. The columns are `ABOUT_PROFILE`: the profile's key, how many current
    `fragments`, `events`, `attached` events and `identities` it has, its `namespace` (the only one) or `namespaces`
    (the other is null), the reason for which it is `left_out` (S22; null if it is not), and of the segments that were
    asked for the positions of those it has an entry for (`members`) and is in (`admitted`). Then what is exported of
    it, where the shape has it: its `identity_map` with the members that are kept anywhere; with records its parts
    under their columns or stand-ins, each map as its latest row has it, and in the `merged_column` of `maps` those that
    several rows have, merged, as `records` has them; with attached events their `series`, each an object
    with the `event`, its `membership` and its `identity_map`, in the order of S17.
    """
    records = _records(shape) if shape.has_records else None
    events = Rows(events_table(shape), SAME_EVENT) if shape.has_events else None
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
        profiles = beside(profiles, _admissions(shape, records), PROFILE)
    if events is not None and shape.events is not None:
        profiles = beside(profiles, _attached_events(shape, shape.events, events), PROFILE)
    if shape.linked:
        profiles = beside(profiles, _identities(shape, records, events), PROFILE)
    return _output(shape, profiles)


def text_of(shape: Shape, compiler: SQLGlotCompiler) -> str:
    """Return `export_expression` in the dialect of a compiler, with the columns that `stand_ins` stand for.

    Ibis takes milliseconds for a column on its way through all tables, and a record may have thousands.
    """
    query = compiler.to_sqlglot(export_expression(shape).unbind())
    for select in query.find_all(sge.Select):
        for item in select.expressions:
            for stand_in in {column.name for column in item.find_all(sge.Column)} & shape.stand_ins.keys():
                one = item.sql(compiler.dialect)
                every = ", ".join(one.replace(stand_in, column) for column in shape.stand_ins[stand_in])
                item.replace(sge.Var(this=every))
    text: str = query.sql(compiler.dialect)
    return text


def _records(shape: Shape) -> Rows:
    return Rows(records_table(shape), SAME_RECORD, upserts=shape.upserts)


def _merged_records(shape: Shape, records: Rows) -> ir.Table:
    """Merge fragments leaf by leaf: each from the latest place that has it (S10, S12)."""
    if not shape.merges:
        leaves = shape.merged_columns
        rows = records.current([*PROFILE, *_PRIMARY, *leaves])
        newer = ["newer"] if shape.selects_newer else []
        # Not a literal: Ibis would carry it past the join with those who have events only.
        one = rows.profile_high.notnull().cast("int64")
        return rows.select(
            *PROFILE, *leaves, *newer, *_PRIMARY[:2], fragments=one, state=rows.authenticated_state
        )
    later = [*shape.stand_ins][1:]
    leaves = [column for column in shape.merged_columns if column not in later]
    rows = records.current([*PROFILE, *_PRIMARY, *leaves])
    merged = rows.group_by(list(PROFILE)).agg(
        fragments=rows.count(where=rows.newest if shape.upserts else None),
        **_told(shape, rows),
        **{leaf: _strongest(rows, leaf) for leaf in leaves},
    )
    for leaf in later:
        rows = records.current([*PROFILE, leaf])
        merged = beside(merged, rows.group_by(list(PROFILE)).agg(**{leaf: _strongest(rows, leaf)}), PROFILE)
    return merged


def _strongest(rows: ir.Table, leaf: str) -> ir.Value:
    return rows[leaf].argmax(rows.place, where=rows[leaf].notnull())


def _counted_events(shape: Shape, events: Rows) -> ir.Table:
    rows = events.current([*PROFILE, *_PRIMARY])
    return rows.group_by(list(PROFILE)).agg(events=rows.count(), **_told(shape, rows))


def _told(shape: Shape, rows: ir.Table) -> dict[str, ir.Value]:
    """Say what records and events tell alike of a profile: its primary identity, and whether a row is new enough."""
    state = rows.authenticated_state
    newer = {"newer": rows.newer.any()} if shape.selects_newer else {}
    return {
        "namespace": rows.namespace.arbitrary(),
        "identity": rows.identity.arbitrary(),
        "state": state.argmax(rows.place, where=state.notnull()),
        **newer,
    }


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


def _with_merged_maps(shape: Shape, profiles: ir.Table, records: Rows) -> ir.Table:
    merged = {column: _merged_maps(column, records) for column in shape.maps}
    if shape.memberships and (shape.merges or shape.segments_respelled):
        merged[MEMBERSHIP] = _merged_memberships(shape, records)
    for column, table in merged.items():
        profiles = beside(profiles, table.rename({merged_column(column): MERGED}), PROFILE)
    return profiles


def _merged_maps(column: str, records: Rows) -> ir.Table:
    """Merge the maps of a type that a profile has several times, each with those of its number."""
    rows = _having(column, records)
    each = rows.select(*PROFILE, "place", one=rows[column].unnest())
    each = each.select(*PROFILE, "place", **{NUMBER: each.one[NUMBER], HELD: each.one[HELD]})
    owner = (*PROFILE, NUMBER)
    merged = merged_maps(held_by_several(each, owner), owner, HELD)
    one = ibis.struct({NUMBER: merged[NUMBER], HELD: merged[MERGED]})
    return merged.group_by(list(PROFILE)).agg(**{MERGED: one.collect()})


def _merged_memberships(shape: Shape, records: Rows) -> ir.Table:
    rows = _having(MEMBERSHIP, records)
    if not shape.segments_respelled:
        rows = held_by_several(rows, PROFILE)
    return merged_segments(rows, PROFILE, MEMBERSHIP, respelled=shape.segments_respelled)


def _admissions(shape: Shape, records: Rows) -> ir.Table:
    return admissions(_having(MEMBERSHIP, records), PROFILE, MEMBERSHIP, respelled=shape.segments_respelled)


def _having(column: str, records: Rows) -> ir.Table:
    rows = records.current([*PROFILE, column])
    return rows.filter(rows[column].notnull())


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
        links.append(_link_entries(having, PROFILE, of_record=of_record))
        primaries.append((named, of_record))
    others = others_table() if shape.has_others and shape.graph is IdentityGraph.PDG else None
    if others is not None:
        linked.append(others.filter(others.links.notnull()).select(*PROFILE))
    several = ibis.union(*linked) if len(linked) > 1 else linked[0]
    entries = [
        _primary_entries(named.semi_join(several, list(PROFILE)), PROFILE, of_record=of_record)
        for named, of_record in primaries
    ]
    if others is not None:
        unlisted = _other_entries(others.semi_join(several, list(PROFILE)))
        if shape.upserts:
            unlisted = unlisted.mutate(place=wide(unlisted.place))
        entries.append(unlisted)
    return _identity_maps(ibis.union(*entries, *links), PROFILE, shape.identities, respelled=shape.respelled)


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
    about = {
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
    return profiles.select(*PROFILE, **about, **_values(shape, profiles))


def _values(shape: Shape, profiles: ir.Table) -> dict[str, ir.Value]:
    values: dict[str, ir.Value] = {}
    if shape.identities.type:
        state = profiles.state if "state" in profiles.columns else ibis.null("string")
        values[IDENTITIES] = _identity_map(profiles, state, shape.identities, linked=shape.linked)
    for column in shape.merged_columns if shape.has_records else ():
        merged = merged_column(column)
        value = profiles[column]
        values[column] = ibis.coalesce(profiles[merged], value) if merged in profiles.columns else value
    for column in map(merged_column, shape.maps if shape.has_records else ()):
        values[column] = profiles[column]
    if shape.events is not None and shape.has_events:
        values[SERIES] = profiles.series
    return values


# --- Identities ---


def _primary_entries(rows: ir.Table, owner: Sequence[str], *, of_record: bool) -> ir.Table:
    """Return each row's primary identity as an entry of its owner's."""
    return rows.select(
        *dict.fromkeys((*owner, *KEY, "namespace", "place")),
        id=rows.identity,
        state=_current_state(rows, rows.authenticated_state),
        is_primary=ibis.literal(value=True),
        of_record=ibis.literal(of_record),
    )


def _link_entries(rows: ir.Table, owner: Sequence[str], *, of_record: bool) -> ir.Table:
    """Return each row's other identities as entries of its owner's; the rows must have some."""
    one = rows.select(*dict.fromkeys((*owner, "place", "current")), link=rows.links.unnest())
    return one.select(
        *dict.fromkeys((*owner, "place")),
        key_high=one.link.key_high,
        key_low=one.link.key_low,
        namespace=one.link.namespace,
        id=one.link.id,
        state=_current_state(one, one.link.authenticated_state),
        is_primary=ibis.literal(value=False),
        of_record=ibis.literal(of_record),
    )


def _current_state(rows: ir.Table, state: ir.Value) -> ir.Value:
    """Rows that no longer count still say who belongs together (S4), but nothing else."""
    return rows.current.ifelse(state, ibis.null("string"))


def _other_entries(rows: ir.Table) -> ir.Table:
    """Return the identities on rows of sources that do not take part, as entries of their profiles (S4, S6)."""
    none, no_place = ibis.null("string"), ibis.literal(0, "int64")
    stated = rows.mutate(place=no_place, current=ibis.literal(value=False), authenticated_state=none)
    own = _primary_entries(stated, PROFILE, of_record=False).mutate(is_primary=ibis.literal(value=False))
    return ibis.union(own, _link_entries(stated.filter(stated.links.notnull()), PROFILE, of_record=False))


def _identity_maps(
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
        columns[IDENTITIES] = map_of(cut_down, "k", "v")
    return people.select(*owner, "identities", **columns)


def _identity_map(rows: ir.Table, state: ir.Value, kept: IdentitySelection, *, linked: bool) -> ir.Value:
    """Return the `identityMap` of each row's owner: made here for whoever has one identity only."""
    whole = {"id": rows.identity, "authenticatedState": state, "primary": ibis.literal(value=True)}
    item = filled_object({member: whole[member] for member in kept.any_members})
    lone = ibis.map(ibis.array([rows.namespace]), ibis.array([ibis.array([item])]))
    return ibis.coalesce(rows.identity_map, lone) if linked else lone


def _kept(item: ir.StructValue, members: Sequence[str]) -> ir.Value:
    if tuple(members) == IDENTITY_MEMBERS:
        return item
    types = identity_item_type(members).fields
    return filled_object({member: item[member].cast(ibis_type(kind)) for member, kind in types.items()})


# --- Events ---


def _attached_events(shape: Shape, selection: EventSelection, events: Rows) -> ir.Table:
    """Collect the events in the window per profile, in the order of S17.

    Returns:
        The profile's key, the list `series` and its length `attached`; no row for a profile without such an event.
    """
    values = [*([EVENT] if shape.event_parts else []), *([MEMBERSHIP] if shape.event_membership else [])]
    columns = [*PROFILE, "dataset", *EVENT_COLUMNS, *values]
    own = selection.identities
    shows = own.type is not None
    rows = events.current([*columns, *_PRIMARY] if shows else columns)
    rows = rows.filter(rows.attached)
    if shows and shape.respelled:
        rows = registered(rows, "namespace", NAMESPACES)
    if shows and shape.linked:
        rows = _with_own_identities(rows, shape, own, events)
    if MEMBERSHIP in values and shape.segments_respelled:
        rows = _with_registered_segments(rows, MEMBERSHIP, events)
    entry = {"time": rows.event_time, "id": rows.event_id, "dataset": rows.dataset, "place": rows.place}
    entry |= {name: rows[name] for name in values}
    if shows:
        entry[IDENTITIES] = _identity_map(rows, rows.authenticated_state, own, linked=shape.linked)
    # Sorting columns come first, and of two events one differs: whatever is behind them is never compared.
    sortable = ibis.struct(entry)
    return rows.group_by(list(PROFILE)).agg(series=sortable.collect().sort(), attached=rows.count())


def _with_own_identities(rows: ir.Table, shape: Shape, kept: IdentitySelection, events: Rows) -> ir.Table:
    linked = events.every(["links", *_PRIMARY, "key_high", "key_low"])
    linked = linked.filter(linked.links.notnull(), linked.current, linked.attached)
    entries = ibis.union(
        _primary_entries(linked, _PLACE, of_record=False), _link_entries(linked, _PLACE, of_record=False)
    )
    maps = _identity_maps(entries, _PLACE, kept, respelled=shape.respelled)
    return beside(rows, maps.select(*_PLACE, IDENTITIES), _PLACE)


def _with_registered_segments(rows: ir.Table, column: str, events: Rows) -> ir.Table:
    held = events.current([column])
    held = held.filter(held.attached, held[column].notnull())
    merged = merged_segments(held, _PLACE, column, respelled=True)
    return beside(rows.drop(column), merged.rename({column: MERGED}), _PLACE)
