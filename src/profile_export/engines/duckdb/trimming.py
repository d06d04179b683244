"""Values cut down to what an export keeps of them (S23, S24).

Arrow does it, whole levels at a time. Functions of DuckDB's own that call themselves for items within items double
its work with every level.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from duckdb.func import ARROW, SPECIAL

from profile_export.domain.schemas.types import ArrayType, FieldType, MapSelection, MapType, ObjectType
from profile_export.engines.duckdb.query import OutputColumn
from profile_export.engines.duckdb.spelling import type_name


def make_trims(connection: duckdb.DuckDBPyConnection, columns: Iterable[OutputColumn]) -> None:
    """Make the functions that the columns name, in a database."""
    for column in columns:
        if column.trim is not None:
            connection.create_function(
                column.trim,
                partial(_trim, column.whole, column.kept),
                [duckdb.sqltype(type_name(column.whole))],
                duckdb.sqltype(type_name(column.kept)),
                type=ARROW,
                null_handling=SPECIAL,
            )


def _trim(whole: FieldType, kept: FieldType, values: pa.ChunkedArray) -> pa.Array:
    return trimmed(values.combine_chunks(), whole, kept, kept)


def trimmed(values: pa.Array, whole: FieldType, kept: FieldType, into: FieldType) -> pa.Array:
    """Cut values down to what is kept of their type.

    Items of an array keep their number and order, and one left with nothing is null (S24), as is an object; an entry of
    a map left with nothing is as if absent, and so is the map without any (S13).

    Args:
        values: As DuckDB passes them, in normal form.
        whole: Their type.
        kept: What is kept of it.
        into: The type of what is returned, which may have members beyond `kept`: they are null.
    """
    if whole == kept:
        return values
    match whole, kept, into:
        case ArrayType(item), ArrayType(kept_item), ArrayType(made):
            lengths = _lengths(values)
            items = trimmed(values.flatten(), item, kept_item, made)
            return pa.ListArray.from_arrays(_offsets(lengths), items, mask=values.is_null())
        case MapType(entry), MapType(), MapType(made):
            return _map(values, entry, kept, made)
        case ObjectType(), ObjectType(), ObjectType():
            return _object(values, whole, kept, into)
    return values


def _object(values: pa.Array, whole: ObjectType, kept: ObjectType, into: ObjectType) -> pa.Array:
    found = dict(zip((field.name for field in values.type), values.flatten(), strict=True))
    empty = pa.repeat(pa.scalar(value=True), len(values))
    members = []
    for name, made in into.fields.items():
        if name in kept.fields:
            member = trimmed(found[name], whole.fields[name], kept.fields[name], made)
            empty = pc.and_(empty, member.is_null())
        else:
            member = pa.nulls(len(values), _arrow_type(found[name].type, made))
        members.append(member)
    return pa.StructArray.from_arrays(members, names=list(into.fields), mask=empty)


def _map(values: pa.Array, entry: FieldType, kept: MapType, made: FieldType) -> pa.Array:
    rows = len(values)
    # As lists: the functions for lists do not take maps, one even ends the process.
    entries = values.cast(pa.list_(pa.struct([("key", pa.string()), ("value", values.type.item_type)])))
    parents = pc.list_parent_indices(entries)
    keys, held = entries.flatten().flatten()
    if isinstance(kept, MapSelection):
        held = _by_key(keys, held, entry, kept, made)
    else:
        held = trimmed(held, entry, kept.value, made)
    left = held.is_valid()
    keys, held, parents = keys.filter(left), held.filter(left), parents.filter(left)
    counted = pc.value_counts(parents)
    lengths = pa.repeat(pa.scalar(0, pa.int32()), rows)
    is_there = pc.is_in(pa.array(range(rows), parents.type), value_set=counted.field("values"))
    lengths = pc.replace_with_mask(lengths, is_there, counted.field("counts").cast(pa.int32()))
    return pa.MapArray.from_arrays(_offsets(lengths), keys, held, mask=pc.invert(is_there))


def _by_key(
    keys: pa.Array, held: pa.Array, entry: FieldType, kept: MapSelection, made: FieldType
) -> pa.Array:
    """Cut the values of entries down, all that have the same key at once."""
    chosen, kind = list(kept.keys), _arrow_type(held.type, made)
    place = pc.fill_null(pc.index_in(keys, value_set=pa.array(chosen, pa.string())), len(chosen))
    order = pc.sort_indices(place)
    in_order, parts, begin = held.take(order), [], 0
    for counted in pc.value_counts(place.take(order)).to_pylist():
        some = in_order.slice(begin, counted["counts"])
        begin += len(some)
        at = counted["values"]
        cut_to = kept.others if at == len(chosen) else kept.keys[chosen[at]]
        if cut_to is None:
            parts.append(pa.nulls(len(some), kind))
        else:
            # Those that stay whole name the items of arrays as DuckDB does.
            parts.append(trimmed(some, entry, cut_to, made).cast(kind))
    return pa.concat_arrays(parts).take(pc.sort_indices(order)) if parts else pa.nulls(0, kind)


def _arrow_type(whole: pa.DataType, made: FieldType) -> pa.DataType:
    """Return the type of what is made of values of a type."""
    match made:
        case ObjectType(fields):
            return pa.struct(
                [(name, _arrow_type(whole.field(name).type, kind)) for name, kind in fields.items()]
            )
        case ArrayType(item):
            return pa.list_(_arrow_type(whole.value_type, item))
        case MapType(value):
            return pa.map_(whole.key_type, _arrow_type(whole.item_type, value))
    return whole


def _lengths(lists: pa.Array) -> pa.Array:
    """Return how many items each list has; a null has none."""
    return pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int32())


def _offsets(lengths: pa.Array) -> pa.Array:
    """Return where lists of these lengths begin among their items, and where the last one ends."""
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
