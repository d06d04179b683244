"""The identities of a profile or an event, as its `identityMap` (S6, S7)."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir

from profile_export.domain.schema import (
    IDENTITY_MEMBERS,
    identity_item_type,
    identity_map_type,
)
from profile_export.domain.selection import IdentitySelection
from profile_export.engines.inputs import KEY, NAMESPACES, PROFILE
from profile_export.engines.leaves import ibis_type
from profile_export.engines.maps import registered
from profile_export.engines.nested import filled_object, map_of, trimmed


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
