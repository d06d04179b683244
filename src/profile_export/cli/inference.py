"""Says which types the columns of CSV and TSV have, by all values of a sample, so that somebody can declare them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path

import typer

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
    if _is_long(text):
        return abs(int(text)) <= _EXACT_IN_A_DOUBLE
    return (
        bool(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?", text)) and not text.isdigit()
    )


_FITS: Mapping[str, Callable[[str], bool]] = {
    "boolean": lambda text: text.lower() in {"true", "false"},
    "long": _is_long,
    "double": _is_double,
    "date": lambda text: bool(re.fullmatch(_DAY, text)),
    # What is no instant after all, such as a 30th of February, is a bad row when it is uploaded.
    "timestamp": lambda text: bool(
        re.fullmatch(_DAY + r"[Tt ][0-9:]{8}([.,][0-9]+)? ?([Zz]|UTC|[+-][0-9]{2}(:?[0-9]{2})?)", text)
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
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = csv.reader(lines, delimiter=_DELIMITERS[file_format], skipinitialspace=True)
                header = [name.strip(_BLANKS) for name in next(rows, [])]
                names = [renames.get(name, name) for name in header]
                for row in islice(rows, MOST_ROWS):
                    for name, cell in zip(names, row, strict=False):
                        text = cell.strip(_BLANKS)
                        if text and text not in nulls and name and name not in known:
                            kinds = left.get(name, list(_FITS))
                            left[name] = [kind for kind in kinds if _FITS[kind](text)]
        except (UnicodeError, csv.Error) as error:
            raise typer.BadParameter(f"{path.name} cannot be read as {file_format.name}: {error}.") from None
    return {name: kinds[0] for name, kinds in left.items() if kinds}
