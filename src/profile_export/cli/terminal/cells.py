"""How values are written: times, numbers, sizes, states, and texts of others, for people and for pipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from rich.text import Text

from profile_export.client import BatchState, JobState

_SIZE_STEP = 1000.0
_MINUTE = 60
_STATE_STYLES = {
    "NEW": "cyan",
    "PROCESSING": "blue",
    "CANCELLING": "yellow",
    "CANCELLED": "yellow",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "LOADING": "blue",
    "ABORTED": "yellow",
    "REVERTED": "yellow",
    "EXPIRED": "yellow",
    "REPLACED": "yellow",
}
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""Parts of words in some scripts, and of some names; they steer no terminal."""


class Size(int):
    """A number of bytes."""


Cell: TypeAlias = str | int | datetime | timedelta | Text
"""What a table or a fact may hold; a text is taken as it is, whatever stands in it."""


def shown(cell: Cell) -> Text:
    """Write a cell for a person, on one line."""
    if isinstance(cell, Text):
        return Text(one_line(cell.plain), style=cell.style, spans=cell.spans)
    if isinstance(cell, Size):
        return Text(size(cell))
    if isinstance(cell, int):
        return Text(count(cell))
    if isinstance(cell, timedelta):
        return Text(span(cell))
    return Text(plain(cell))


def plain(cell: Cell) -> str:
    """Write a cell for a pipe, on one line: numbers in digits, sizes in bytes, lengths of time in seconds."""
    if isinstance(cell, Text):
        return one_line(cell.plain)
    if isinstance(cell, datetime):
        return moment(cell)
    if isinstance(cell, timedelta):
        return f"{cell.total_seconds():.3f}"
    return one_line(cell) if isinstance(cell, str) else f"{cell:d}"


def one_line(text: str) -> str:
    """Write a text of others on one line, without what would steer the terminal."""
    return "".join(map(_letter, text))


def _letter(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS:
        return letter
    return " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"


def to_the_second(time: datetime) -> datetime:
    """Return the second that a time is in, for lists of what is never chosen by a time more exact than that."""
    return time.replace(microsecond=0)


def values_by_path(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """List the values in a row by their field paths; an array is one value."""
    if isinstance(value, dict) and value:
        for name, member in sorted(value.items()):
            yield from values_by_path(member, f"{path}.{name}" if path else name)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        yield path, text


def word(enum: Any, value: int) -> str:
    """Return the name of a member of an enum of the contract, such as SUCCEEDED, without that of the enum."""
    name: str = enum.Name(value)
    return name.removeprefix(enum.Name(0).removesuffix("UNSPECIFIED"))


def state(value: JobState.ValueType) -> Text:
    """Return the state of a job, coloured."""
    return _coloured(word(JobState, value))


def batch_state(value: BatchState.ValueType) -> Text:
    """Return the state of a batch, coloured."""
    return _coloured(word(BatchState, value))


def _coloured(name: str) -> Text:
    return Text(name, style=_STATE_STYLES.get(name, ""))


def count(number: int) -> str:
    """Write 1234567 as 1,234,567."""
    return f"{number:,d}"


def several(number: int, noun: str) -> str:
    """Write a number of things: 1 file, 2 files."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Write 1234567 as 1.2 MB."""
    if number < _SIZE_STEP:
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB"):
        number /= _SIZE_STEP
        if number < _SIZE_STEP:
            return f"{number:.1f} {unit}"
    return f"{number / _SIZE_STEP:,.1f} TB"


def span(time: timedelta) -> str:
    """Write a length of time as 83 ms, 1.24 s or 3 min 05 s."""
    seconds = time.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.2f} s"
    return f"{seconds // _MINUTE:,.0f} min {seconds % _MINUTE:02.0f} s"


def kept_for(time: timedelta) -> str:
    """Write how long something is kept: 30 days, 1 day or 36 hours."""
    unit, number = ("day", time / timedelta(days=1))
    if number != int(number):
        unit, number = ("hour", time / timedelta(hours=1))
    return f"{number:,.6g} {unit}{'' if number == 1 else 's'}"


def moment(time: datetime, *, clock: bool = False) -> str:
    """Write an instant in the zone of the terminal, exactly and with the offset, so that it can be typed back.

    With `clock` it is the time of day only, to the millisecond. A time without a zone is one in UTC.
    """
    instant = time.replace(tzinfo=time.tzinfo or UTC)
    try:
        local = instant.astimezone()
    except (OverflowError, ValueError, OSError):  # the first and the last day there is, in some zones
        local = instant
    return local.timetz().isoformat("milliseconds") if clock else local.isoformat()
