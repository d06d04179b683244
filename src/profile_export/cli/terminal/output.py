"""Where answers go: tables for people, columns between tabs for pipes, JSON for programs, bars or lines of progress."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from profile_export.cli.terminal.cells import Cell, one_line, plain, shown, size

_WIDE = 1000
_GAP = 3
_NARROWEST = 16
"""A column of free text gets at least so many columns of the terminal; where there is no room, there is no table."""
_SHORT_SECONDS = 10.0
_TELL_SECONDS = 5.0

Fact: TypeAlias = tuple[str, Cell | Sequence[Cell] | None]
"""A name and what it is about; several are a line each, None is no fact. An empty name is that of the fact before."""


def console(*, stderr: bool = False) -> Console:
    """Return where answers, or with `stderr` everything else, go; for a pipe or a file lines are never wrapped or cut.

    Whatever is printed is data: it holds no markup, and no names of emoji.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=None if is_terminal else False,
        width=None if is_terminal else _WIDE,
    )


def complain(line: str) -> None:
    """Write one line about an error."""
    screen = console(stderr=True)
    prefix = Text("profile-export: ", style="bold red" if screen.is_terminal else "")
    screen.print(prefix + Text(one_line(line)), soft_wrap=True)


def remark(line: str) -> None:
    """Write one line beside the answer."""
    console(stderr=True).print(Text(one_line(line)), soft_wrap=True)


