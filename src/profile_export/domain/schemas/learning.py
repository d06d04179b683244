"""Learning the fields of a dataset from JSON values, and bringing those values into their stored form.

A value teaches its type by its JSON kind alone; where a type is known already, it decides what is accepted. Nothing is
changed in place, so that a refused row teaches nothing.

A value in its stored form holds no null and no object without a value, except as an item of an array, where it is
None (S13); instants are aware datetimes in UTC. An empty array whose item type nobody knows yet stays in the value,
since a later row may teach it; `untyped` collects its path. What teaches no type, such as `{}` or `[null]`, contradicts
none either: where a field is known as something else, it is absent, so that the order of rows decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any

from profile_export.domain.catalog.batches import OWN_COLUMNS
from profile_export.domain.errors import Reason
from profile_export.domain.schemas.instants import parse_day, parse_instant
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DOUBLE,
    EMPTY,
    EXACT_IN_A_DOUBLE,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    LARGE_LONG,
    LONG,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIME_SERIES_EVENTS,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    TypeConflictError,
    differs_in_case,
    dotted_path,
)

MAX_DEPTH = 64
"""How deep objects, arrays and maps may be nested."""
MAX_NAMES = 5_000
"""How many names one object may have: data that is keyed by ids wants a map, not a column for each."""

_MAX_LONG = 2**63
_NESTED = (dict, list)
_NESTED_TYPES: dict[type, tuple[type, ...]] = {dict: (ObjectType, MapType), list: (ArrayType,)}
_TEXT, _DOUBLE, _BOOLEAN = ScalarKind.TEXT, ScalarKind.DOUBLE, ScalarKind.BOOLEAN
_MOST_SHOWN = 40
RESERVED = {name.casefold(): name for name in (*OWN_COLUMNS, TIME_SERIES_EVENTS)}
_ALWAYS_MAPS = {IDENTITY_MAP: IDENTITY_MAP_TYPE, SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE}


class ValueRefusedError(Exception):
    """A value that cannot be stored.

    `reason` is a whole sentence, `complaint` is it without its subject; `path` is empty where the row itself is meant.
    """

    def __init__(self, path: FieldPath, complaint: str, code: Reason = Reason.VALUE_INVALID) -> None:
        self.path, self.complaint, self.code = path, complaint, code
        self.reason = f"The field '{dotted_path(path)}' {complaint}." if path else f"The row {complaint}."
        super().__init__(self.reason)


def check_record(
    record: Mapping[str, Any], known: ObjectType, untyped: set[FieldPath]
) -> tuple[dict[str, Any], ObjectType]:
    """Bring one record into its stored form and learn from it.

    Args:
        record: A parsed JSON object.
        known: The fields as known so far.
        untyped: Gets the paths of arrays that teach no item type where none is known.

    Returns:
        The record, empty if it has no value, and the fields as known now: `known` itself if it taught nothing.

    Raises:
        ValueRefusedError: A name or value cannot be stored.
        TypeConflictError: A value contradicts a known type, or a name one that differs in case alone.
    """
    value, learned = _check_object(record, known, (), untyped)
    return value or {}, known if learned is None else learned


def check_value(
    value: Any, known: FieldType | None, path: FieldPath, untyped: set[FieldPath]
) -> tuple[Any, FieldType | None]:
    """Bring one JSON value at a path into its stored form and learn its type; `untyped` and errors as `check_record`.

    Numbers with a fraction may be `Decimal`, which keeps all their digits. Return the value, None where it is absent
    (S13), and its type: `known` itself if it taught nothing, which is None if no type is known.
    """
    if value is None:
        return None, known
    if isinstance(value, _NESTED):
        if len(path) > MAX_DEPTH:
            raise ValueRefusedError(path[:3], f"is nested deeper than {MAX_DEPTH} levels")
        if known is not None and not isinstance(known, _NESTED_TYPES[type(value)]) and teaches_nothing(value):
            check_value(value, None, path, set())  # refused whether a type is known or not
            return None, known
        if isinstance(value, list):
            return _check_array(value, known, path, untyped)
        if isinstance(known, MapType):
            return _check_map(value, known, path, untyped)
        return _check_object(value, known, path, untyped)
    return _check_single(value, known, path)


def teaches_nothing(value: Any) -> bool:
    """Whether a JSON value is null, or an object or array that holds nothing else at any depth (S13)."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
        elif found is not None:
            return False
    return True


