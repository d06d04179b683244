"""The types of fields that a Parquet file teaches."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from profile_export.domain.learning import MAX_DEPTH, ValueRefusedError, check_name
from profile_export.domain.schema import (
    BOOLEAN,
    DATE,
    DOUBLE,
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
)

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
