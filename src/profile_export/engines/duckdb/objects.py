"""Objects taken apart, and put together from their parts: null where none of these has a value (S13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from math import isqrt
from typing import NamedTuple

from profile_export.domain.schemas.types import (
    EMPTY,
    TEXT,
    FieldPath,
    FieldType,
    GrowingObject,
    ObjectType,
    nested,
)
from profile_export.engines.duckdb.spelling import name, type_name
from profile_export.engines.expression.tables import HELD, NUMBER, Part

_LEVELS_AT_ONCE = 8
"""Levels of objects made in one step: with more of them parts are asked more often, with fewer carried further."""
_PARTS_AT_ONCE = 64
"""Parts of an object that those around it still ask one by one."""
_TAKEN_AT_ONCE = 256
"""Leaves of a part that are taken out of it directly, whichever the part."""
_MADE = TEXT
_Steps = dict[int, list[tuple[FieldPath, ObjectType]]]


def with_objects(rows: str, fields: ObjectType, parts: Mapping[FieldPath, str]) -> tuple[str, dict[str, str]]:
    """Put parts back into objects.

    An object asks the parts below it whether it has a value, and so does every object around it. So of many levels a
    few are made at a time, as columns that the next step takes for parts.

    Args:
        rows: The query that has the parts as columns.
        fields: The objects to make.
        parts: The columns of leaves below `fields`, or of objects whole, by their paths.

    Returns:
        A query with the same rows and columns and more of them, and the members of `fields` as values in it.
    """
    steps: _Steps = {}
    shallow = _in_steps(fields, (), parts, steps).fields
    held = dict(parts)
    for step in sorted(steps):
        made: dict[FieldPath, str] = {}
        values = []
        for path, kind in steps[step]:
            made[path] = f"object_{step}_{len(made)}"
            values.append(f"{object_of(*_members(kind, held, path))} AS {made[path]}")
        held |= made
        rows = f"SELECT *, {', '.join(values)} FROM ({rows})"
    members, _ = _members(shallow, held, ())
    return rows, members


def taken_apart(rows: str, parts: Sequence[Part], leaves: Sequence[Part]) -> str:
    """Put leaves in place of the parts that hold them.

    Whoever takes a leaf out of an object pays for every leaf in it, and for every object around it: 4,000 of them took
    5 s and 4 GB. So of a large one smaller ones are cut out first, about as many as each has leaves, and each from the
    innermost object that has them all.

    Args:
        rows: The query that has the parts as columns.
        parts: What to take apart.
        leaves: All leaves of the parts.

    Returns:
        A query with the same rows, and columns for the leaves.
    """
    columns = {part.path: part.column for part in parts}
    held: dict[FieldPath, list[Part]] = {path: [] for path in columns}
    for leaf in leaves:
        above = next(leaf.path[:end] for end in range(1, len(leaf.path) + 1) if leaf.path[:end] in held)
        held[above].append(leaf)
    cuts, values = {}, []
    for path, inside in held.items():
        at_once = len(inside) if len(inside) <= _TAKEN_AT_ONCE else isqrt(len(inside))
        for begin in range(0, len(inside), at_once):
            some = inside[begin : begin + at_once]
            column, around = columns[path], path
            if some != inside:
                around = _around(some)
                cut = f"CAST({_within(column, around[len(path) :])} AS {type_name(_with(some, len(around)))})"
                column = f"{column}_{begin}"
                cuts[column] = cut
            values += [f"{_within(column, leaf.path[len(around) :])} AS {leaf.column}" for leaf in some]
    if cuts:
        made = ", ".join(f"{value} AS {column}" for column, value in cuts.items())
        rows = f"SELECT *, {made} FROM ({rows})"
    return f"SELECT * EXCLUDE ({', '.join((*columns.values(), *cuts))}), {', '.join(values)} FROM ({rows})"


def _within(column: str, path: FieldPath) -> str:
    return ".".join((column, *map(name, path)))


def _around(leaves: Sequence[Part]) -> FieldPath:
    """Return the path of the innermost object that has all these leaves."""
    first, last = min(leaf.path[:-1] for leaf in leaves), max(leaf.path[:-1] for leaf in leaves)
    same = (one == other for one, other in zip(first, last, strict=False))
    return first[: sum(takewhile(bool, same))]


def _with(leaves: Sequence[Part], depth: int) -> ObjectType:
    """Return an object that has these leaves, the object itself being so many names deep."""
    growing = GrowingObject(EMPTY)
    for leaf in leaves:
        growing.add(nested(leaf.path[depth:], leaf.type))
    return growing.type()


def maps_with_numbers(maps: Sequence[Part]) -> str:
    """List maps of one type that are not null, each with its number; null if all are."""
    numbered = ", ".join(
        f"{{'{NUMBER}': {number}, '{HELD}': {one.column}}}" for number, one in enumerate(maps)
    )
    some = _any_value([one.column for one in maps])
    return f"CASE WHEN {some} THEN list_filter([{numbered}], lambda one: one.{HELD} IS NOT NULL) END"


def map_of_number(listed: str, number: int) -> str:
    """Take a map out of such a list; null if it is not in there."""
    return f"list_filter({listed}, lambda one: one.{NUMBER} = {number})[1].{HELD}"


class _Shallow(NamedTuple):
    """An object with parts in place of some, its levels, its parts, and the first step that can make it."""

    fields: ObjectType
    levels: int
    parts: int
    step: int


def _in_steps(fields: ObjectType, path: FieldPath, whole: Mapping[FieldPath, str], steps: _Steps) -> _Shallow:
    """Move what is too much for one step from a type to `steps`, by their number."""
    members: dict[str, FieldType] = {}
    levels = parts = step = 0
    for field, member in fields.fields.items():
        here = (*path, field)
        if here in whole or not isinstance(member, ObjectType):
            members[field] = _MADE
            parts += 1
            continue
        inner = _in_steps(member, here, whole, steps)
        step = max(step, inner.step)
        if path and (inner.levels == _LEVELS_AT_ONCE or inner.parts > _PARTS_AT_ONCE):
            steps.setdefault(inner.step, []).append((here, inner.fields))
            members[field] = _MADE
            parts, step = parts + 1, max(step, inner.step + 1)
        else:
            members[field] = inner.fields
            asking = inner.levels - (1 if _guards_its_only_member(fields, path) else 0)
            levels, parts = max(levels, asking), parts + inner.parts
    return _Shallow(ObjectType(members), levels + 1, parts, step)


def _members(
    fields: ObjectType, parts: Mapping[FieldPath, str], path: FieldPath
) -> tuple[dict[str, str], list[str]]:
    """Return the members of an object as values, and the parts below it."""
    members: dict[str, str] = {}
    below: list[str] = []
    for field, member in fields.fields.items():
        here = (*path, field)
        if isinstance(member, ObjectType):
            inner_members, inner = _members(member, parts, here)
            alone = _guards_its_only_member(fields, path)
            members[field] = _packed(inner_members) if alone else object_of(inner_members, inner)
            below += inner
        else:
            members[field] = parts[here]
            below.append(parts[here])
    return members, below


def _guards_its_only_member(fields: ObjectType, path: FieldPath) -> bool:
    """Say whether the member is there whenever the object is: to ask for it again copies all that is in it."""
    return bool(path) and len(fields.fields) == 1


def object_of(members: Mapping[str, str], parts: Sequence[str]) -> str:
    """Make an object of the values of its members; null where none of `parts`, at least one, has a value."""
    return f"CASE WHEN {_any_value(parts)} THEN {_packed(members)} END"


def _packed(members: Mapping[str, str]) -> str:
    return f"struct_pack({', '.join(f'{name(member)} := {value}' for member, value in members.items())})"


def _any_value(parts: Sequence[str]) -> str:
    """Say whether any part has a value; in halves, since the parser descends into each side."""
    if len(parts) == 1:
        return f"{parts[0]} IS NOT NULL"
    half = len(parts) // 2
    return f"({_any_value(parts[:half])} OR {_any_value(parts[half:])})"
