"""Reads two formats in UTF-8: JSON lines, with one object per line, and one JSON array of objects.

Blank lines of JSON lines are skipped, but have a row number. The items of an array are read one by one out of a window
of the text, which grows only while the item in it may still be accepted. An item whose end its brackets show is refused
alone, whatever is wrong inside it. Where they show no end, or the text there is no JSON, nobody can say where the next
item begins, so the file is refused.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO, NoReturn

from profile_export.domain.errors import Reason
from profile_export.domain.schemas.learning import MAX_DEPTH, ValueRefusedError
from profile_export.domain.schemas.types import (
    LARGE_LONG,
    LONG,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)
from profile_export.ingest.output import MAX_TEXT_BYTES, FileRefusedError
from profile_export.ingest.rows.reading import AppliedReading
from profile_export.ingest.rows.rows import SentRow, too_large
from profile_export.ingest.task import IngestTask


def json_decoder(known: FieldType) -> json.JSONDecoder:
    """Return a decoder for values of a known type. `json_refusal` turns what it raises into a refusal."""
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_constant=_refuse_constant,
        parse_float=_parse_float(known),
    )


def json_refusal(error: ValueError | RecursionError | ValueRefusedError) -> ValueRefusedError:
    """Return the refusal of a text for the error that decoding it from UTF-8 or by `json_decoder` raised."""
    match error:
        case ValueRefusedError():
            return error
        case UnicodeDecodeError():
            complaint = f"is not UTF-8 at byte {error.start + 1}: write the file as UTF-8"
            code = Reason.JSON_INVALID
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


def _parse_float(known: FieldType) -> Callable[[str], float | Decimal] | None:
    """Return what reads numbers with a fraction or an exponent; None for floats, which are much faster."""
    kinds = set(_single_types(known))
    if any(isinstance(kind, DecimalType) for kind in kinds):
        return exact_number  # every digit counts
    return _exact_if_whole if kinds & {LONG, LARGE_LONG} else None


def _exact_if_whole(text: str) -> float | Decimal:
    """Read a number that may be a long: 9007199254740993.0 is one, of which a float would lose a digit."""
    number = float(text)
    return exact_number(text) if number.is_integer() else number


def _single_types(known: FieldType) -> Iterator[FieldType]:
    match known:
        case ObjectType(fields):
            for member in fields.values():
                yield from _single_types(member)
        case ArrayType(inner) | MapType(inner):
            yield from _single_types(inner)
        case _:
            yield known


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = b"\r\n"


_NO_TEXT = (
    (b"\xff\xfe", "UTF-16 or UTF-32", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16 or UTF-32", "write it as UTF-8"),
    (b"\x1f\x8b", "packed by gzip", "unpack it first, as the command line does where the name ends in .gz"),
    (b"PK\x03\x04", "packed by zip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it first"),
    (b"BZh", "packed by bzip2", "unpack it first"),
    (b"PAR1", "Parquet", "send it as that format"),
)
_OBJECTS_APART = re.compile(rb"\}\r+\{")


def check_is_text(source: BinaryIO) -> None:
    """Refuse a file whose first bytes give away that it is no UTF-8, and go back to its beginning.

    Raises:
        FileRefusedError: It is packed, Parquet, UTF-16 or UTF-32.
    """
    start = source.read(4)
    source.seek(0)
    for sign, what, way_out in _NO_TEXT:
        if start.startswith(sign):
            message = f"The file is {what}: {way_out}."
            raise FileRefusedError(message)
    if start.count(0) > 1:
        message = "The file is UTF-16 or UTF-32: write it as UTF-8."
        raise FileRefusedError(message)


def old_line_ends() -> FileRefusedError:
    """Return the refusal of a file whose lines end in CR alone."""
    return FileRefusedError(
        "The lines of the file end as on old Macs, with CR alone: write it with LF or CRLF."
    )


def joined_file() -> ValueRefusedError:
    """Return the refusal of a row, not the first, that begins with the mark of UTF-8."""
    return ValueRefusedError((), "begins with a byte order mark: files that were joined have one each")


def read_json_lines(task: IngestTask, _: AppliedReading) -> Iterator[SentRow]:
    """Read an upload of JSON lines; any line can be refused without touching the next."""
    decoder = json_decoder(task.fields)
    limit = task.max_row_bytes
    with task.source.open("rb") as source:
        check_is_text(source)
        for number, line in enumerate(bounded_lines(source, limit), 1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)  # noqa: PLW2901 - the same line
                if _OBJECTS_APART.search(line):
                    raise old_line_ends()
            if len(line) > limit and len(line.rstrip(_LINE_END)) > limit:
                yield SentRow(number, too_large(limit), line)
            elif line.startswith(BYTE_ORDER_MARK):
                yield SentRow(number, joined_file(), line)
            elif line.strip():
                yield SentRow(number, _parsed(line, decoder), line)


def bounded_lines(source: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield lines with their line ends. Of one longer than `limit`, yield enough to see that, and to show its text."""
    most = max(limit, MAX_TEXT_BYTES) + len(BYTE_ORDER_MARK) + len(_LINE_END) + 1
    while line := source.readline(most):
        yield line
        while len(line) == most and not line.endswith(b"\n"):
            line = source.readline(most)


