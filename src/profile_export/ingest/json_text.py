"""Parsing JSON with what we promise of it: no name twice, only what is JSON, and every digit that counts."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from profile_export.domain.learning import MAX_DEPTH, ValueRefusedError
from profile_export.domain.reasons import Reason
from profile_export.domain.schema import ArrayType, DecimalType, FieldType, MapType, ObjectType


def json_decoder(known: FieldType) -> json.JSONDecoder:
    """Return a decoder for values of a known type; what it raises is for `json_refusal`."""
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_constant=_refuse_constant,
        # Where a field is decimal every digit counts; elsewhere floats are much faster.
        parse_float=exact_number if _has_decimal(known) else None,
    )


def json_refusal(error: ValueError | RecursionError | ValueRefusedError) -> ValueRefusedError:
    """Return why a text is refused, from what decoding it from UTF-8 or by `json_decoder` raised."""
    match error:
        case ValueRefusedError():
            return error
        case UnicodeDecodeError():
            complaint, code = f"is not UTF-8 at byte {error.start + 1}", Reason.JSON_INVALID
        case json.JSONDecodeError():
            complaint = f"is not JSON: {error.msg} at character {error.pos + 1}"
            code = Reason.JSON_INVALID
        case RecursionError():
            complaint, code = f"is nested deeper than {MAX_DEPTH} levels", Reason.VALUE_INVALID
        case _:
            complaint, code = "has an integer of thousands of digits", Reason.NUMBER_NOT_EXACT
    return ValueRefusedError((), complaint, code)


def exact_number(text: str) -> Decimal:
    """Read a number as JSON writes it with all its digits.

    Raises:
        ValueRefusedError: Its exponent has some twenty digits.
    """
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueRefusedError((), f"has the number {text[:40]}, which is beyond reckoning") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            complaint = f"has the name {name[:40]!r} twice in one object"
            raise ValueRefusedError((), complaint, Reason.JSON_INVALID)
        seen.add(name)
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueRefusedError((), f"is not JSON: {name} is no number there", Reason.JSON_INVALID)


def _has_decimal(known: FieldType) -> bool:
    match known:
        case ObjectType(fields):
            return any(_has_decimal(member) for member in fields.values())
        case ArrayType(inner) | MapType(inner):
            return _has_decimal(inner)
    return isinstance(known, DecimalType)
