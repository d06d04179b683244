"""Batches: the upload of files with a bar that says how far it is, what became of one, and taking it back."""

import asyncio
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Annotated

import typer
from rich.progress import Progress
from rich.text import Text

from profile_export.cli.inference import infer_types
from profile_export.cli.schemas import declared_fields, known_paths
from profile_export.cli.sources import Format, Source, find_sources, not_taken
from profile_export.cli.terminal.cells import Size, batch_state, count, size
from profile_export.cli.terminal.command import AsJson, command, server_options
from profile_export.cli.terminal.names import DATASET
from profile_export.cli.terminal.output import (
    Fact,
    complain,
    console,
    print_facts,
    print_json,
    print_rows,
    transfer,
)
from profile_export.cli.terminal.watch import print_receipt
from profile_export.client import (
    Batch,
    BatchState,
    BatchUpload,
    Client,
    ClientError,
    CompleteBatchResponse,
    RejectedRow,
    UploadBatchResponse,
    UploadFile,
    UploadOptions,
    UploadPhase,
    UploadProgress,
    as_json,
)

_LONGEST_LABEL = 32
_REJECTED_SHOWN = 20
_LONGEST_ROW = 200
_NOTES = {
    UploadPhase.CHECKING: "the server reads the rows",
    UploadPhase.COMMITTING: "the batch is completed",
    UploadPhase.WAITING: "waiting for the server",
}

group = typer.Typer(no_args_is_help=True, help="Batches: what became of an upload, and taking it back.")

BatchId = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Kept with the batch.")]


def _tell(batch: Batch) -> None:
    """Say in one line how a batch stands."""
    console().print(Text(f"batch {batch.id} ") + batch_state(batch.state), soft_wrap=True)


def _show(batch: Batch) -> None:
    rejected = f"{count(batch.rejected_rows)} (profile-export batches rejected {batch.id}{server_options()})"
    whole = [error for error in batch.errors if not error.HasField("row_number")]
    print_facts(
        [
            ("batch", Text(f"{batch.id}  ") + batch_state(batch.state)),
            ("dataset", batch.dataset_id),
            ("job", str(batch.job_id) if batch.HasField("job_id") else None),
            *_times(batch),
            ("number", batch.number or None),
            ("rows", batch.rows),
            ("files", batch.file_count),
            ("size", Size(batch.bytes)),
            ("rejected", rejected if batch.rejected_rows else None),
            *(("file", _arrived(upload)) for upload in batch.uploads),
            *(("error", f"{error.code}: {error.message}") for error in whole),
            ("reason", batch.state_reason or None),
        ]
    )


def _arrived(upload: BatchUpload) -> str:
    arrived = "complete" if upload.complete else "not complete"
    return f"{upload.file_name}  {size(upload.received_bytes)} received, {arrived}"


def _times(batch: Batch) -> list[Fact]:
    expiry = "expired" if batch.state == BatchState.BATCH_STATE_EXPIRED else "expires"
    times = {
        "created": batch.create_time,
        "ended": batch.end_time,
        "ingested": batch.ingest_time,
        expiry: batch.expire_time,
    }
    # An absent timestamp reads as the beginning of time.
    return [(name, time.ToDatetime()) for name, time in times.items() if time.ToMicroseconds()]


@command(group, "list")
async def list_(
    client: Client,
    dataset_id: Annotated[
        str, typer.Argument(metavar="DATASET", help="Any dataset, by its id or name."), DATASET
    ],
    as_data: AsJson = False,
) -> None:
    """List the batches of a dataset that count, oldest first.

    Example: `profile-export batches list 5f0c…`
    """
    batches = await client.list_batches(dataset_id)
    if as_data:
        print_json([as_json(batch) for batch in batches])
        return
    rows = [
        (
            batch.id,
            batch.ingest_time.ToDatetime(),
            batch.rows,
            batch.rejected_rows,
            batch.file_count,
            Size(batch.bytes),
        )
        for batch in batches
    ]
    headers = ("id", "ingested", "rows", "rejected", "files", "size")
    print_rows(
        headers,
        rows,
        empty=f"No batches. Upload one: profile-export datasets upload {dataset_id} PATH{server_options()}",
    )


@command(group, "show", _show)
async def show(client: Client, batch_id: BatchId) -> Batch:
    """Show one batch, in any state: its counts, what has arrived of its files, and why it was refused.

    Example: `profile-export batches show crm-2026-01 --json`
    """
    return await client.get_batch(batch_id)


@command(group, "rejected")
async def rejected(
    client: Client,
    batch_id: BatchId,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Default: all.")] = None,
    as_data: AsJson = False,
) -> None:
    """List the rows that were refused in the last upload of a batch.

    Example: `profile-export batches rejected crm-2026-01 --json`
    """
    rows = await client.list_rejected_rows(batch_id, limit)
    if as_data:
        print_json([as_json(row) for row in rows])
        return
    total = (await client.get_batch(batch_id)).rejected_rows if len(rows) == limit else len(rows)
    print_rejected(rows, total, batch_id)


