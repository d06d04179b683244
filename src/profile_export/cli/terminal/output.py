"""How answers look: short tables for people, plain columns for pipes, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from profile_export.client import BatchState, JobState

_WIDE = 1000
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
_NUMBERS = {"profiles", "events", "version", "rows", "files", "size", "rejected"}


def console(*, stderr: bool = False) -> Console:
    """Return the terminal; for a pipe or a file its lines are never wrapped or cut."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, width=None if stream.isatty() else _WIDE)


def complain(line: str) -> None:
    """Write one line about an error."""
    prefix = Text("profile-export: ", style="bold red" if sys.stderr.isatty() else "")
    console(stderr=True).print(prefix + Text(line), soft_wrap=True)


def print_json(data: Any) -> None:
    """Write data as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_id(made: Any) -> None:
    """Write the id of what was made, for a script to take."""
    typer.echo(made.id)


def print_json_line(data: Any) -> None:
    """Write data as JSON on one line, at once."""
    typer.echo(json.dumps(data, ensure_ascii=False))


def table(*headers: str, numbers: Iterable[str] = (), gap: int = 3) -> Table:
    """Return an empty table; the columns named in `numbers` stand to the right."""
    made = Table(box=None, padding=(0, gap, 0, 0), header_style="dim")
    right = set(numbers)
    for header in headers:
        made.add_column(
            Text(header), justify="right" if header in right else "left", overflow="ellipsis", no_wrap=True
        )
    return made


def print_rows(
    headers: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    empty: str,
) -> None:
    """Write rows as a table, or one sentence if there are none."""
    made = table(*headers, numbers=_NUMBERS)
    made.columns[-1].no_wrap = False  # where room is short the last column wraps, and no id is cut
    for row in rows:
        made.add_row(*row)
    console().print(made if made.row_count else Text(empty, style="dim"))


def print_facts(rows: Iterable[tuple[str, RenderableType | None]]) -> None:
    """Write facts about one thing."""
    console().print(fact_table(rows))


def fact_table(rows: Iterable[tuple[str, RenderableType | None]]) -> Table:
    """Return facts about one thing, each with its name before it; None is no fact."""
    made = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in rows:
        if fact is not None:
            made.add_row(name, fact)
    return made


def values_by_path(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """List the values in a row by their field paths, on one line each; an array is one value."""
    if isinstance(value, dict) and value:
        for name, member in sorted(value.items()):
            yield from values_by_path(member, f"{path}.{name}" if path else name)
    else:
        yield (
            one_line(path),
            one_line(value)
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, sort_keys=True),
        )


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


def one_line(text: str) -> str:
    """Write a text of others on one line, without what would steer the terminal."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split())
    )


def count(number: int) -> str:
    """Write 1234567 as 1,234,567."""
    return f"{number:,}"


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
    """Write an instant in the zone of the terminal; with `clock` the time of day only, to the millisecond."""
    local = time.replace(tzinfo=time.tzinfo or UTC).astimezone()
    return local.strftime("%H:%M:%S.%f")[:-3] if clock else local.strftime("%Y-%m-%d %H:%M:%S")


def transfer(screen: Console) -> Progress:
    """Return a progress bar for bytes, each task with a `note` behind it; silent where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=screen,
        disable=not screen.is_terminal,
    )