def _parsed(line: bytes, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(line.decode())
    except json.JSONDecodeError as error:
        if error.doc.lstrip()[:1] in {"{", "["} and error.pos >= len(error.doc.rstrip()):
            complaint = (
                "ends within an object or array: JSON lines have each object on one line, as jq -c writes it"
            )
            return ValueRefusedError((), complaint, Reason.JSON_INVALID)
        return json_refusal(error)
    except (ValueError, RecursionError, ValueRefusedError) as error:
        return json_refusal(error)


_CHUNK = 256 * 1024
_BLANKS = re.compile(r"[ \t\n\r]*")
_BEARING = re.compile(r'["{}\[\]]')
_BEARING_IN_TEXT = re.compile(r'["\\]')
_WORD = re.compile(r'[^\s,\]}"\[{]*')
_MOST_BYTES_OF_A_CHARACTER = 4
_NO_END = "the array has no end"


def read_json_array(task: IngestTask, _: AppliedReading) -> Iterator[SentRow]:
    """Read an upload of one JSON array.

    Raises:
        FileRefusedError: It is not one.
    """
    with task.source.open("rb") as source:
        check_is_text(source)
        window = _Window(source)
        items = _Items(window, json_decoder(task.fields), task.max_row_bytes)
        if window.next_mark() != "[":
            message = "The file is not a JSON array: it does not begin with '['."
            raise FileRefusedError(message)
        window.position += 1
        mark = window.next_mark()
        while mark != "]":
            yield items.take()
            mark = window.next_mark()
            if mark == ",":
                window.position += 1
                mark = window.next_mark()
                if mark == "]":
                    raise items.broken("there is no item behind the last comma")
            elif mark != "]":
                raise items.broken("neither ',' nor ']' follows it" if mark else _NO_END)
        window.position += 1
        if window.next_mark():
            raise items.broken("something follows the array")


class _Window:
    """The part of a file's text that is in memory; `position` is the index of the next character to read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes_read = 0
        self.text = ""
        self.position = 0
        self.at_end = False

    def grow(self) -> None:
        """Drop the text before the position, and read at least as many bytes as there are characters left.

        Raises:
            FileRefusedError: The bytes are not UTF-8.
        """
        rest = self.text[self.position :]
        chunk = self._source.read(max(_CHUNK, len(rest)))
        self.at_end = not chunk
        self._bytes_read += len(chunk)
        try:
            self.text = rest + self._decoder.decode(chunk, final=self.at_end)
        except UnicodeDecodeError as error:
            byte = self._bytes_read - len(error.object) + error.start + 1
            message = f"The file is not UTF-8 at byte {byte}: write it as UTF-8."
            raise FileRefusedError(message) from None
        self.position = 0

    def next_mark(self) -> str:
        """Go to the next character that is not blank and return it; empty at the end of the file."""
        while True:
            blanks = _BLANKS.match(self.text, self.position)
            self.position = blanks.end() if blanks else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if self.at_end:
                return ""
            self.grow()


class _Items:
    """Reads the items of the array, one after another, out of a window."""

    def __init__(self, window: _Window, decoder: json.JSONDecoder, limit: int) -> None:
        self._window = window
        self._decoder = decoder
        self._limit = limit
        self._number = 0

    def broken(self, complaint: str) -> FileRefusedError:
        """Return the refusal of the file, which names the item after which it cannot be read on."""
        message = f"The file is not a JSON array: at item {self._number}, {complaint}."
        return FileRefusedError(message, self._number or None)

    def take(self) -> SentRow:
        """Return the item that begins at the position, and move the position behind it.

        Raises:
            FileRefusedError: The text is not JSON, or not UTF-8.
        """
        window = self._window
        self._number += 1
        if not window.next_mark():
            raise self.broken(_NO_END)
        while True:
            start, end = window.position, None
            try:
                record, end = self._decoder.raw_decode(window.text, start)
                if isinstance(record, dict):
                    return self._taken(record, end)
            except (ValueError, RecursionError, ValueRefusedError) as error:
                record = error
            brackets = _Brackets()
            whole = brackets.end(window.text, start)
            if whole is not None:
                if isinstance(record, json.JSONDecodeError):
                    complaint = f"{record.msg} at its character {record.pos - start + 1}"
                    raise self.broken(complaint)
                if isinstance(record, ValueError | RecursionError | ValueRefusedError):
                    record = json_refusal(record)
                return self._taken(record, end or whole)
            if window.at_end:
                raise self.broken(_NO_END)
            if len(window.text) - start > max(self._limit, MAX_TEXT_BYTES):
                return self._skipped(brackets)
            window.grow()

    def _taken(self, record: Any, end: int) -> SentRow:
        window = self._window
        text = window.text[window.position : end]
        window.position = end
        if len(text) * _MOST_BYTES_OF_A_CHARACTER > self._limit and len(text.encode()) > self._limit:
            record = too_large(self._limit)
        return SentRow(self._number, record, text)

    def _skipped(self, brackets: _Brackets) -> SentRow:
        """Move the position behind an item that is too large for memory, and return its refusal."""
        window = self._window
        text = window.text[window.position :]
        end = None
        while end is None:
            window.position = len(window.text)
            window.grow()
            if window.at_end:
                raise self.broken(_NO_END)
            end = brackets.end(window.text, 0)
        window.position = end
        return SentRow(self._number, too_large(self._limit), text)


class _Brackets:
    """Finds the end of one item by its brackets and quotes alone; its text may come in several pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._is_word: bool | None = None

    def end(self, text: str, start: int) -> int | None:
        """Return the index at which the item ends in its next piece, which begins at `start`; None if not in it."""
        at = start
        if self._is_word is None:
            self._is_word = text[start] not in '"{['
        if self._is_word:
            word = _WORD.match(text, at)
            end = word.end() if word else at
            return end if end < len(text) else None
        if self._is_escaped:
            at += 1
            self._is_escaped = False
        while mark := (_BEARING_IN_TEXT if self._in_text else _BEARING).search(text, at):
            at = mark.end()
            match mark[0]:
                case '"':
                    self._in_text = not self._in_text
                case "\\":
                    self._is_escaped = at == len(text)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
            if not self._depth and not self._in_text:
                return at
        return None
