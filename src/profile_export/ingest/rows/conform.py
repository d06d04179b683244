"""Arrow columns in the stored form: the types that a file teaches, and one type per field, whatever types it had.

Everything is done a column at a time; only text that must become an instant or a date is read value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain.errors import Reason
from profile_export.domain.schemas.learning import MAX_DEPTH, ValueRefusedError, check_name, check_value
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    LARGE_LONG,
    LONG,
    MAX_DECIMAL_DIGITS,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
    union_objects,
    union_types,
)
from profile_export.lake.data_files import INSTANT, arrow_type

_FOUND = (
    (pa.types.is_boolean, BOOLEAN),
    (pa.types.is_integer, LONG),
    (pa.types.is_floating, DOUBLE),
    (pa.types.is_string, TEXT),
    (pa.types.is_large_string, TEXT),
    (pa.types.is_string_view, TEXT),
    (pa.types.is_date, DATE),
    (pa.types.is_timestamp, TIMESTAMP),
)


def field_type(found: pa.DataType, path: FieldPath, untyped: set[FieldPath]) -> FieldType | None:
    """Return the field type of a column of a Parquet file; None if it teaches none (S13), such as a list of nulls.

    `untyped` gets the paths of lists of nulls.

    Raises:
        ValueRefusedError: There is none for it, such as for bytes, or a name in it cannot be stored.
        TypeConflictError: Two names in it differ in case alone.
    """
    if len(path) > MAX_DEPTH:
        raise ValueRefusedError(path[:3], f"is nested deeper than {MAX_DEPTH} levels")
    found = plain_type(found)
    learned: FieldType | None
    if is_list(found):
        item = field_type(found.value_type, (*path, "[]"), untyped)
        learned = None if item is None else ArrayType(item)
        if learned is None:
            untyped.add(path)
    elif pa.types.is_struct(found):
        members = object_type(found, path, untyped)
        learned = members if members.fields else None
    elif pa.types.is_map(found) and field_type(found.key_type, path, untyped) == TEXT:
        value = field_type(found.item_type, (*path, "*"), untyped)
        learned = None if value is None else MapType(value)
    else:
        learned = _single_type(found, path)
    return learned


def object_type(found: pa.Schema | pa.StructType, path: FieldPath, untyped: set[FieldPath]) -> ObjectType:
    """Return the fields of a struct or of a whole file; those that teach no type are left out.

    `untyped` gets the paths of lists of nulls.

    Raises:
        ValueRefusedError: As `field_type`.
        TypeConflictError: As `field_type`.
    """
    names: set[str] = set()
    folded: dict[str, str] = {}
    learned: dict[str, FieldType] = {}
    for member in found:
        inside = (*path, member.name)
        if member.name in names:
            raise ValueRefusedError(inside, "stands twice")
        check_name(member.name, {}, path, folded)
        member_type = field_type(member.type, inside, untyped)
        names.add(member.name)
        folded[member.name.casefold()] = member.name
        if member_type is not None:
            learned[member.name] = member_type
    return ObjectType(learned)


def _single_type(found: pa.DataType, path: FieldPath) -> FieldType | None:
    if pa.types.is_null(found):
        return None
    if pa.types.is_decimal(found) and found.precision <= MAX_DECIMAL_DIGITS and found.scale >= 0:
        return DecimalType(found.precision, found.scale)
    for is_found, known in _FOUND:
        if is_found(found):
            return known
    raise ValueRefusedError(path, f"is of the Parquet type {found}, which is not supported: write it as text")


def plain_type(found: pa.DataType) -> pa.DataType:
    """Return the type of the values themselves, without dictionary encoding or an extension's name."""
    if isinstance(found, pa.BaseExtensionType):
        return plain_type(found.storage_type)
    if pa.types.is_dictionary(found):
        return plain_type(found.value_type)
    return found


def with_singles(found: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with another for each type of single values in it, without dictionaries and extensions."""
    found = plain_type(found)
    if pa.types.is_struct(found):
        return pa.struct([(member.name, with_singles(member.type, change)) for member in found])
    if pa.types.is_map(found):
        return pa.map_(with_singles(found.key_type, change), with_singles(found.item_type, change))
    if is_list(found):
        return pa.list_(with_singles(found.value_type, change))
    return change(found)


def is_list(found: pa.DataType) -> bool:
    """Whether it is one of Arrow's kinds of list."""
    return bool(
        pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    )


_SECONDS = (-62_135_596_800, 253_402_300_800)  # from 0001-01-01T00:00:00Z to before 10000-01-01T00:00:00Z
_DAYS = (-719_162, 2_932_896)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6}  # nanoseconds reach from 1677 to 2262 only
_LONGS = tuple(
    pa.scalar(Decimal(bound), pa.decimal128(MAX_DECIMAL_DIGITS, 0)) for bound in (-(2**63), 2**63 - 1)
)
_MAX_LONG = pa.scalar(2**63 - 1, pa.uint64())
_TOO_FINE = "has digits behind the microsecond, which would be lost: round it to six"
_OUTSIDE_YEARS = "is outside the years 1 to 9999"