def check_name(name: str, known: Mapping[str, FieldType], path: FieldPath, folded: dict[str, str]) -> None:
    """Refuse a new name for a field in the object at a path, which is empty for the record itself.

    `known` are the names beside it, which are others; `folded` gets them by their folded form, for the next call.

    Raises:
        ValueRefusedError: It is empty, has a dot or NUL, is not Unicode, is reserved, or is one too many.
        TypeConflictError: A known name differs in case alone.
    """
    if not name:
        raise ValueRefusedError((*path, "''"), "has an empty name")
    if "." in name:
        raise ValueRefusedError((*path, name), "has a dot in its name, as paths have between names")
    if "\0" in name:
        raise ValueRefusedError((*path, ascii(name)), "has a NUL character in its name")
    _check_text(name, (*path, ascii(name)))
    own = name.casefold()
    if not path and own in RESERVED:
        complaint = f"has the name of the system column '{RESERVED[own]}': give it another name"
        raise ValueRefusedError((name,), complaint)
    if len(folded) < len(known):
        folded.update((spelled.casefold(), spelled) for spelled in known)
    if len(folded) >= MAX_NAMES:
        raise ValueRefusedError((*path, name), f"stands in an object with more than {MAX_NAMES} names")
    if own in folded:
        raise differs_in_case((*path, name), folded[own])


# --- Objects, maps, arrays ---


def _check_object(
    value: Mapping[str, Any], known: FieldType | None, path: FieldPath, untyped: set[FieldPath]
) -> tuple[dict[str, Any] | None, ObjectType | None]:
    known = EMPTY if known is None else known
    if not isinstance(known, ObjectType):
        raise TypeConflictError(path, known, EMPTY)
    fields = known.fields
    kept: dict[str, Any] = {}
    grown: dict[str, FieldType] = {}
    folded: dict[str, str] = {}
    for name, member in value.items():
        if member is None:
            continue
        known_type = fields.get(name)
        # Most values are plain: the way past the calls makes the loop half as long.
        if type(known_type) is Scalar and _is_plain(member, known_type.kind):
            kept[name] = member
            continue
        if known_type is None and not path:
            known_type = _ALWAYS_MAPS.get(name)
        checked, learned = check_value(member, known_type, (*path, name), untyped)
        if checked is None:
            continue
        if name not in fields:
            # What teaches no field stands beside none.
            check_name(name, *((fields, path, folded) if learned is not None else ({}, path, {})))
        if learned is not None and learned is not fields.get(name):
            grown[name] = learned
            folded[name.casefold()] = name
        kept[name] = checked
    if grown:
        return kept, ObjectType({**fields, **grown})
    return kept or None, known if fields else None


def _is_plain(value: Any, kind: ScalarKind) -> bool:
    """Whether a value is stored under a known type as it is; False also where that takes a closer look."""
    found = type(value)
    if found is str:
        return kind is _TEXT and bool(value.isascii())
    if found is float:
        return kind is _DOUBLE and math.isfinite(value)
    return found is bool and kind is _BOOLEAN


def _check_map(
    value: Mapping[str, Any], known: MapType, path: FieldPath, untyped: set[FieldPath]
) -> tuple[dict[str, Any] | None, MapType]:
    kept: dict[str, Any] = {}
    value_type: FieldType | None = known.value
    for key, member in value.items():
        _check_text(key, (*path, ascii(key)))
        checked, value_type = check_value(member, value_type, (*path, "*"), untyped)
        if checked is not None:
            kept[key] = checked
    if value_type is None or value_type is known.value:
        return kept or None, known
    return kept or None, MapType(value_type)


