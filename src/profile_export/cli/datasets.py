"""Datasets: make them, fill them, look at them, fetch what exports have written."""

import asyncio
import re
import sys
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from profile_export.cli.batches import upload
from profile_export.cli.schemas import (
    Declared,
    Identities,
    Primary,
    Tagged,
    declared_fields,
    identity_fields,
    identity_lines,
    kind_word,
    print_fields,
    tag_values,
)
from profile_export.cli.terminal.cells import (
    Size,
    count,
    kept_for,
    moment,
    one_line,
    to_the_second,
    values_by_path,
)
from profile_export.cli.terminal.command import AsJson, RequestId, command, no, server_options
from profile_export.cli.terminal.names import DATASET, DELETED_DATASET
from profile_export.cli.terminal.output import (
    complain,
    console,
    print_facts,
    print_id,
    print_json,
    print_rows,
    transfer,
)
from profile_export.client import (
    BatchState,
    Client,
    ClientError,
    Dataset,
    DatasetKind,
    MirrorStatus,
    as_json,
)

group = typer.Typer(
    no_args_is_help=True,
    help="Datasets: make them, fill them, look at them, fetch what exports have written.",
)

_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORMER = {
    BatchState.BATCH_STATE_REVERTED,
    BatchState.BATCH_STATE_EXPIRED,
    BatchState.BATCH_STATE_REPLACED,
}

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Any dataset, by its id or name."), DATASET]


KeepBatchesDays = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=36_500,
        metavar="N",
        help="How many days a batch counts after its upload or export; 0: for ever, as a new dataset has it.",
    ),
]


class Kind(Enum):
    """What the rows of a dataset are."""

    RECORD = "record"
    EVENT = "event"
    UNION = "union"


@command(group, "create", print_id)
async def create(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people; need not be unique.")],
    *,
    kind: Annotated[
        Kind | None,
        typer.Option(help="`record`: who someone is. `event`: what they did. `union`: where exports go."),
    ] = None,
    schema: Annotated[
        str, typer.Option(metavar="ID", help="A registered schema that the rows follow, instead of --kind.")
    ] = "",
    identity: Identities = None,
    primary: Primary = None,
    declare: Declared = None,
    tag: Tagged = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="Free text.")] = "",
    keep_batches_days: KeepBatchesDays = None,
    request_id: RequestId = "",
) -> Dataset:
    """Make a dataset and print its id.

    Example: `profile-export datasets create CRM --kind record --primary crmId=CRM --identity
    personalEmail.address=Email`
    """
    if (kind is None) == (not schema):
        raise typer.BadParameter(
            "Say what the rows are: either --kind record, event or union, or --schema ID."
        )
    return await client.create_dataset(
        name,
        schema if kind is None else DatasetKind.Value(f"DATASET_KIND_{kind.name}"),
        identities=identity_fields(identity, primary),
        declared=declared_fields(declare),
        tags=tag_values(tag),
        description=description,
        batch_retention=_days(keep_batches_days),
        request_id=request_id,
    )


def _show_all(datasets: list[Dataset]) -> None:
    any_deleted = any(dataset.HasField("delete_time") for dataset in datasets)
    rows = [
        (
            dataset.id,
            kind_word(dataset.kind),
            dataset.rows,
            Size(dataset.bytes),
            _newest(dataset) or "",
            *((_back_until(dataset),) if any_deleted else ()),
            dataset.name,
        )
        for dataset in datasets
    ]
    empty = no("datasets", "Make one: profile-export datasets create NAME --kind record")
    columns = (
        "id",
        "kind",
        "rows",
        "size",
        "newest batch",
        *(("deleted, back until",) if any_deleted else ()),
        "name",
    )
    print_rows(columns, rows, empty=empty, free=("name",))


def _newest(dataset: Dataset) -> datetime | None:
    return dataset.last_ingest_time.ToDatetime() if dataset.HasField("last_ingest_time") else None


def _back_until(dataset: Dataset) -> str:
    """Return until when a dataset can be brought back; empty if it is not deleted."""
    return moment(to_the_second(dataset.purge_time.ToDatetime())) if dataset.HasField("delete_time") else ""


@command(group, "list", _show_all)
async def list_(
    client: Client,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Also deleted ones that `datasets undelete` brings back.")
    ] = False,
) -> list[Dataset]:
    """List the datasets, oldest first.

    Example: `profile-export datasets list --json`
    """
    return await client.list_datasets(show_deleted=deleted)