@command(group, "receipt")
async def receipt(client: Client, batch_id: BatchId, as_data: AsJson = False) -> None:
    """Show the receipt of a batch that an export made: what was read, left out and written, with the hashes.

    Example: `profile-export batches receipt 5f0c… --json`
    """
    answer = await client.get_receipt(batch_id)
    if as_data:
        print_json(as_json(answer.receipt))
    else:
        print_receipt(answer)


@command(group, "complete", _tell)
async def complete(client: Client, batch_id: BatchId) -> Batch:
    """Make a batch of several files count, once all of them have arrived.

    `datasets upload` does so by itself; this is for a batch that another client has filled.

    Example: `profile-export batches complete crm-2026-01`
    """
    return (await client.complete_batch(batch_id)).batch


@command(group, "abort", _tell)
async def abort(client: Client, batch_id: BatchId, reason: Reason = "") -> Batch:
    """Give up a batch that is still LOADING and remove what was received of it.

    Example: `profile-export batches abort crm-2026-01 --reason "wrong file"`
    """
    return await client.abort_batch(batch_id, reason)


@command(group, "revert", _tell)
async def revert(client: Client, batch_id: BatchId, reason: Reason = "") -> Batch:
    """Take back a batch that has SUCCEEDED: its rows stop counting at once.

    Example: `profile-export batches revert crm-2026-01 --reason "wrong day"`
    """
    return await client.revert_batch(batch_id, reason)


def print_rejected(
    rows: Sequence[RejectedRow],
    total: int,
    batch_id: str,
    *,
    stderr: bool = False,
    paths: Mapping[str, str] | None = None,
) -> None:
    """Write rejected rows as a table, and how to see those that are not in it.

    Args:
        rows: The first of them.
        total: How many there are.
        batch_id: Their batch.
        stderr: Whether they stand beside the answer.
        paths: The files by their names within the batch. None: the names will do.
    """
    longest = _LONGEST_ROW if console(stderr=stderr).is_terminal else None
    cells = [
        (
            (paths or {}).get(row.file_name, row.file_name),
            row.row_number,
            row.reason,
            row.path,
            row.message,
            row.row if longest is None or len(row.row) <= longest else f"{row.row[: longest - 1]}…",
        )
        for row in rows
    ]
    headers = ("file", "row", "reason", "field", "why", "as sent")
    print_rows(headers, cells, empty="No rejected rows.", free=("file", "why", "as sent"), stderr=stderr)
    if total > len(rows):
        command_line = f"profile-export batches rejected {batch_id}{server_options()}"
        hint = f"{count(len(rows))} of {count(total)} rejected rows; all: {command_line}"
        console(stderr=stderr).print(Text(hint, style="dim"), soft_wrap=True)


# --- Uploads ---


async def upload(
    client: Client,
    dataset_id: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="A record or event dataset, by its id or name."),
        DATASET,
    ],
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Files and folders, `-` for standard input; of a folder all files with a known suffix, hidden ones "
            "left out. Those that end in .gz are unpacked.",
        ),
    ],
    upload_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Default: guessed by .jsonl, .ndjson, .jsonlines, .csv, .tsv, .tab, .parquet, .parq, .pq, and by "
            "content for .json.",
        ),
    ] = None,
    null_value: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Read such cells and texts as absent. May be repeated."),
    ] = None,
    renamed: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OLD=NEW", help="Give a field another name. May be repeated."),
    ] = None,
    max_bad_records: Annotated[
        int, typer.Option(min=0, metavar="N", help="Reject so many bad rows of a file before refusing it.")
    ] = 0,
    batch_id: Annotated[
        str, typer.Option(metavar="ID", help="Id of the batch. Default: derived from dataset and content.")
    ] = "",
    infer: Annotated[
        bool,
        typer.Option(
            "--infer", help="Upload nothing; print a command that declares the types found in CSV and TSV."
        ),
    ] = False,
    as_data: AsJson = False,
) -> None:
    """Upload files as one batch: all their rows count at once, or none.

    Safe to repeat: the same files in the same dataset are the same batch, and an interrupted upload goes on. Rows of
    several files count in the order of their paths.

    Example: `profile-export datasets upload 5f0c… crm.jsonl` or `profile-export datasets upload 5f0c… exports/
    --max-bad-records 100` or `zcat crm.csv.gz | profile-export datasets upload 5f0c… - --format csv --null-value NULL
    --map customer_id=crmId`
    """
    sources, skipped = find_sources(paths, upload_format)
    for line in not_taken(skipped):
        complain(line)
    options = UploadOptions(max_bad_records, tuple(null_value or ()), _renames(renamed or ()))
    bar = transfer(console(stderr=True))
    answer: UploadBatchResponse | CompleteBatchResponse
    with TemporaryDirectory(prefix="profile-export-") as folder:
        files = await _ready(sources, Path(folder))
        if infer:
            await _infer(client, dataset_id, files, sources, options, as_data=as_data)
            return
        display = _Display(bar, files, [str(source.path) for source in sources])
        try:
            with bar:
                if len(files) > 1:
                    answer = await client.upload_files(
                        dataset_id, files, batch_id=batch_id, options=options, progress=display.show
                    )
                else:
                    answer = await client.upload(
                        dataset_id,
                        files[0].path,
                        files[0].format,
                        batch_id=batch_id,
                        options=options,
                        progress=display.show,
                    )
        except ClientError as error:
            await _explain(client, error, display)
            raise
    if as_data:
        print_json(as_json(answer))
        return
    batch = answer.batch
    typer.echo(_summary(batch, display.seconds, replayed=answer.replayed))
    for note in batch.notes:
        complain(note)
    if batch.rejected_rows:
        await _print_rejected(client, batch.id, batch.rejected_rows, display)


