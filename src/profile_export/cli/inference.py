"""Says which types the columns of CSV and TSV have, by all values of a sample, so that somebody can declare them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path

import typer

from profile_export.cli.schemas import is_plain_path
from profile_export.cli.sources import Format

MOST_ROWS = 100_000
"""How many rows of a file are looked at."""
_BLANKS = " \t"
_DELIMITERS = {Format.CSV: ",", Format.TSV: "\t"}
_DAY = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_LONGS = range(-(2**63), 2**63)
_MOST_DIGITS = 19
_EXACT_IN_A_DOUBLE = 2**53


def _is_long(text: str) -> bool:
    digits = re.fullmatch(r"-?(0|[1-9][0-9]*)", text)
    return bool(digits) and len(text) <= _MOST_DIGITS + 1 and int(text) in _LONGS


def _is_double(text: str) -> bool:
    """Whether a double keeps every digit of a number, as it is written again."""
    if _is_long(text):
        return abs(int(text)) <= _EXACT_IN_A_DOUBLE
    is_number = re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?", text)
    return bool(is_number) and not text.isdigit() and Decimal(repr(float(text))) == Decimal(text)


_FITS: Mapping[str, Callable[[str], bool]] = {
    "boolean": lambda text: text.lower() in {"true", "false"},
    "long": _is_long,
    "double": _is_double,
    "date": lambda text: bool(re.fullmatch(_DAY, text)),
    # What is no instant after all, such as a 30th of February, is a bad row when it is uploaded.
    "timestamp": lambda text: bool(
        re.fullmatch(_DAY + r"[Tt ][0-9:]{8}([.,][0-9]{1,6}0*)? ?([Zz]|UTC|[+-][0-9]{2}(:?[0-9]{2})?)", text)
    ),
}
"""The types that a column may have besides text, the narrower first, and whether a value can be one."""


def infer_types(
    files: Sequence[tuple[Path, Format]],
    nulls: Collection[str],
    renames: Mapping[str, str],
    known: Collection[str],
) -> dict[str, str]:
    """Return the types that all values of columns have, by field path; columns of text are left out.

    Args:
        files: Those of CSV and TSV.
        nulls: Texts that are absent.
        renames: The names that columns get.
        known: Paths whose types are settled.

    Raises:
        typer.BadParameter: A file cannot be read.
    """
    left: dict[str, list[str]] = {}
    for path, file_format in files:
        if file_format not in _DELIMITERS:
            raise typer.BadParameter(
                f"{path.name} is no CSV or TSV: --infer looks at those alone, since JSON and Parquet bring types."
            )
        try:
            # Lines end as the service reads them: a file whose lines end in CR alone is refused there.
            with path.open(encoding="utf-8-sig", newline="\n") as lines:
                rows = _rows(lines, _DELIMITERS[file_format])
                header = next(rows, [])
                names = [renames.get(name, name) for name in header]
                _check_header(header, _DELIMITERS[file_format])
                for row in islice(rows, MOST_ROWS):
                    if len(row) != len(header) or row == header:
                        continue  # a bad row
                    for name, text in zip(names, row, strict=True):
                        if text and text not in nulls and name and name not in known and is_plain_path(name):
                            kinds = left.get(name, list(_FITS))
                            left[name] = [kind for kind in kinds if _FITS[kind](text)]
        except (UnicodeError, csv.Error, ValueError) as error:
            reason = _reason(error)
            raise typer.BadParameter(f"{path.name} cannot be read as {file_format.name}: {reason}.") from None
    return {name: kinds[0] for name, kinds in left.items() if kinds}


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    if isinstance(error, csv.Error) and "new-line" in str(error):
        return "its lines end in CR alone"
    return str(error)


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
        yield [cell.strip(_BLANKS) for cell in row]


def _check_header(header: Sequence[str], delimiter: str) -> None:
    """Refuse what an upload would refuse as a header.

    Raises:
        ValueError: There is none, or one column that looks like several.
    """
    if not header:
        message = "it has no header"
        raise ValueError(message)
    if len(header) == 1 and any(mark in header[0] for mark in ",;|\t" if mark != delimiter):
        message = f"one column was found, {header[0]!r}, with other marks than {delimiter!r} in it"
        raise ValueError(message)
