"""CSV and TSV: a header with field paths, then one record per row, in UTF-8, with commas or tabs between cells.

Dotted names nest. Blanks around names and values are no part of them, and an empty cell is absent. A cell is text
unless another type is known for its field; then it holds what JSON would write there, without quotes around it.

A row has exactly as many cells as the header. A shorter one is refused too: it was cut off, or it is a line out of the
middle of a cell whose quote was never closed, and must not pass for a record. Such a quote costs its own line only:
reading goes on with the next one. The characters that make CSV (RFC 4180) are those of Python's reader; a blank between
a closing quote and a comma is refused. A first column without a name, as pandas and R write for the numbers of rows, is
left out. A row that repeats the header, or begins with a byte order mark, is refused: files were joined.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO, NamedTuple

from profile_export.domain.schemas.learning import MAX_DEPTH, ValueRefusedError
from profile_export.domain.schemas.types import (
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    DecimalType,
    FieldPath,
    FieldType,
    ObjectType,
    Scalar,
    ScalarKind,
    dotted_path,
    type_at,
)
from profile_export.ingest.formats.json import (
    BYTE_ORDER_MARK,
    check_is_text,
    exact_number,
    joined_file,
    json_decoder,
    json_refusal,
    old_line_ends,
)
from profile_export.ingest.output import MAX_TEXT_BYTES, FileRefusedError
from profile_export.ingest.rows.reading import AppliedReading
from profile_export.ingest.rows.rows import SentRow, too_large
from profile_export.ingest.task import IngestTask

csv.field_size_limit(sys.maxsize)  # for the whole process; rows are bounded before the reader sees them

_BLANKS = " \t"
_LINE_END = b"\r\n"
_LONE_RETURN = re.compile(rb"\r(?!\n)")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_NAMED = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TRUTHS = {"true": True, "false": False}

_Cell = Callable[[str], Any]
"""What a cell that is not empty holds; raises a ValueRefusedError."""


class _Column(NamedTuple):
    """Where the cells of a column go in the record; without `read` they are text."""

    parents: FieldPath
    name: str
    read: _Cell | None


class _TooLongError(Exception):
    """A row has more bytes than it may."""


def read_csv(task: IngestTask, reading: AppliedReading) -> Iterator[SentRow]:
    """Read an upload of CSV or TSV.

    Raises:
        FileRefusedError: It has no header that can be used.
    """
    with task.source.open("rb") as source:
        check_is_text(source)
        lines = _Lines(source, task.max_row_bytes)
        delimiter = _DELIMITERS[task.format]
        reader = csv.reader(lines, strict=True, skipinitialspace=True, delimiter=delimiter)
        header = _header(reader, lines)
        columns = _columns(header, delimiter, task, reading)
        number = 0
        while True:
            lines.begin()
            cells = _next(reader, lines)
            if cells is None:
                return
            number += 1
            text = lines.text()
            if not text.isspace():
                record = _record(cells, header, columns, reading) if isinstance(cells, list) else cells
                yield SentRow(number, joined_file() if text.startswith(BYTE_ORDER_MARK) else record, text)


def _next(reader: Iterator[list[str]], lines: _Lines) -> list[str] | ValueRefusedError | None:
    """Return the cells of the next row or why it is refused; None at the end."""
    try:
        cells = next(reader, None)
    except _TooLongError:
        refused = too_large(lines.limit)
        if lines.reopen():
            complaint = f"{refused.complaint}, or a quote that is never closed"
            refused = ValueRefusedError((), complaint, refused.code)
        return refused
    except csv.Error as error:
        if lines.at_end:
            lines.reopen()
            return _refused("has a quote that is never closed")
        if _LONE_RETURN.search(lines.text().rstrip(_LINE_END)):
            return _refused(
                "holds a CR alone: end lines with LF or CRLF, and put cells with line breaks into quotes"
            )
        return _refused(f"is not CSV: {error}")
    return lines.refusal or cells


def _refused(complaint: str) -> ValueRefusedError:
    return ValueRefusedError((), complaint)


class _Lines:
    """The lines of the file, for a reader that asks for more than one where a cell holds line breaks."""

    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source = source
        self._most = max(limit, MAX_TEXT_BYTES) + len(_LINE_END) + 1
        self._row: list[bytes] = []
        self._size = 0
        self._second_line = 0
        self.limit = limit
        self.at_end = False
        self.refusal: ValueRefusedError | None = None
        if source.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            source.seek(0)

    def begin(self) -> None:
        """Begin a row with the next line."""
        self._row.clear()
        self._size = 0
        self.refusal = None

    def text(self) -> bytes:
        """Return the lines of the row so far."""
        return self._row[0] if len(self._row) == 1 else b"".join(self._row)

    def reopen(self) -> bool:
        """Make the second line of the row, if it has one, the next to be read."""
        if len(self._row) == 1:
            return False
        self._source.seek(self._second_line)
        del self._row[1:]
        self.at_end = False
        return True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._row) == 1:
            self._second_line = self._source.tell()
        line = self._source.readline(self._most)
        if not line:
            self.at_end = True
            raise StopIteration
        self._row.append(line)
        self._size += len(line)
        if self._size > self.limit and self._size - len(line) + len(line.rstrip(_LINE_END)) > self.limit:
            while len(line) == self._most and not line.endswith(b"\n"):
                line = self._source.readline(self._most)
            raise _TooLongError
        # The row is read to its end all the same.
        if b"\0" in line:
            self.refusal = _refused("holds a NUL byte")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            byte = self._size - len(line) + error.start + 1
            self.refusal = _refused(f"is not UTF-8 at byte {byte}: write the file as UTF-8")
            return line.decode(errors="replace")


# --- The header ---


def _header(reader: Iterator[list[str]], lines: _Lines) -> list[str]:
    lines.begin()
    names = _next(reader, lines)
    if isinstance(names, ValueRefusedError):
        if _LONE_RETURN.search(lines.text().rstrip(_LINE_END)):
            raise old_line_ends()
        message = f"The header of the file {names.complaint}."
        raise FileRefusedError(message)
    if not names:
        message = "The file has no CSV header: its first line must hold the names of the fields."
        raise FileRefusedError(message)
    return [name.strip(_BLANKS) for name in names]


def _columns(
    header: list[str], delimiter: str, task: IngestTask, reading: AppliedReading
) -> list[_Column | None]:
    """Return what the names of a header say; None for a column that is left out.

    Raises:
        FileRefusedError: A name is empty, stands twice, or is both a value and an object; or there is one column that
            looks like several.
    """
    _check_one_column(header, delimiter)
    names = reading.names(header)
    fields = ObjectType({SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE, **task.fields.fields})
    decoder = json_decoder(fields)
    columns: list[_Column | None] = []
    values: set[FieldPath] = set()
    objects: set[FieldPath] = set()
    for place, name in enumerate(names, 1):
        path = tuple(name.split("."))
        if not name and place == 1 and len(names) > 1:
            reading.notes.append("The first column has no name and was left out.")
            columns.append(None)
            continue
        if not all(path):
            message = f"The header has an empty name in column {place}: {name!r}."
            raise FileRefusedError(message)
        if len(path) > MAX_DEPTH:
            message = (
                f"The header has a name in column {place} that is nested deeper than {MAX_DEPTH} levels."
            )
            raise FileRefusedError(message)
        if path in values:
            message = f"The header has the name '{name}' twice."
            raise FileRefusedError(message)
        values.add(path)
        objects.update(path[:depth] for depth in range(1, len(path)))
        read = _cell_reader(type_at(fields, path), path, decoder)
        columns.append(_Column(path[:-1], path[-1], read))
    both = sorted(values & objects)
    if both:
        message = f"The header has '{dotted_path(both[0])}' as a value and as an object of other names."
        raise FileRefusedError(message)
    return columns


def _check_one_column(names: list[str], delimiter: str) -> None:
    other = next((mark for mark in ";\t|," if mark != delimiter and mark in names[0]), "")
    if len(names) > 1 or not other:
        return
    way_out = {"\t": "Send it as TSV", ",": "Send it as CSV"}.get(other, "Write it with commas")
    message = (
        f"One column was found, {names[0][:80]!r}, where names of fields are expected with {_NAMED[delimiter]} between "
        f"them: the file has {_NAMED[other]} there. {way_out}."
    )
    raise FileRefusedError(message)


# --- Rows ---


def _record(
    cells: list[str], header: list[str], columns: list[_Column | None], reading: AppliedReading
) -> dict[str, Any] | ValueRefusedError:
    if len(cells) != len(columns):
        return _refused(f"has {len(cells)} cells, but the header has {len(columns)}")
    cells = [cell.strip(_BLANKS) for cell in cells]
    if cells == header:
        return _refused("repeats the header: files that were joined have one each")
    record: dict[str, Any] = {}
    try:
        for column, text in zip(columns, reading.cells(cells), strict=True):
            if text and column:
                parents, name, read = column
                holder = record
                for parent in parents:
                    holder = holder.setdefault(parent, {})
                holder[name] = read(text) if read else text
    except ValueRefusedError as refused:
        return refused
    return record


def _cell_reader(known: FieldType | None, path: FieldPath, decoder: json.JSONDecoder) -> _Cell | None:
    match known:
        case None | Scalar(ScalarKind.TEXT | ScalarKind.DATE | ScalarKind.TIMESTAMP):
            return None  # what is made of text is said elsewhere
        case Scalar(ScalarKind.BOOLEAN):
            return lambda text: _boolean(text, path)
        case Scalar(ScalarKind.DOUBLE):
            return lambda text: _number(text, path, float)
        case Scalar() | DecimalType():
            return lambda text: _number(text, path, exact_number)
    return lambda text: _json(text, path, decoder)


def _boolean(text: str, path: FieldPath) -> bool:
    truth = _TRUTHS.get(text.lower())
    if truth is None:
        raise ValueRefusedError(path, f"is {text[:40]!r}, neither true nor false")
    return truth


def _number(text: str, path: FieldPath, fraction: Callable[[str], float | Decimal]) -> float | Decimal:
    found = _NUMBER.fullmatch(text)
    if not found:
        raise ValueRefusedError(path, f"is {text[:40]!r}, not a number as JSON writes it")
    try:
        return fraction(text) if found[2] or found[3] else int(text)
    except (ValueError, ValueRefusedError) as error:
        raise _at(path, json_refusal(error)) from None


def _json(text: str, path: FieldPath, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError, ValueRefusedError) as error:
        raise _at(path, json_refusal(error)) from None


def _at(path: FieldPath, refused: ValueRefusedError) -> ValueRefusedError:
    return ValueRefusedError(path, refused.complaint, refused.code)
