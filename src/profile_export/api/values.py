"""Values of rows as JSON has them, for people who look at some of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from profile_export.domain.schema import EXACT_IN_A_DOUBLE


def plain(value: Any) -> Any:
    """Return a value for `google.protobuf.Struct`, whose numbers are doubles.

    Instants are RFC 3339 text in UTC, days ISO text; decimals, and integers that a double cannot hold exactly, are
    text. Members that are null are left out, items of an array stay.
    """
    match value:
        case Mapping():
            return {name: plain(member) for name, member in value.items() if member is not None}
        case list():
            return [plain(item) for item in value]
    return _single(value)


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
