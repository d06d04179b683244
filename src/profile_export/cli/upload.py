"""The upload of files and folders, with a bar that says how far it is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from profile_export.cli.batches import print_rejected
from profile_export.cli.terminal.command import AsJson
from profile_export.cli.terminal.output import console, count, print_json, size, transfer
from profile_export.client import (
    Batch,
    Client,
    ClientError,
    CompleteBatchResponse,
    UploadBatchResponse,
    UploadFile,
    UploadFormat,
    UploadPhase,
    UploadProgress,
    as_json,
)

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


_LONGEST_LABEL = 32
_REJECTED_SHOWN = 20
_NOTES = {
    UploadPhase.CHECKING: "the server reads the rows",
    UploadPhase.COMMITTING: "the batch is completed",
    UploadPhase.WAITING: "connection lost, trying again",
}


async def upload(
    client: Client,
    dataset_id: Annotated[str, typer.Argument(metavar="DATASET_ID", help="A record or event dataset.")],
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            exists=True,
            readable=True,
            help="Files and folders; of a folder all files with a known suffix, hidden ones left out.",
        ),
    ],
    upload_format: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Default: guessed by .jsonl, .ndjson, .csv, .parquet, and by content for .json."
        ),
    ] = None,
    max_bad_records: Annotated[
        int, typer.Option(min=0, metavar="N", help="Reject so many bad rows of a file before refusing it.")
    ] = 0,
    batch_id: Annotated[
        str, typer.Option(metavar="ID", help="Id of the batch. Default: derived from dataset and content.")
    ] = "",
    as_data: AsJson = False,
) -> None:
    """Upload files as one batch: all their rows count at once, or none.

    Safe to repeat: the same files in the same dataset are the same batch, and an interrupted upload goes on. Rows of
    several files count in the order of their paths.

    Example: `profile-export datasets upload 5f0c… crm.jsonl` or `profile-export datasets upload 5f0c… exports/
    --max-bad-records 100`
    """
    files = files_to_upload(paths, upload_format)
    bar = transfer(console(stderr=True))
    display = _Display(bar, files)
    try:
        with bar:
            answer = await _send(client, dataset_id, files, batch_id, max_bad_records, display)
    except ClientError as error:
        await _explain(client, error, display)
        raise
    if as_data:
        print_json(as_json(answer))
        return
    batch = answer.batch
    typer.echo(_summary(batch, display.seconds, replayed=answer.replayed))
    if batch.rejected_rows:
        await _print_rejected(client, batch.id, batch.rejected_rows, display)


class _Display:
    """What the bar shows, and what it has been told."""

    def __init__(self, bar: Progress, files: list[UploadFile]) -> None:
        self.paths = {file.name: str(file.path) for file in files}
        self.last: UploadProgress | None = None
        self._places = {file.name: place for place, file in enumerate(files, 1)}
        self._began = time.monotonic()
        self._bar = bar
        total = sum(file.path.stat().st_size for file in files)
        self._task = bar.add_task("", total=total, note="reading")

    @property
    def seconds(self) -> float:
        """How long it has taken since the files were read."""
        return time.monotonic() - self._began

    def show(self, progress: UploadProgress) -> None:
        if self.last is None:
            self._began = time.monotonic()
        self.last = progress
        rate = _rate(progress.lines, self.seconds) if progress.lines else ""
        note = _NOTES.get(progress.phase, rate)
        self._bar.update(
            self._task, completed=progress.bytes, description=self._label(progress.file_name), note=note
        )

    def _label(self, name: str) -> str:
        if not name:
            return ""
        label = Path(self.paths[name]).name
        place = f"{self._places[name]}/{len(self.paths)} " if len(self.paths) > 1 else ""
        return place + (label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…")


async def _send(
    client: Client,
    dataset_id: str,
    files: Sequence[UploadFile],
    batch_id: str,
    max_bad_records: int,
    display: _Display,
) -> UploadBatchResponse | CompleteBatchResponse:
    if len(files) > 1:
        return await client.upload_files(
            dataset_id, files, batch_id=batch_id, max_bad_records=max_bad_records, progress=display.show
        )
    return await client.upload(
        dataset_id,
        files[0].path,
        files[0].format,
        batch_id=batch_id,
        max_bad_records=max_bad_records,
        progress=display.show,
    )


def _summary(batch: Batch, seconds: float, *, replayed: bool) -> str:
    line = f"batch {batch.id}: {count(batch.rows)} rows, {size(batch.bytes)}"
    if batch.rejected_rows:
        line += f", {count(batch.rejected_rows)} rejected"
    return line + (" (was there already)" if replayed else f" ({_rate(batch.rows, seconds)})")


def _rate(rows: int, seconds: float) -> str:
    return f"{count(round(rows / max(seconds, 0.001)))} rows/s"


async def _explain(client: Client, error: ClientError, display: _Display) -> None:
    """Show the rows that were rejected, and say in the error what the server cannot know."""
    if error.reason in {"BATCH_EXISTS", "BATCH_ABORTED"}:
        error.message += " Name one with --batch-id."
        return
    last = display.last
    if last is None:
        return
    if rejected := int(error.metadata.get("rejected_rows") or 0):
        await _print_rejected(client, last.batch_id, rejected, display)
        error.violations = ()  # the table has them
    if len(display.paths) > 1 and error.code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}:
        error.message += (
            f" The batch {last.batch_id} stays open: upload the same files again, or give it up with "
            f"`profile-export batches abort {last.batch_id}`."
        )
        if last.file_name:
            error.message = f"{display.paths[last.file_name]}: {error.message}"


async def _print_rejected(client: Client, batch_id: str, rejected: int, display: _Display) -> None:
    rows = await client.list_rejected_rows(batch_id, _REJECTED_SHOWN)
    print_rejected(rows, rejected, batch_id, screen=console(stderr=True), paths=display.paths)