Refused = dict[int, ValueRefusedError | TypeConflictError]
"""The rows of a batch that are refused, counted in it from 0, each with the first reason that was found."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column stands, for refusals: its path, and the row of each of its values.

    `parents` has per value the index of its row in the batch, None for a column with one value per row.
    """

    path: FieldPath
    refused: Refused
    parents: pa.Array | None = None

    def member(self, name: str) -> Place:
        """Return the place of a member of each value."""
        return replace(self, path=(*self.path, name))

    def items(self, mark: str, indices: pa.Array) -> Place:
        """Return the place of the items of each value; `indices` says per item which value has it."""
        parents = indices if self.parents is None else self.parents.take(indices)
        return replace(self, path=(*self.path, mark), parents=parents)

    def refuse(self, index: int, error: ValueRefusedError) -> None:
        """Refuse the row of one value."""
        row = index if self.parents is None else self.parents[index].as_py()
        self.refused.setdefault(row, error)

    def refuse_where(self, mask: pa.Array, error: ValueRefusedError | TypeConflictError) -> None:
        """Refuse the rows of the values for which `mask` is true."""
        found = pc.indices_nonzero(mask)
        for row in (found if self.parents is None else self.parents.take(found)).to_pylist():
            self.refused.setdefault(row, error)


def accepted_fields(
    known: ObjectType, found: ObjectType, path: FieldPath, identity_paths: Collection[FieldPath]
) -> ObjectType:
    """Return the fields that a file is stored with, as `accepted_type`.

    Raises:
        TypeConflictError: Two types do not go together, or two names differ in case alone.
    """
    taken = {
        name: accepted_type(known.fields[name], member, (*path, name), identity_paths)
        if name in known.fields
        else member
        for name, member in found.fields.items()
    }
    return union_objects(known, ObjectType(taken), path)


def accepted_type(
    known: FieldType, found: FieldType, path: FieldPath, identity_paths: Collection[FieldPath]
) -> FieldType:
    """Return the type that a column is stored as: that of both, where a known type takes what is no conflict.

    A known instant or date takes text, a known map an object, a declared identity field an integer or a decimal.

    Raises:
        TypeConflictError: The types do not go together.
    """
    match known, found:
        case ObjectType(), ObjectType():
            return accepted_fields(known, found, path, identity_paths)
        case ArrayType(item), ArrayType(found_item):
            return ArrayType(accepted_type(item, found_item, (*path, "[]"), identity_paths))
        case MapType(value), MapType(found_value):
            return MapType(accepted_type(value, found_value, (*path, "*"), identity_paths))
        case MapType(value), ObjectType(members):
            for member in members.values():
                value = accepted_type(value, member, (*path, "*"), identity_paths)
            return MapType(value)
    is_integer = found == LONG or isinstance(found, DecimalType)
    if (known in (TIMESTAMP, DATE) and found == TEXT) or (
        path in identity_paths and known in (TEXT, LONG) and is_integer
    ):
        return known
    return union_types(known, found, path)


def conform(column: pa.Array, target: FieldType, place: Place) -> pa.Array:
    """Return a column as `arrow_type(target)`; values that do not fit are refused at their rows and come out null.

    So do objects without any value (S13), wherever they are.

    Args:
        column: Any type that `accepted_type` let through for `target`; members that it has no type for are left out.
        target: What the field is stored as.
        place: Where the column stands.
    """
    column = plain_values(column)
    found = column.type
    if pa.types.is_null(found) or _is_other_kind(found, target):
        return pa.nulls(len(column), arrow_type(target))
    match target:
        case ObjectType():
            return _object(column, target, place)
        case ArrayType(item):
            lengths = lengths_of(column)
            inside = place.items("[]", pc.list_parent_indices(column))
            return pa.ListArray.from_arrays(
                offsets_of(lengths),
                conform(column.flatten(), item, inside),
                type=arrow_type(target),
                mask=column.is_null(),
            )
        case MapType(value) if pa.types.is_struct(found):
            return _map_of_object(column, value, place)
        case MapType(value):
            return _map(column, value, place)
        case _:
            return _scalar(column, target, place)