def _show(dataset: Dataset) -> None:
    tags = [f"{key}={value}" for key in sorted(dataset.tags) for value in dataset.tags[key].values]
    kept = dataset.batch_retention.ToTimedelta()
    updated = dataset.update_time != dataset.create_time
    print_facts(
        [
            ("dataset", dataset.id),
            ("name", dataset.name),
            ("kind", kind_word(dataset.kind)),
            ("schema", dataset.schema_ref.id),
            ("description", dataset.description or None),
            ("tags", tags or None),
            ("identities", identity_lines(dataset.identity_fields) or None),
            ("declared", [declared.path for declared in dataset.declared_fields] or None),
            ("batches", f"kept for {kept_for(kept)}" if kept else "kept for ever"),
            ("rows", dataset.rows),
            ("size", Size(dataset.bytes)),
            ("newest batch", _newest(dataset)),
            ("created", dataset.create_time.ToDatetime()),
            ("updated", dataset.update_time.ToDatetime() if updated else None),
            ("deleted", f"can be brought back until {until}" if (until := _back_until(dataset)) else None),
            ("mirror", _mirror(dataset.mirror) if dataset.HasField("mirror") else None),
        ]
    )
    typer.echo()
    print_fields(dataset.fields)


def _mirror(mirror: MirrorStatus) -> list[str]:
    if mirror.error_message:
        word = f"failed, will be tried again: {mirror.error_message}"
    elif mirror.pending_changes:
        word = f"{count(mirror.pending_changes)} changes behind"
    else:
        word = "up to date"
    batches = f"{count(mirror.mirrored_batches)} batches in {mirror.table}"
    lines = [f"{batches}, {word if mirror.enabled else 'switched off'}", mirror.metadata_location]
    return [line for line in lines if line]


@command(group, "show", _show)
async def show(client: Client, dataset_id: DatasetId) -> Dataset:
    """Show one dataset: its fields as a tree, its tags, and which fields hold identities.

    Example: `profile-export datasets show 5f0c…`
    """
    return await client.get_dataset(dataset_id)


@command(group, "update", _show)
async def update(
    client: Client,
    dataset_id: DatasetId,
    *,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its new name.")] = None,
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its new description, may be empty.")
    ] = None,
    tag: Tagged = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all its tags away.")] = False,
    declare: Declared = None,
    keep_batches_days: KeepBatchesDays = None,
) -> Dataset:
    """Change what is given and leave the rest.

    With --tag all its tags are replaced; --declare adds types to those it has, or widens them. --keep-batches-days also
    holds for the batches it has: older ones stop counting within a minute, and for good.

    Example: `profile-export datasets update 5f0c… --tag unifiedProfile=enabled:false`
    """
    unchanged = (name, description, keep_batches_days) == (None, None, None)
    if unchanged and not (tag or no_tags or declare):
        raise typer.BadParameter(
            "Nothing to change: add --name, --description, --tag, --no-tags, --declare or --keep-batches-days."
        )
    return await client.update_dataset(
        dataset_id,
        name=name,
        description=description,
        tags=tag_values(tag) if tag or no_tags else None,
        declared=declared_fields(declare),
        batch_retention=_days(keep_batches_days),
    )


def _show_deleted(dataset: Dataset) -> None:
    typer.echo(
        f"dataset {dataset.id} deleted; until {_back_until(dataset)} this brings it back: "
        f"profile-export datasets undelete {dataset.id}{server_options()}"
    )


@command(group, "delete", _show_deleted)
async def delete(
    client: Client,
    dataset_id: DatasetId,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking, as scripts have to.")] = False,
) -> Dataset:
    """Delete a dataset with all its batches, at once. For about an hour `datasets undelete` brings it back.

    Asks first on a terminal; elsewhere nobody can be asked, and --yes is required.

    Example: `profile-export datasets delete 5f0c… --yes`
    """
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise typer.BadParameter(
                "There is no terminal to ask on: add --yes to delete without being asked."
            )
        name = one_line((await client.get_dataset(dataset_id)).name)
        if not typer.confirm(f"Delete '{name}' ({dataset_id}) with all its batches?", err=True):
            complain("Nothing was deleted.")
            raise typer.Exit(1)
    return await client.delete_dataset(dataset_id)


def _show_undeleted(dataset: Dataset) -> None:
    typer.echo(f"dataset {dataset.id} is back")