async def _ready(sources: Sequence[Source], folder: Path) -> list[UploadFile]:
    """Return the files as they are sent, as `Source.ready` does.

    They are read in a thread that ends with the process and not before: Ctrl-C waits for no pipe that sends nothing.
    """
    made: Future[list[UploadFile]] = Future()
    made.set_running_or_notify_cancel()

    def read() -> None:
        try:
            made.set_result([source.ready(folder) for source in sources])
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            made.set_exception(error)

    Thread(target=read, daemon=True).start()
    return await asyncio.wrap_future(made)


async def _infer(
    client: Client,
    dataset_id: str,
    files: Sequence[UploadFile],
    sources: Sequence[Source],
    options: UploadOptions,
    *,
    as_data: bool,
) -> None:
    """Print the command that declares the types which the files seem to have, or what it would send."""
    known = known_paths(await client.get_dataset(dataset_id))
    looked_at = [(file.path, source.format) for file, source in zip(files, sources, strict=True)]
    types = await asyncio.to_thread(infer_types, looked_at, options.null_values, options.renames, known)
    declared = [f"{path}={kind}" for path, kind in types.items()]
    if as_data:
        added = [as_json(field) for field in declared_fields(declared)]
        print_json({"dataset_id": dataset_id, "add_declared_fields": added})
    elif declared:
        words = " ".join(f"--declare {shlex.quote(one)}" for one in declared)
        typer.echo(f"profile-export datasets update {shlex.quote(dataset_id)} {words}{server_options()}")
    else:
        complain("Nothing to declare: what is not known yet is text.")


def _renames(given: Sequence[str]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for text in given:
        sent, mark, name = text.partition("=")
        if not (sent and mark and name) or sent in renames:
            raise typer.BadParameter(
                f"--map {text!r} says no new name, or one for a field that has one: write OLD=NEW, once for each field."
            )
        renames[sent] = name
    return renames


class _Display:
    """What the bar shows, and what it has been told."""

    def __init__(self, bar: Progress, files: list[UploadFile], shown: list[str]) -> None:
        self.paths = {file.name: path for file, path in zip(files, shown, strict=True)}
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


def _summary(batch: Batch, seconds: float, *, replayed: bool) -> str:
    line = f"batch {batch.id}: {count(batch.rows)} rows, {size(batch.bytes)}"
    if batch.rejected_rows:
        line += f", {count(batch.rejected_rows)} rejected"
    if batch.null_count:
        line += f", {count(batch.null_count)} texts read as absent"
    return line + (" (was there already)" if replayed else f" ({_rate(batch.rows, seconds)})")


def _rate(rows: int, seconds: float) -> str:
    return f"{count(round(rows / max(seconds, 0.001)))} rows/s"


_WAYS_OUT = {
    "PRIMARY_IDENTITY_MISSING": "`profile-export datasets create NAME --primary FIELD=NAMESPACE …` declares one; "
    "--max-bad-records N sets rows without one aside.",
    "EVENT_ID_MISSING": "--map FIELD=_id renames one.",
    "TIMESTAMP_MISSING": "--map FIELD=timestamp renames one.",
}
"""What options mend rows that are rejected for these reasons."""


async def _explain(client: Client, error: ClientError, display: _Display) -> None:
    """Show the rows that were rejected, and say in the error what the server cannot know."""
    if error.reason in {"BATCH_EXISTS", "BATCH_ABORTED"}:
        error.message += " Name one with --batch-id."
        return
    last = display.last
    if last is None:
        return
    if rejected := int(error.metadata.get("rejected_rows") or 0):
        reasons = await _print_rejected(client, last.batch_id, rejected, display)
        error.violations = ()  # the table has them
        error.message += "".join(f" {way_out}" for reason, way_out in _WAYS_OUT.items() if reason in reasons)
    if len(display.paths) > 1 and error.code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}:
        error.message += (
            f" The batch {last.batch_id} stays open: upload the same files again, or give it up with "
            f"`profile-export batches abort {last.batch_id}{server_options()}`."
        )
        if last.file_name:
            error.message = f"{display.paths[last.file_name]}: {error.message}"


async def _print_rejected(client: Client, batch_id: str, rejected: int, display: _Display) -> set[str]:
    """Show rejected rows; return the reasons among those that are shown."""
    rows = await client.list_rejected_rows(batch_id, _REJECTED_SHOWN)
    print_rejected(rows, rejected, batch_id, stderr=True, paths=display.paths)
    return {row.reason for row in rows}
