"""The files of an upload: found in folders, told by their suffixes, unpacked, read from standard input."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import typer

from profile_export.client import UploadFile, UploadFormat

STANDARD_INPUT = Path("-")
_BEGINNING = 64 * 1024
_CHUNK = 1024 * 1024
_LONGEST_NAME = 128
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_PARTITION = re.compile(r"[^=]+=.*")
_PACKED = ".gz"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 31
"""What zlib calls a stream of gzip, with its checksum."""
_PLENTY_BYTES = 256 * 1024 * 1024
_MOST_TIMES = 200
"""How many times its size a packed file may unpack to, once that is plenty; rows of text come to ten or twenty."""
_SKIPPED_NAMED = 3


class Format(Enum):
    """What the bytes of a file are."""

    JSON_LINES = "json-lines"
    JSON_ARRAY = "json-array"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


_EITHER_JSON = ".json"
_SUFFIXES = {
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".jsonlines": Format.JSON_LINES,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".parquet": Format.PARQUET,
    ".parq": Format.PARQUET,
    ".pq": Format.PARQUET,
}


@dataclass(frozen=True)
class Source:
    """A file to upload; `path` is `-` for standard input, `name` that within the batch."""

    path: Path
    format: Format
    name: str

    def ready(self, folder: Path) -> UploadFile:
        """Return the file as it is sent: a copy in `folder` if it is packed, or comes from standard input or a pipe.

        An upload reads its file twice, to know its hash first, and from anywhere, to resume: so it needs a copy on the
        disk, and no more memory than a chunk.

        Raises:
            typer.BadParameter: It is no sound gzip, or unpacks to far more than rows do.
        """
        path = self.path
        if path == STANDARD_INPUT or path.suffix.lower() == _PACKED or not path.is_file():
            path = folder / self.name
            # Standard input by its number: the interpreter cannot end while another thread waits in `sys.stdin`.
            is_ours = self.path != STANDARD_INPUT
            place, name = (self.path, self.path.name) if is_ours else (sys.stdin.fileno(), "Standard input")
            with path.open("wb") as copy, open(place, "rb", closefd=is_ours) as sent:
                _unpack(sent, copy, name)
        return UploadFile(path, UploadFormat.Value(f"UPLOAD_FORMAT_{self.format.name}"), self.name)


def find_sources(paths: Sequence[Path], chosen: Format | None) -> tuple[list[Source], list[Path]]:
    """Return the files at the paths, each once, in the order of their paths; and what in folders is not taken.

    Of a folder they are those at any depth that have a known suffix and are not hidden. Links to folders are not
    followed.

    Args:
        paths: Files and folders; `-` is standard input.
        chosen: The format of all of them. None: guessed, of each.

    Raises:
        typer.BadParameter: There is no file, a format cannot be guessed, or a folder's name holds a column.
    """
    found: dict[Path, Path] = {}
    skipped: list[Path] = []
    for given in paths:
        if given != STANDARD_INPUT and not given.exists():
            raise typer.BadParameter(f"{given} does not exist.")
        taken = [given]
        if given != STANDARD_INPUT and given.is_dir():
            inside = [
                one
                for one in sorted(given.rglob("*"))
                if (one.is_symlink() or not one.is_dir()) and not _is_hidden(one.relative_to(given))
            ]
            taken = [one for one in inside if one.is_file() and _suffix(one) in {_EITHER_JSON, *_SUFFIXES}]
            skipped += [one for one in inside if one not in set(taken)]
            if not taken:
                suffixes = ", ".join((_EITHER_JSON, *_SUFFIXES))
                raise typer.BadParameter(
                    f"No file in {given} ends in one of {suffixes}, or in one and .gz: name files instead."
                )
        for path in taken:
            _refuse_partition(path)
            found[path if path == STANDARD_INPUT else path.resolve()] = path
    listed = sorted(found.values())
    names = [_name(path, place, len(listed)) for place, path in enumerate(listed, 1)]
    return [
        Source(path, chosen or _guessed(path), name) for path, name in zip(listed, names, strict=True)
    ], skipped


def not_taken(skipped: Sequence[Path]) -> Iterator[str]:
    """Say in lines what of folders is not uploaded, and why."""
    files = [path for path in skipped if path.is_file()]
    if files:
        yield _not_taken(files, "Their suffixes say no format; name such a file with --format to upload it.")
    others = [path for path in skipped if path not in set(files)]
    if others:
        yield _not_taken(
            others, "They are no files; links to folders are not followed: name what they lead to."
        )


def _not_taken(skipped: Sequence[Path], reason: str) -> str:
    named = ", ".join(path.name for path in skipped[:_SKIPPED_NAMED])
    more = f" and {len(skipped) - _SKIPPED_NAMED} more" if len(skipped) > _SKIPPED_NAMED else ""
    return f"Not taken: {named}{more}. {reason}"


def _refuse_partition(path: Path) -> None:
    # By the whole path as well: where a command is typed changes nothing about what a file lacks.
    folders = (*path.parent.parts, *path.resolve().parent.parts)
    partition = next((part for part in folders if _PARTITION.fullmatch(part)), "")
    if partition:
        column = partition.partition("=")[0]
        raise typer.BadParameter(
            f"{path} lies in the folder {partition}, whose name holds the column '{column}' that the file lacks: write "
            "the files with that column first, as DuckDB does with read_parquet(…, hive_partitioning = true)."
        )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _name(path: Path, place: int, of: int) -> str:
    """Return a file's name within the batch: the names of all files sort as their paths do."""
    if of == 1:
        return "1"
    number = f"{place:0{len(str(of))}}-"
    return number + _UNSAFE.sub("_", path.name)[len(number) - _LONGEST_NAME :]