@command(group, "undelete", _show_undeleted)
async def undelete(
    client: Client,
    dataset_id: Annotated[
        str, typer.Argument(metavar="DATASET", help="A deleted dataset, by its id or name."), DELETED_DATASET
    ],
) -> Dataset:
    """Bring a deleted dataset back with all its batches. `datasets list --deleted` shows until when.

    Example: `profile-export datasets undelete 5f0c…`
    """
    return await client.undelete_dataset(dataset_id)


@command(group, "preview")
async def preview(
    client: Client,
    dataset_id: DatasetId,
    rows: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many rows.")] = 10,
    as_data: AsJson = False,
) -> None:
    """Show some rows, those of the newest batch first.

    Example: `profile-export datasets preview 5f0c… --rows 3`
    """
    found = [as_json(row) for row in await client.preview_dataset(dataset_id, rows)]
    if as_data:
        print_json(found)
        return
    lines = [
        (str(number) if place == 0 else "", path, value)
        for number, row in enumerate(found, 1)
        for place, (path, value) in enumerate(values_by_path(row))
    ]
    way_out = f"No rows. Upload some: profile-export datasets upload {dataset_id} PATH{server_options()}"
    print_rows(("row", "field", "value"), lines, empty=way_out, free=("value",), once=("row",))


command(group, "upload")(upload)


@command(group, "download")
async def download(
    client: Client,
    dataset_id: DatasetId,
    to: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder to write to; made if missing.")
    ],
    batch: Annotated[str, typer.Option(metavar="ID", help="Only this batch. Default: all.")] = "",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the batches in DIR that count no more, of this dataset.")
    ] = False,
    as_data: AsJson = False,
) -> int | None:
    """Fetch the Parquet files of a dataset, each checked against its SHA-256, into DIR/BATCH/FILE.

    Safe to repeat: files that are there stay, an interrupted one goes on. Prints where each file is. Batches that an
    earlier download fetched and that count no more, because they were reverted, replaced or have expired, are named on
    standard error; --prune removes them.

    Example: `profile-export datasets download 5f0c… --to out`
    """
    counting = [one.id for one in await client.list_batches(dataset_id)]
    await _tell_former(client, dataset_id, to, set(counting), prune=prune)
    batches = [one for one in counting if batch in {"", one}]
    if not batches:
        named = f"batch {batch}" if batch else "no visible batch"
        complain(f"Dataset {dataset_id} has {'no ' if batch else ''}{named}. See: profile-export jobs list")
        return 1
    fetched: list[dict[str, Any]] = []
    with transfer(console(stderr=True)) as bar:
        for batch_id in batches:
            for file in await client.list_files(batch_id):
                task = bar.add_task(file.name, total=file.bytes, note="")
                progress = partial(_advance, bar, task)
                path = await client.download(batch_id, file, to / batch_id, progress=progress)
                fetched.append({"batch_id": batch_id, "path": str(path), **as_json(file)})
                if not as_data:
                    typer.echo(path)
    if as_data:
        print_json(fetched)
    elif not fetched:
        complain("No row, and so no file.")
    return None


async def _tell_former(client: Client, dataset_id: str, to: Path, counting: set[str], *, prune: bool) -> None:
    """Name or remove the batches of a dataset that an earlier download fetched and that count no more.

    What the server does not know is left alone.
    """
    for folder in await asyncio.to_thread(_batch_folders, to):
        if folder.name in counting:
            continue
        try:
            batch = await client.get_batch(folder.name)
        except ClientError as error:
            if error.code != "NOT_FOUND":
                raise
            continue
        if batch.dataset_id != dataset_id or batch.state not in _FORMER:
            continue
        state = BatchState.Name(batch.state).removeprefix("BATCH_STATE_")
        if prune:
            await asyncio.to_thread(_remove_files, folder)
            complain(f"Removed the files of {folder}: its batch is {state}.")
        else:
            complain(
                f"{folder} counts no more, its batch is {state}: leave it out, or remove it with --prune."
            )


def _batch_folders(to: Path) -> list[Path]:
    inside = sorted(to.iterdir()) if to.is_dir() else []
    return [folder for folder in inside if _BATCH_ID.fullmatch(folder.name) and folder.is_dir()]


def _remove_files(folder: Path) -> None:
    """Remove what downloads have written, and the folders that are empty then."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.suffix in {".parquet", ".part"}:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _advance(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def _days(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(days=number)