def print_json(data: Any) -> None:
    """Write data as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_id(made: Any) -> None:
    """Write the id of what was made, for a script to take."""
    typer.echo(made.id)


def print_json_line(data: Any) -> None:
    """Write data as JSON on one line, at once."""
    typer.echo(json.dumps(data, ensure_ascii=False))


# --- Tables and facts ---


def table(*headers: str, numbers: Iterable[str] = (), gap: int = _GAP) -> Table:
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
    rows: Iterable[Sequence[Cell]],
    *,
    empty: str,
    free: Sequence[str] = (),
    once: Sequence[str] = (),
    stderr: bool = False,
) -> None:
    """Write rows, or one sentence if there are none.

    A pipe gets the headers and a line for each row, between tabs. A terminal gets a table, or where that does not fit,
    each row as cells with their names, as many on a line as there is room for. Nothing is cut.

    Args:
        headers: The names of the columns.
        rows: The cells of each.
        empty: The sentence.
        free: The columns of free text, which may take several lines. Ids, numbers and times never do.
        once: The first columns, in which an empty cell means what stands above it; a pipe gets that again.
        stderr: Whether they stand beside the answer.
    """
    listed = [tuple(row) for row in rows]
    screen = console(stderr=stderr)
    if not listed:
        screen.print(Text(empty, style="dim"), soft_wrap=True)
    elif not screen.is_terminal:
        above: Sequence[Cell] = headers
        for line in (headers, *listed):
            above = [
                above[place] if place < len(once) and cell == "" else cell for place, cell in enumerate(line)
            ]
            typer.echo("\t".join(map(plain, above)), err=stderr)
    else:
        _print_for_people(screen, headers, listed, free)


def _print_for_people(
    screen: Console, headers: Sequence[str], listed: Sequence[Sequence[Cell]], free: Sequence[str]
) -> None:
    cells = [[shown(cell) for cell in row] for row in listed]
    widths = [
        max(len(header), *(row[place].cell_len for row in cells)) for place, header in enumerate(headers)
    ]
    needed = sum(
        min(width, _NARROWEST) if header in free else width
        for header, width in zip(headers, widths, strict=True)
    )
    if needed + _GAP * (len(headers) - 1) > screen.width:
        for row in cells:
            _print_flowing(
                screen,
                [
                    Text.assemble((f"{name} ", "dim"), cell)
                    for name, cell in zip(headers, row, strict=True)
                    if cell.plain
                ],
            )
        return
    made = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    for place, (header, width) in enumerate(zip(headers, widths, strict=True)):
        is_number = all(isinstance(row[place], int) for row in listed)
        least = None if header in free else width
        made.add_column(
            Text(header),
            justify="right" if is_number else "left",
            min_width=least,
            no_wrap=header not in free,
            overflow="fold",
        )
    for row in cells:
        made.add_row(*row)
    screen.print(made)


def _print_flowing(screen: Console, parts: Sequence[Text]) -> None:
    """Write parts one after the other, as many on a line as there is room for; further lines are indented."""
    line = Text()
    for part in parts:
        if line.plain.strip() and line.cell_len + _GAP + part.cell_len > screen.width:
            screen.print(line, soft_wrap=True)
            line = Text("  ") + part
        else:
            line = Text.assemble(line, " " * _GAP if line.plain else "", part)
    screen.print(line, soft_wrap=True)


def print_facts(facts: Iterable[Fact]) -> None:
    """Write facts about one thing, each with its name before it."""
    screen = console()
    if screen.is_terminal:
        _print_lines(screen, [(name, shown(cell)) for name, cell in _lines(facts)])
        return
    for name, cell in _lines(facts):
        typer.echo(f"{name}\t{plain(cell)}")


def fact_table(facts: Iterable[Fact]) -> Table:
    """Return facts about one thing, each with its name before it."""
    return _table_of([(name, shown(cell)) for name, cell in _lines(facts)])


def _lines(facts: Iterable[Fact]) -> Iterator[tuple[str, Cell]]:
    for name, found in facts:
        if isinstance(found, Sequence) and not isinstance(found, str):
            yield from ((name if place == 0 else "", cell) for place, cell in enumerate(found))
        elif found is not None:
            yield name, found


def _print_lines(screen: Console, lines: Sequence[tuple[str, Text]]) -> None:
    names = max((len(name) for name, _ in lines), default=0)
    room = screen.width - names - _GAP
    longest = max((len(part) for _, text in lines for part in text.plain.split()), default=0)
    if longest <= room:
        screen.print(_table_of(lines))
        return
    # The terminal itself breaks what is too long for it, so that whoever copies an id gets it in one piece.
    for name, text in lines:
        screen.print(Text.assemble((name.ljust(names + _GAP), "dim"), text), soft_wrap=True)


def _table_of(lines: Sequence[tuple[str, Text]]) -> Table:
    made = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, text in lines:
        made.add_row(Text(name), text)
    return made


# --- Progress ---


class Bars(Progress):
    """Bars of progress; where the output is no terminal, a line for each that moved, now and then.

    Args:
        columns: What a bar is made of.
        screen: Where they are.
        line: Writes how far a task is. Empty: nothing is to be told.
        transient: Whether the bars vanish in the end.
        first: After how many seconds the first lines come: what is over sooner needs none.
        every: How many seconds lie between the lines.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        screen: Console,
        line: Callable[[Task], str],
        transient: bool = False,
        first: float = _SHORT_SECONDS,
        every: float = _TELL_SECONDS,
    ) -> None:
        super().__init__(*columns, console=screen, transient=transient, disable=not screen.is_terminal)
        self._line, self._first, self._every = line, first, every
        self._told: dict[int, str] = {}
        self._is_over = threading.Event()
        self._telling = threading.Thread(target=self._tell, daemon=True)

    def start(self) -> None:
        """Begin to show them."""
        super().start()
        if self.disable:
            self._telling.start()

    def stop(self) -> None:
        """End."""
        self._is_over.set()
        super().stop()

    def _tell(self) -> None:
        pause = self._first
        while not self._is_over.wait(pause):
            pause = self._every
            for task in self.tasks:
                line = self._line(task)
                # A single one is told in any case: that nothing has moved is news as well.
                if line and (len(self.tasks) == 1 or self._told.get(task.id) != line):
                    self._told[task.id] = line
                    self.console.print(Text(one_line(line)), soft_wrap=True)


def transfer(screen: Console) -> Bars:
    """Return bars for bytes, each a task with a `note` behind it."""
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        screen=screen,
        line=_transferred,
    )


def _transferred(task: Task) -> str:
    if task.finished and not task.fields["note"]:
        return ""
    total = f" of {size(task.total)}" if task.total else ""
    parts = (task.description, f"{size(task.completed)}{total}", task.fields["note"])
    return "  ".join(part for part in parts if part)