def _is_other_kind(found: pa.DataType, target: FieldType) -> bool:
    """Whether a column that taught no type, such as lists of nulls, cannot be the target, so that it is absent (S13).

    A column that did teach one has been held to the target already.
    """
    if is_list(found):
        return not isinstance(target, ArrayType)
    if pa.types.is_struct(found):
        return not isinstance(target, ObjectType | MapType)
    return pa.types.is_map(found) and not isinstance(target, MapType)


def with_large(kind: FieldType, column: pa.Array) -> FieldType:
    """Return the type of a conformed column, with longs marked that have a value which no double holds (S27)."""
    match kind:
        case ObjectType(fields):
            members = {
                name: with_large(member, values)
                for (name, member), values in zip(fields.items(), column.flatten(), strict=True)
            }
            return kind if all(members[name] is fields[name] for name in fields) else ObjectType(members)
        case ArrayType(item):
            marked = with_large(item, column.flatten())
            return kind if marked is item else ArrayType(marked)
        case MapType(value):
            marked = with_large(value, entries_of(column).flatten().field("value"))
            return kind if marked is value else MapType(marked)
    return LARGE_LONG if kind == LONG and pc.any(_beyond_doubles(column)).as_py() else kind


def _beyond_doubles(longs: pa.Array) -> pa.Array:
    doubles = longs.cast(pa.float64(), safe=False)
    # What this double becomes as an integer of 64 bits differs from processor to processor.
    too_high = pc.greater_equal(doubles, float(2**63))
    return pc.or_(too_high, pc.not_equal(doubles.cast(pa.int64(), safe=False), longs))


