"""Objects rebuilt from their leaves, and values cut down to what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_

import ibis
import ibis.expr.types as ir

from profile_export.domain.schema import (
    ArrayType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
)
from profile_export.engines.leaves import ibis_type


def filled_object(members: Mapping[str, ir.Value]) -> ir.StructValue:
    """Make an object, or null where no member has a value (S13)."""
    made = ibis.struct(dict(members))
    return any_filled(members).ifelse(made, ibis.null(made.type()))


def any_filled(members: Mapping[str, ir.Value]) -> ir.BooleanValue:
    """Say whether one of the members has a value."""
    return reduce(or_, [member.notnull() for member in members.values()])


def rebuilt(
    fields: ObjectType, values: Mapping[FieldPath, ir.Value], path: FieldPath = ()
) -> dict[str, ir.Value]:
    """Put the leaves below a path, given by their paths, back into objects."""
    members: dict[str, ir.Value] = {}
    for name, member in fields.fields.items():
        here = (*path, name)
        if isinstance(member, ObjectType):
            members[name] = filled_object(rebuilt(member, values, here))
        else:
            members[name] = values[here]
    return members


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
