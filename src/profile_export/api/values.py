"""Values of rows as JSON has them, for people who look at some of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from google.protobuf.struct_pb2 import Struct

from profile_export.domain.paging import MAX_PAGE_BYTES
from profile_export.domain.schema import EXACT_IN_A_DOUBLE

MOST_LEVELS = 30
"""How many objects, arrays and maps stand in one another in an answer.

Each is up to three messages in one another, and no language's protobuf reads more than a hundred. Data goes deeper.
"""


def rows_that_fit(values: Iterable[Mapping[str, object]]) -> Sequence[Struct]:
    """Write rows as objects, as many as an answer has room for, and at least one."""
    written: list[Struct] = []
    room = MAX_PAGE_BYTES
    for value in values:
        message = row(value)
        room -= message.ByteSize()
        if written and room < 0:
            break
        written.append(message)
    return written


def row(value: Mapping[str, object]) -> Struct:
    """Write a row as an object; what it does not have is left out."""
    message = Struct()
    message.update(plain(value))
    return message


def plain(value: Any, level: int = 0) -> Any:
    """Return a value for `google.protobuf.Struct`, whose numbers are doubles.

    Instants are RFC 3339 text in UTC, days ISO text; decimals, and integers that a double cannot hold exactly, are
    text. Members that are null are left out, items of an array stay. What lies below `MOST_LEVELS` is JSON text.
    """
    match value:
        case Mapping():
            written: Any = {
                name: plain(member, level + 1) for name, member in value.items() if member is not None
            }
        case list():
            written = [plain(item, level + 1) for item in value]
        case _:
            return _single(value)
    return json.dumps(written, ensure_ascii=False) if level == MOST_LEVELS else written


def _single(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Decimal():
            return str(value)
        case int() if not -EXACT_IN_A_DOUBLE <= value <= EXACT_IN_A_DOUBLE:
            return str(value)
    return value