def _suffix(path: Path) -> str:
    """Return the suffix that says what a file holds, in small letters; that of the unpacked one if it is packed."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == _PACKED else suffix


def _guessed(path: Path) -> Format:
    suffix = _suffix(path)
    if suffix == _EITHER_JSON and path.is_file():  # what a pipe begins with can be read only once
        try:
            with gzip.open(path) if path.suffix.lower() == _PACKED else path.open("rb") as file:
                beginning = file.read(_BEGINNING).removeprefix(b"\xef\xbb\xbf").lstrip()
        except (gzip.BadGzipFile, EOFError, zlib.error):
            beginning = b""  # told when it is unpacked
        return Format.JSON_ARRAY if beginning.startswith(b"[") else Format.JSON_LINES
    if suffix not in _SUFFIXES:
        formats = ", ".join(one.value for one in Format)
        what = "standard input" if path == STANDARD_INPUT else path.name
        raise typer.BadParameter(
            f"The format of {what} cannot be guessed by its suffix: add --format with one of {formats}."
        )
    return _SUFFIXES[suffix]


def _unpack(source: BinaryIO, copy: BinaryIO, name: str) -> None:
    """Copy a file, unpacked if it is gzip, a chunk at a time."""
    chunk = source.read(_CHUNK)
    if not chunk.startswith(_GZIP_MAGIC):
        while chunk:
            copy.write(chunk)
            chunk = source.read(_CHUNK)
        return
    try:
        copy.writelines(_unpacked(source, chunk))
    except (zlib.error, EOFError):
        message = f"{name} is no sound gzip file: it is damaged or cut off. Pack it anew."
        raise typer.BadParameter(message) from None
    except OverflowError:
        message = (
            f"{name} unpacks to more than {_MOST_TIMES} times its size, as no rows do: unpack it and look."
        )
        raise typer.BadParameter(message) from None


def _unpacked(source: BinaryIO, chunk: bytes) -> Iterator[bytes]:
    """Yield what a gzip file holds, which may have several members; raises EOFError, zlib.error or OverflowError."""
    unpacker = zlib.decompressobj(_GZIP)
    packed = written = 0
    is_open = False
    while chunk:
        packed += len(chunk)
        while chunk:
            is_open = True
            data = unpacker.decompress(chunk, _CHUNK)
            written += len(data)
            if written > max(_PLENTY_BYTES, _MOST_TIMES * packed):
                raise OverflowError
            yield data
            chunk = unpacker.unconsumed_tail
            if unpacker.eof:
                chunk = unpacker.unused_data.lstrip(b"\0")  # members may be padded
                unpacker = zlib.decompressobj(_GZIP)
                is_open = False
        chunk = source.read(_CHUNK)
    if is_open:
        raise EOFError
