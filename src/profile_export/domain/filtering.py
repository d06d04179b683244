"""What a list leaves out and how it is ordered: its `filter` and `order_by`, as every list of the contract has them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from profile_export.domain.errors import InvalidArgumentError

Reader = Callable[[str], Any]
"""Reads the value of a condition; raises ValueError, whose text says what a value must be, if it is none."""

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ONE = (
    r"""(?P<field>[A-Za-z_][\w.]*)\s*(?P<operator>[!<>]=|[=<>])\s*"""
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s"'=<>!]+))\s*"""
)
_FIRST, _NEXT = re.compile(rf"\s*{_ONE}", re.DOTALL), re.compile(rf"AND\s+{_ONE}", re.DOTALL)
_END = re.compile(r"\s*\Z")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Condition:
    """What a field of everything listed has to be."""

    field: str
    operator: str
    value: Any

    def holds(self, value: Any) -> bool:
        """Compare the field's value; text compares as its UTF-8 bytes do."""
        return _OPERATORS[self.operator](value, self.value)


Filter = tuple[Condition, ...]
"""Conditions that all have to hold; none lets everything through."""


@dataclass(frozen=True, slots=True)
class Order:
    """By which field a list is ordered, and whether the greatest comes first."""

    field: str
    descending: bool = False


def read_filter(text: str, fields: Mapping[str, Reader]) -> Filter:
    """Read a filter such as `dataset_id = 5f0c AND ingest_time > "2026-01-31T00:00:00Z"`; empty text is no filter.

    Args:
        text: Conditions with AND between them. A value that holds blanks, quotes or operators stands in quotes, single
            or double, in which a backslash takes the next character as it is.
        fields: What reads the values of each field that may be named.

    Raises:
        InvalidArgumentError: It is no such text, names another field, or a value is not of the field's type.
    """
    conditions: list[Condition] = []
    place = 0
    while not _END.match(text, place):
        found = (_NEXT if conditions else _FIRST).match(text, place)
        if found is None:
            expected = "AND and a condition" if conditions else "a condition"
            raise _refused(
                f"needs {expected} such as `{next(iter(fields))} = value`, not '{_from(text, place)}'."
            )
        conditions.append(_condition(found, fields))
        place = found.end()
    return tuple(conditions)


def read_order(text: str, fields: Collection[str]) -> Order | None:
    """Read an order such as `create_time desc`; None for empty text.

    Raises:
        InvalidArgumentError: It names no field that may be named, or says more.
    """
    match text.split():
        case []:
            return None
        case [field] if field in fields:
            return Order(field)
        case [field, "desc"] if field in fields:
            return Order(field, descending=True)
    known = " or ".join(f"'{field}'" for field in fields)
    raise InvalidArgumentError.of_field("order_by", f"must be {known}, perhaps with ' desc'.")


def instant(text: str) -> datetime:
    """Read the value of a condition on an instant.

    Raises:
        ValueError: It is none, or says no offset from UTC.
    """
    message = "a time with an offset, such as 2026-01-31T00:00:00Z"
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(message) from None
    if found.tzinfo is None:
        raise ValueError(message)
    return found


def _condition(found: re.Match[str], fields: Mapping[str, Reader]) -> Condition:
    field = found["field"]
    if field not in fields:
        raise _refused(f"knows no field '{field[:_SHOWN]}', only {', '.join(fields)}.")
    quoted = next((text for text in (found["double"], found["single"]) if text is not None), None)
    value = found["bare"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
    try:
        return Condition(field, found["operator"], fields[field](value))
    except ValueError as error:
        raise _refused(f"compares '{field}' with '{value[:_SHOWN]}', which is not {error}.") from None


def _from(text: str, place: int) -> str:
    return text[place : place + _SHOWN].strip()


def _refused(description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field("filter", description)
