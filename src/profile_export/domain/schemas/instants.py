"""Instants and days as text: one grammar for all formats, RFC 3339 and what databases write (see docs/formats.md).

An offset is always required: nobody can say which instant a time without one is. A fraction may have any number of
digits as long as those behind the microsecond are zeros, so that nothing is ever rounded. There are no leap seconds, no
24:00 and only the years 1 to 9999.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_INSTANT = re.compile(
    rf"({_DAY}[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9])"
    r"(?:[.,]([0-9]+))?"
    r"(?: ?(?:([Zz]|[Uu][Tt][Cc])|([+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)))?"
)
_DATE = re.compile(_DAY)
_MICROSECOND_DIGITS = 6


def parse_instant(text: str) -> datetime:
    """Read an instant, as an aware datetime in UTC.

    Raises:
        ValueError: It is none; the text says why as a complaint without its subject, such as "has no offset".
    """
    found = _INSTANT.fullmatch(text)
    if found:
        time, fraction, zulu, offset = found.groups()
        if fraction and fraction[_MICROSECOND_DIGITS:].strip("0"):
            message = "has digits behind the microsecond, which would be lost: round it to six"
            raise ValueError(message)
        if not zulu and not offset:
            message = "has no offset: write one behind it, such as Z for UTC (2026-01-31T09:30:00Z)"
            raise ValueError(message)
        try:
            return datetime.fromisoformat(f"{time}.{fraction or 0}{offset or '+00:00'}").astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # a 30th of February, or an offset that leads out of the calendar
    message = "is not an instant with an offset such as 2026-01-31T09:30:00Z (RFC 3339)"
    raise ValueError(message)


def parse_day(text: str) -> date:
    """Read a day such as 2026-01-31.

    Raises:
        ValueError: It is none; the text is a complaint without its subject.
    """
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # a 30th of February
    message = "is not a date such as 2026-01-31"
    raise ValueError(message)
