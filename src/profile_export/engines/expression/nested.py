"""Nested values: objects rebuilt from their leaves, maps merged per key (S14), memberships by qualification (S15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir

from profile_export.domain.export.selection import MembershipStatus
from profile_export.domain.schemas.types import (
    ArrayType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)
from profile_export.engines.expression.tables import (
    SEGMENT_NAMESPACES,
    ibis_type,
    segments_table,
    spellings_table,
)

_LEVELS_AT_ONCE = 8
"""Levels of objects made in one step: with more of them leaves are asked more often, with fewer carried further."""
_LEAVES_AT_ONCE = 64
"""Leaves of an object that those around it still ask one by one."""
_MADE = Scalar(ScalarKind.TEXT)
_Steps = dict[int, list[tuple[FieldPath, ObjectType]]]


def any_value(values: Sequence[ir.Value]) -> ir.BooleanValue:
    """Say whether any of some values, at least one, is there; in halves, since compilers descend into each side."""
    if len(values) == 1:
        return values[0].notnull()
    half = len(values) // 2
    return any_value(values[:half]) | any_value(values[half:])


def filled_object(members: Mapping[str, ir.Value], leaves: Sequence[ir.Value] = ()) -> ir.StructValue:
    """Make an object, or null where none of the `leaves` below it has a value (S13); none given: of its members."""
    has_value = any_value(leaves or tuple(members.values()))
    return has_value.ifelse(ibis.struct(dict(members)), ibis.null())


def with_objects(
    rows: ir.Table, fields: ObjectType, values: Mapping[FieldPath, ir.Value]
) -> tuple[ir.Table, dict[str, ir.Value]]:
    """Put leaves back into objects.

    An object asks the leaves below it whether it has a value, and so does every object around it. So of many levels a
    few are made at a time, as columns that the next step takes for leaves.

    Args:
        rows: The table that `values` are of.
        fields: The objects to make.
        values: The leaves of `fields` by their paths.

    Returns:
        A table with the same rows and columns, which may lack those that are leaves, and the members of `fields` in it.
    """
    steps: _Steps = {}
    shallow = _in_steps(fields, (), steps).fields
    if steps:
        rows, values = _with_deep_objects(rows, steps, values)
    members, _ = _rebuilt(shallow, values, ())
    return rows, members


class _Shallow(NamedTuple):
    """An object with leaves in place of some, its levels, its leaves, and the first step that can make it."""

    fields: ObjectType
    levels: int
    leaves: int
    step: int


def _in_steps(fields: ObjectType, path: FieldPath, steps: _Steps) -> _Shallow:
    """Move what is too much for one step from a type to `steps`, by their number."""
    members: dict[str, FieldType] = {}
    levels = leaves = step = 0
    for name, member in fields.fields.items():
        if not isinstance(member, ObjectType):
            members[name] = member
            leaves += 1
            continue
        inner = _in_steps(member, (*path, name), steps)
        step = max(step, inner.step)
        if path and (inner.levels == _LEVELS_AT_ONCE or inner.leaves > _LEAVES_AT_ONCE):
            steps.setdefault(inner.step, []).append(((*path, name), inner.fields))
            members[name] = _MADE
            leaves, step = leaves + 1, max(step, inner.step + 1)
        else:
            members[name] = inner.fields
            levels, leaves = max(levels, inner.levels), leaves + inner.leaves
    return _Shallow(ObjectType(members), levels + 1, leaves, step)


def _with_deep_objects(
    rows: ir.Table, steps: _Steps, values: Mapping[FieldPath, ir.Value]
) -> tuple[ir.Table, dict[FieldPath, ir.Value]]:
    names = {path: f"part_{index}" for index, path in enumerate(values)}
    leaves = {value.get_name() for value in values.values() if isinstance(value.op(), ops.Field)}
    others = [name for name in rows.columns if name not in leaves]
    rows = rows.mutate(**{names[path]: value for path, value in values.items()})
    for step in sorted(steps):
        held = {path: rows[name] for path, name in names.items()}
        made: dict[str, ir.Value] = {}
        for path, kind in steps[step]:
            members, below = _rebuilt(kind, held, path)
            made[f"object_{step}_{len(made)}"] = filled_object(members, [held[leaf] for leaf in below])
            for leaf in below:
                del names[leaf]
        kept = tuple(names.values())
        names |= {path: name for (path, _), name in zip(steps[step], made, strict=True)}
        rows = rows.select(*others, *kept, **made)
    return rows, {path: rows[name] for path, name in names.items()}


def _rebuilt(
    fields: ObjectType, values: Mapping[FieldPath, ir.Value], path: FieldPath
) -> tuple[dict[str, ir.Value], list[FieldPath]]:
    """Return the members of an object, and the paths of the leaves below it."""
    members: dict[str, ir.Value] = {}
    leaves: list[FieldPath] = []
    for name, member in fields.fields.items():
        here = (*path, name)
        if isinstance(member, ObjectType):
            inner, below = _rebuilt(member, values, here)
            members[name] = filled_object(inner, [values[leaf] for leaf in below])
            leaves += below
        else:
            members[name] = values[here]
            leaves.append(here)
    return members, leaves


def trimmed(value: ir.Value, whole: FieldType, kept: FieldType) -> ir.Value:
    """Cut a value down to what is kept of its type.

    Items of an array keep their number and order, and one left with nothing is null (S24); an entry of a map left with
    nothing is as if absent (S13).
    """
    # Equal mappings may differ in the order of their members, which has no meaning.
    if whole == kept:
        return value
    match whole, kept:
        case ArrayType(item), ArrayType(kept_item):
            return value.map(lambda element: trimmed(element, item, kept_item))
        case MapType(entry), MapSelection() as chosen:
            return _chosen(value, entry, chosen)
        case MapType(entry), MapType(kept_entry):
            entries = value.keys().zip(
                value.values().map(lambda element: trimmed(element, entry, kept_entry))
            )
            return map_of(entries.filter(lambda pair: pair.f2.notnull()), "f1", "f2")
        case ObjectType(fields), ObjectType(kept_fields):
            return filled_object(
                {name: trimmed(value[name], fields[name], member) for name, member in kept_fields.items()}
            )
    return value.cast(ibis_type(kept))


def _chosen(value: ir.Value, entry: FieldType, selection: MapSelection) -> ir.Value:
    """Keep of a map what is chosen by key (S23); null where nothing is left (S13)."""
    kept = ibis_type(selection.value)

    def cut(pair: ir.StructValue) -> ir.Value:
        others = selection.others
        otherwise = ibis.null(kept) if others is None else trimmed(pair.f2, entry, others).cast(kept)
        by_key = [
            (pair.f1 == key, trimmed(pair.f2, entry, member).cast(kept))
            for key, member in selection.keys.items()
        ]
        return ibis.cases(*by_key, else_=otherwise) if by_key else otherwise

    pairs = value.keys().zip(value.values())
    cut_down = pairs.map(lambda pair: ibis.struct({"k": pair.f1, "v": cut(pair)}))
    return map_of(cut_down.filter(lambda pair: pair.v.notnull()), "k", "v")


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
