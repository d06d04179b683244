"""Which files an upload takes, in which order, under which names, and what their bytes are."""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

import typer

from profile_export.client import UploadFile, UploadFormat

_BEGINNING = 64 * 1024
_LONGEST_NAME = 128
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


class Format(Enum):
    """What the bytes of a file are."""

    JSON_LINES = "json-lines"
    JSON_ARRAY = "json-array"
    CSV = "csv"
    PARQUET = "parquet"


_FORMATS = {
    Format.JSON_LINES: UploadFormat.UPLOAD_FORMAT_JSON_LINES,
    Format.JSON_ARRAY: UploadFormat.UPLOAD_FORMAT_JSON_ARRAY,
    Format.CSV: UploadFormat.UPLOAD_FORMAT_CSV,
    Format.PARQUET: UploadFormat.UPLOAD_FORMAT_PARQUET,
}
_EITHER_JSON = ".json"
_SUFFIXES = {
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
}


def files_to_upload(paths: Sequence[Path], chosen: Format | None) -> list[UploadFile]:
    """Return the files at the paths, each once, in the order of their paths.

    Of a folder they are those at any depth that have a known suffix and are not hidden.

    Args:
        paths: Files and folders.
        chosen: The format of all of them. None: guessed, of each.

    Raises:
        typer.BadParameter: There is no file, or a format cannot be guessed.
    """
    found = {path.resolve(): path for given in paths for path in _files_at(given)}
    listed = sorted(found.values())
    names = [_name(path, place, len(listed)) for place, path in enumerate(listed, 1)]
    return [
        UploadFile(path, _FORMATS[chosen or _guessed(path)], name)
        for path, name in zip(listed, names, strict=True)
    ]


def _files_at(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    inside = [one for one in path.rglob("*") if one.suffix.lower() in {_EITHER_JSON, *_SUFFIXES}]
    seen = [one for one in inside if one.is_file() and not _is_hidden(one.relative_to(path))]
    if not seen:
        suffixes = ", ".join((_EITHER_JSON, *_SUFFIXES))
        raise typer.BadParameter(f"No file in {path} ends in one of {suffixes}: name files instead.")
    yield from seen


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _name(path: Path, place: int, of: int) -> str:
    """Return a file's name within the batch: the names of all files sort as their paths do."""
    if of == 1:
        return "1"
    number = f"{place:0{len(str(of))}}-"
    return number + _UNSAFE.sub("_", path.name)[len(number) - _LONGEST_NAME :]


def _guessed(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix == _EITHER_JSON:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING).removeprefix(b"\xef\xbb\xbf").lstrip()
        return Format.JSON_ARRAY if beginning.startswith(b"[") else Format.JSON_LINES
    if suffix not in _SUFFIXES:
        formats = ", ".join(one.value for one in Format)
        raise typer.BadParameter(
            f"The format of {path.name} cannot be guessed by its suffix: add --format with one of {formats}."
        )
    return _SUFFIXES[suffix]