def _check_array(
    value: list[Any], known: FieldType | None, path: FieldPath, untyped: set[FieldPath]
) -> tuple[list[Any], ArrayType | None]:
    if known is not None and not isinstance(known, ArrayType):
        raise TypeConflictError(path, known, "array")
    known_item = item_type = known.item if known else None
    if type(known_item) is Scalar and all(_is_plain(item, known_item.kind) for item in value):
        return value, known
    inside = (*path, "[]")
    kept = []
    for item in value:
        checked, item_type = check_value(item, item_type, inside, untyped)
        kept.append(checked)
    if item_type is None:
        untyped.add(path)
        return kept, None
    return kept, known if item_type is known_item else ArrayType(item_type)


# --- Single values ---


def _check_single(value: Any, known: FieldType | None, path: FieldPath) -> tuple[Any, FieldType]:
    if isinstance(value, str):
        _check_text(value, path)
        return (value, TEXT) if known is None else (_text_as(value, known, path), known)
    if isinstance(value, bool):
        if known is not None and known != BOOLEAN:
            raise TypeConflictError(path, known, BOOLEAN)
        return value, known or BOOLEAN
    if known is None:
        return _double(value, path), DOUBLE
    number = _number_as(value, known, path)
    if known == LONG and isinstance(number, int) and not _a_double_holds(number):
        known = LARGE_LONG
    return number, known


def _check_text(value: str, path: FieldPath) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueRefusedError(path, "holds half of a surrogate pair, which is not text") from None


def _text_as(value: str, known: FieldType, path: FieldPath) -> str | date:
    match known:
        case Scalar(ScalarKind.TEXT):
            return value
        case Scalar(ScalarKind.TIMESTAMP):
            return _read(parse_instant, value, path)
        case Scalar(ScalarKind.DATE):
            return _read(parse_day, value, path)
    raise TypeConflictError(path, known, TEXT)


def _read(read: Callable[[str], date], value: str, path: FieldPath) -> date:
    try:
        return read(value)
    except ValueError as error:
        raise ValueRefusedError(path, f"is {_shown(value)}, which {error}") from None


def _number_as(value: float | Decimal, known: FieldType, path: FieldPath) -> float | int | Decimal:
    match known:
        case Scalar(ScalarKind.DOUBLE):
            return _double(value, path)
        case Scalar(ScalarKind.LONG):
            return _long(value, path)
        case DecimalType():
            return _decimal(value, known, path)
    raise TypeConflictError(path, known, DOUBLE)


def _a_double_holds(integer: int) -> bool:
    return -EXACT_IN_A_DOUBLE <= integer <= EXACT_IN_A_DOUBLE or int(float(integer)) == integer


def _double(value: float | Decimal, path: FieldPath) -> float:
    try:
        double = float(value)
    except OverflowError:
        double = math.inf
    if not math.isfinite(double):
        raise ValueRefusedError(path, f"is {_shown(value)}, which no double can hold")
    if isinstance(value, int) and not _a_double_holds(value):
        raise ValueRefusedError(
            path,
            f"is the integer {_shown(value)}, which a double cannot hold exactly: declare the field "
            "as long or a decimal, or send it as text",
            Reason.NUMBER_NOT_EXACT,
        )
    return double


def _long(value: float | Decimal, path: FieldPath) -> int:
    # 3.0 is an integer too, as JSON Schema sees it. Compared first: 1e999999 as an int would fill the memory.
    if -_MAX_LONG <= value < _MAX_LONG and value == int(value):
        return int(value)
    raise ValueRefusedError(path, f"is {_shown(value)}, not an integer of 64 bits")


def _decimal(value: float | Decimal, known: DecimalType, path: FieldPath) -> Decimal:
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if exact.is_finite():
        digits = "".join(map(str, exact.as_tuple().digits))
        # The exponent of the last digit that is not a zero, and of the first.
        lowest = exact.adjusted() - len(digits.rstrip("0")) + 1
        if not exact or (lowest >= -known.scale and exact.adjusted() < known.precision - known.scale):
            return exact
    raise ValueRefusedError(path, f"is {_shown(value)}, which does not fit {known}", Reason.NUMBER_NOT_EXACT)


def _shown(value: object) -> str:
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
