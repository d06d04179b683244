"""Nested values: maps merged per key (S14), memberships by qualification (S15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

import ibis
import ibis.expr.types as ir

from profile_export.domain.export.selection import MembershipStatus
from profile_export.engines.expression.tables import SEGMENT_NAMESPACES, segments_table, spellings_table


def filled_object(members: Mapping[str, ir.Value]) -> ir.StructValue:
    """Make an object, or null where none of its members, at least one, has a value (S13)."""
    has_value = reduce(or_, (member.notnull() for member in members.values()))
    return has_value.ifelse(ibis.struct(dict(members)), ibis.null())


def map_of(entries: ir.ArrayValue, key: str, value: str) -> ir.MapValue:
    """Make a map of an array of objects; null where there are none."""
    made = ibis.map(entries.map(lambda entry: entry[key]), entries.map(lambda entry: entry[value]))
    return (entries.length() > 0).ifelse(made, ibis.null(made.type()))


MERGED = "merged"
_QUALIFIED = "lastQualificationTime"
_ENTERED = MembershipStatus.REALIZED.value


def registered(rows: ir.Table, column: str, spellings: str) -> ir.Table:
    """Replace a namespace as sent by its registered spelling (S2)."""
    known = spellings_table(spellings)
    joined = rows.left_join(known, rows[column] == known.sent)
    found = joined.select(*(rows[name] for name in rows.columns), known.registered)
    others = [name for name in rows.columns if name != column]
    return found.select(*others, ibis.coalesce(found.registered, found[column]).name(column))


def held_by_several(rows: ir.Table, owner: Sequence[str]) -> ir.Table:
    """Keep the rows whose owner has another: the one map of everybody else is already merged."""
    counted = rows.group_by(owner).agg(rows=rows.count())
    return rows.semi_join(counted.filter(counted.rows > 1), list(owner))


def merged_maps(rows: ir.Table, owner: Sequence[str], column: str) -> ir.Table:
    """Merge the maps in a column per key, each value whole from the latest place that has it.

    Returns:
        The owner's columns and `merged`; no row for an owner without an entry.
    """
    placed = _with_place(owner)
    keys = rows.select(*placed, held=rows[column], entry=rows[column].keys().unnest())
    entries = keys.select(*placed, "entry", kept=keys.held[keys.entry])
    newest = entries.group_by([*owner, "entry"]).agg(kept=entries.kept.argmax(entries.place))
    return _collected(newest, owner, "entry")


def merged_segments(rows: ir.Table, owner: Sequence[str], column: str, *, respelled: bool) -> ir.Table:
    """Merge segment memberships per (namespace, segment), the newest `lastQualificationTime` first (S15).

    Returns:
        As `merged_maps`.
    """
    placed = _with_place(owner)
    spaces = rows.select(*placed, held=rows[column], sent=rows[column].keys().unnest())
    inner = spaces.select(*placed, "sent", segments=spaces.held[spaces.sent])
    named = inner.select(
        *placed, "sent", "segments", namespace=inner.sent, segment=inner.segments.keys().unnest()
    )
    entries = named.select(*placed, "sent", "namespace", "segment", kept=named.segments[named.segment])
    if respelled:
        entries = registered(entries, "namespace", SEGMENT_NAMESPACES)
    entries = entries.mutate(qualified=entries.kept[_QUALIFIED])
    newest = _newest(entries, [*owner, "namespace", "segment"])
    segments = _collected(newest, (*owner, "namespace"), "segment")
    return _collected(segments.rename(kept=MERGED), owner, "namespace")


def admissions(rows: ir.Table, owner: Sequence[str], column: str, *, respelled: bool) -> ir.Table:
    """Judge by their segment memberships who is let in (S21).

    Of several entries for a segment the newest counts, as `merged_segments` has it (S15).

    Returns:
        The owner's columns, at which positions of `segments` it has an entry (`members`), and at which of them the
        entry lets it in (`admitted`); no row for an owner without an entry.
    """
    placed = _with_place(owner)
    spaces = rows.select(*placed, held=rows[column], sent=rows[column].keys().unnest())
    spaces = spaces.mutate(namespace=spaces.sent)
    if respelled:
        spaces = registered(spaces, "namespace", SEGMENT_NAMESPACES)
    asked = segments_table()
    joined = spaces.join(asked, spaces.namespace == asked.namespace)
    found = joined.select(
        *(spaces[name] for name in (*placed, "held", "sent")),
        *(asked[name] for name in ("position", "segment_id", "statuses", "start_time", "end_time")),
    )
    held = found.mutate(entry=found.held[found.sent][found.segment_id])
    entries = held.filter(held.entry.notnull())
    entries = entries.mutate(status=entries.entry["status"], qualified=entries.entry[_QUALIFIED])
    newest = _newest(entries, [*owner, "position"])
    counts = newest.statuses.contains(ibis.coalesce(newest.status, ibis.literal(_ENTERED)))
    after, before = newest.start_time, newest.end_time
    in_window = (after.isnull() & before.isnull()) | (
        newest.qualified.notnull()
        & (after.isnull() | (after <= newest.qualified))
        & (before.isnull() | (newest.qualified < before))
    )
    return newest.group_by(list(owner)).agg(
        members=newest.position.collect().sort(),
        admitted=newest.position.collect(where=counts & in_window).sort(),
    )


def _newest(entries: ir.Table, same: Sequence[str]) -> ir.Table:
    """Keep of entries for the same segment the one that counts (S15)."""
    rank = ibis.row_number().over(
        group_by=same,
        order_by=[ibis.desc("qualified", nulls_first=False), ibis.desc("place"), ibis.asc("sent")],
    )
    ranked = entries.mutate(rank=rank)
    return ranked.filter(ranked["rank"] == 0)


def _with_place(owner: Sequence[str]) -> list[str]:
    """Name the columns of owner and place, each once: an event is known by its place."""
    return list(dict.fromkeys((*owner, "place")))


def _collected(entries: ir.Table, owner: Sequence[str], key: str) -> ir.Table:
    pairs = ibis.struct({"k": entries[key], "v": entries.kept})
    collected = entries.group_by(list(owner)).agg(pairs=pairs.collect().sort())
    return collected.select(*owner, map_of(collected.pairs, "k", "v").name(MERGED))