def plain_values(column: pa.Array) -> pa.Array:
    """Return the values themselves, without dictionary encoding or an extension's name."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


# --- Objects and maps ---


def _object(column: pa.Array, target: ObjectType, place: Place) -> pa.Array:
    stored = arrow_type(target)
    found = dict(zip([field.name for field in column.type], column.flatten(), strict=True))
    members = [
        conform(found[name], member, place.member(name))
        if name in found
        else pa.nulls(len(column), arrow_type(member))
        for name, member in target.fields.items()
    ]
    # An object without any value is the same as none (S13), and the members of none have no value.
    empty = pa.array([True] * len(column), pa.bool_())
    for member in members:
        empty = pc.and_(empty, member.is_null())
    return pa.StructArray.from_arrays(members, fields=list(stored), mask=empty)


def _map(column: pa.Array, value: FieldType, place: Place) -> pa.Array:
    column = entries_of(column)
    parents = pc.list_parent_indices(column)
    keys, values = column.flatten().flatten()
    inside = place.items("*", parents)
    keys, values = conform(keys, TEXT, inside), conform(values, value, inside)
    kept = values.is_valid()
    keys, values, parents = keys.filter(kept), values.filter(kept), parents.filter(kept)
    _refuse_repeated_keys(keys, parents, place.items("*", parents))
    return _map_array(keys, values, parents, len(column))


def _map_of_object(column: pa.Array, value: FieldType, place: Place) -> pa.Array:
    names = [field.name for field in column.type]
    members = [conform(member, value, place.member("*")) for member in column.flatten()]
    kept = [member.is_valid().to_pylist() for member in members]
    rows, count = len(column), len(names)
    chosen = [(row, name) for row in range(rows) for name in range(count) if kept[name][row]]
    return _map_array(
        pa.array([names[name] for _, name in chosen], pa.string()),
        pa.concat_arrays(members).take(pa.array([name * rows + row for row, name in chosen], pa.int64())),
        pa.array([row for row, _ in chosen], pa.int64()),
        rows,
    )


def _map_array(keys: pa.Array, values: pa.Array, parents: pa.Array, rows: int) -> pa.Array:
    """Build maps of entries in the order of their rows; a row without entries is null (S13)."""
    counted = pc.value_counts(parents)
    lengths = [0] * rows
    for row, count in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
        lengths[row] = count
    sizes = pa.array(lengths, pa.int32())
    return pa.MapArray.from_arrays(offsets_of(sizes), keys, values, mask=pc.equal(sizes, 0))


def _refuse_repeated_keys(keys: pa.Array, parents: pa.Array, place: Place) -> None:
    entries = pa.table({"row": parents, "key": keys})
    if entries.group_by(["row", "key"]).aggregate([]).num_rows == len(keys):
        return
    seen: set[tuple[int, str]] = set()
    for index, entry in enumerate(zip(parents.to_pylist(), keys.to_pylist(), strict=True)):
        if entry in seen:
            place.refuse(index, ValueRefusedError(place.path, f"has the key {entry[1]!r} twice"))
        seen.add(entry)


def entries_of(column: pa.Array) -> pa.Array:
    """Return maps as lists of their entries: the functions for lists do not take maps, one even ends the process."""
    entry = pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])
    return column.cast(pa.list_(entry))


def lengths_of(lists: pa.Array) -> pa.Array:
    """Return how many items each list has; a null has none."""
    return pc.if_else(lists.is_valid(), pc.list_value_length(lists), 0).cast(pa.int32())


def offsets_of(lengths: pa.Array) -> pa.Array:
    """Return where lists of these lengths begin among their items, and where the last one ends."""
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])


# --- Single values ---


def _scalar(column: pa.Array, target: FieldType, place: Place) -> pa.Array:
    found = column.type
    if pa.types.is_timestamp(found):
        return _instants(column, place)
    if pa.types.is_date(found):
        return _dates(column, place)
    if pa.types.is_integer(found):
        return _integers(column, target, place)
    if target in {TIMESTAMP, DATE}:
        return _parsed(column, target, place)
    if pa.types.is_floating(found):
        column = column.cast(pa.float64())
        column = _without(column, pc.invert(pc.is_finite(column)), "is NaN or infinite: write null", place)
    if pa.types.is_decimal(found) and target in {TEXT, LONG}:
        return _whole(column, target, place)
    return column.cast(arrow_type(target))


def _whole(column: pa.Array, target: FieldType, place: Place) -> pa.Array:
    """Return the decimals of an identity field, which are integers if they have no fraction (S1)."""
    column = column.cast(
        pa.decimal128(column.type.precision, column.type.scale)
    )  # Arrow truncates no narrower ones
    whole = pc.trunc(column)
    complaint = "is a decimal with a fraction, but an identity is text or an integer"
    whole = _without(whole, pc.not_equal(column, whole), complaint, place, Reason.IDENTITY_INVALID)
    whole = whole.cast(pa.decimal128(MAX_DECIMAL_DIGITS, 0))
    if target == LONG:
        outside = pc.or_(pc.less(whole, _LONGS[0]), pc.greater(whole, _LONGS[1]))
        whole = _without(whole, outside, "is not an integer of 64 bits", place)
    return whole.cast(arrow_type(target))


def _integers(column: pa.Array, target: FieldType, place: Place) -> pa.Array:
    if pa.types.is_uint64(column.type):
        complaint = f"is an integer above {_MAX_LONG}: write it as text"
        column = _without(column, pc.greater(column, _MAX_LONG), complaint, place)
    longs = column.cast(pa.int64())
    if target != DOUBLE:
        return longs.cast(arrow_type(target))
    doubles = longs.cast(pa.float64(), safe=False)
    complaint = "is an integer that a double cannot hold exactly: send it in a field of another name"
    return _without(doubles, _beyond_doubles(longs), complaint, place, Reason.NUMBER_NOT_EXACT)


def _dates(column: pa.Array, place: Place) -> pa.Array:
    days = column.cast(pa.date32())
    number = days.cast(pa.int32())
    outside = pc.or_(pc.less(number, _DAYS[0]), pc.greater(number, _DAYS[1]))
    return _without(days, outside, _OUTSIDE_YEARS, place)


def _instants(column: pa.Array, place: Place) -> pa.Array:
    per_second = _PER_SECOND.get(column.type.unit)
    if not per_second:
        nanoseconds = column.cast(pa.int64())
        lost = pc.not_equal(pc.multiply(pc.divide(nanoseconds, 1_000), 1_000), nanoseconds)
        column = _without(
            column, lost, "has digits behind the microsecond, which would be lost: round it to six", place
        )
    else:
        number = column.cast(pa.int64())
        low, high = (second * per_second for second in _SECONDS)
        outside = pc.or_(pc.less(number, low), pc.greater_equal(number, high))
        column = _without(column, outside, _OUTSIDE_YEARS, place)
    # A column without a zone is read as UTC.
    return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(INSTANT)


def _parsed(column: pa.Array, target: FieldType, place: Place) -> pa.Array:
    values = []
    for index, text in enumerate(column.to_pylist()):
        try:
            value, _ = check_value(text, target, place.path, set())
        except ValueRefusedError as refused:
            place.refuse(index, refused)
            value = None
        values.append(value)
    return pa.array(values, arrow_type(target))


def _without(
    column: pa.Array, mask: pa.Array, complaint: str, place: Place, code: Reason = Reason.VALUE_INVALID
) -> pa.Array:
    """Refuse the values for which `mask` is true and make them null."""
    if not pc.any(mask).as_py():
        return column
    place.refuse_where(mask, ValueRefusedError(place.path, complaint, code))
    return pc.if_else(mask, pa.scalar(None, column.type), column)
