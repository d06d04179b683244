"""Datasets: make them, fill them, fetch what exports have written."""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from profile_export.cli.command import AsJson, RequestId, command
from profile_export.cli.output import complain, console, count, moment, print_json, print_rows, size, transfer
from profile_export.client import Client, DatasetKind, IdentityField, UploadFormat, as_json

group = typer.Typer(
    no_args_is_help=True, help="Datasets: make them, fill them, fetch what exports have written."
)


class Kind(Enum):
    """What the rows of a dataset are."""

    RECORD = "record"
    EVENT = "event"
    UNION = "union"


class Format(Enum):
    """What the bytes of a file are."""

    JSON_LINES = "json-lines"
    PARQUET = "parquet"


_KINDS = {
    Kind.RECORD: DatasetKind.DATASET_KIND_RECORD,
    Kind.EVENT: DatasetKind.DATASET_KIND_EVENT,
    Kind.UNION: DatasetKind.DATASET_KIND_UNION,
}
_FORMATS = {
    Format.JSON_LINES: UploadFormat.UPLOAD_FORMAT_JSON_LINES,
    Format.PARQUET: UploadFormat.UPLOAD_FORMAT_PARQUET,
}
_SUFFIXES = {
    ".json": Format.JSON_LINES,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
    ".parquet": Format.PARQUET,
}


@command(group, "create")
async def create(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people; need not be unique.")],
    *,
    kind: Annotated[
        Kind,
        typer.Option(help="`record`: who someone is. `event`: what they did. `union`: where exports go."),
    ],
    identity: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=NAMESPACE", help="A field that holds an identity. May be given again."),
    ] = None,
    primary: Annotated[
        str | None, typer.Option(metavar="PATH=NAMESPACE", help="The field that holds the primary identity.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A tag. The same key again: one more value.")
    ] = None,
    request_id: RequestId = "",
    as_data: AsJson = False,
) -> None:
    """Make a dataset and print its id.

    Example: `profile-export datasets create CRM --kind record --primary crmId=CRM --identity
    personalEmail.address=Email`
    """
    fields = [_identity("--identity", one, primary=False) for one in identity or ()]
    if primary is not None:
        fields.append(_identity("--primary", primary, primary=True))
    tags: dict[str, list[str]] = {}
    for one in tag or ():
        key, value = _pair("--tag", one)
        tags.setdefault(key, []).append(value)
    dataset = await client.create_dataset(
        name, _KINDS[kind], identities=fields, tags=tags, request_id=request_id
    )
    if as_data:
        print_json(as_json(dataset))
    else:
        typer.echo(dataset.id)


@command(group, "list")
async def list_(client: Client, as_data: AsJson = False) -> None:
    """List the datasets, oldest first.

    Example: `profile-export datasets list --json`
    """
    datasets = await client.list_datasets()
    if as_data:
        print_json([as_json(dataset) for dataset in datasets])
        return
    rows = [
        (
            dataset.id,
            DatasetKind.Name(dataset.kind).removeprefix("DATASET_KIND_").lower(),
            moment(dataset.create_time.ToDatetime()),
            dataset.name,
        )
        for dataset in datasets
    ]
    way_out = "No datasets. Make one: profile-export datasets create NAME --kind record"
    print_rows(("id", "kind", "created", "name"), rows, empty=way_out)


@command(group, "upload")
async def upload(
    client: Client,
    dataset_id: Annotated[str, typer.Argument(metavar="DATASET_ID", help="A record or event dataset.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    upload_format: Annotated[
        Format | None,
        typer.Option("--format", help="Guessed by .jsonl, .ndjson, .json (lines too) or .parquet."),
    ] = None,
    batch_id: Annotated[
        str, typer.Option(metavar="ID", help="Id of the batch. Default: derived from dataset and content.")
    ] = "",
    as_data: AsJson = False,
) -> None:
    """Upload a file as one batch: all its rows count at once, or none.

    Safe to repeat: the same file in the same dataset is the same batch, and an interrupted upload goes on.

    Example: `profile-export datasets upload 5f0c… crm.jsonl`
    """
    guessed = upload_format or _SUFFIXES.get(file.suffix.lower())
    if guessed is None:
        raise typer.BadParameter(
            f"The format of {file.name} cannot be guessed: add --format json-lines or parquet."
        )
    with transfer(console(stderr=True)) as bar:
        task = bar.add_task(file.name, total=file.stat().st_size)
        answer = await client.upload(
            dataset_id,
            file,
            _FORMATS[guessed],
            batch_id=batch_id,
            progress=partial(_advance, bar, task),
        )
    if as_data:
        print_json(as_json(answer))
    else:
        batch, note = answer.batch, " (was there already)" if answer.replayed else ""
        typer.echo(f"batch {batch.id}: {count(batch.rows)} rows, {size(batch.bytes)}{note}")


@command(group, "download")
async def download(
    client: Client,
    dataset_id: Annotated[str, typer.Argument(metavar="DATASET_ID", help="Any dataset.")],
    to: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Folder to write to; made if missing.")
    ],
    batch: Annotated[str, typer.Option(metavar="ID", help="Only this batch. Default: all.")] = "",
) -> int | None:
    """Fetch the Parquet files of a dataset, each checked against its SHA-256, into DIR/BATCH/FILE.

    Safe to repeat: files that are there stay, an interrupted one goes on. Prints where each file is.

    Example: `profile-export datasets download 5f0c… --to out`
    """
    batches = [one.id for one in await client.list_batches(dataset_id) if batch in {"", one.id}]
    if not batches:
        named = f"batch {batch}" if batch else "no visible batch"
        complain(f"Dataset {dataset_id} has {'no ' if batch else ''}{named}. See: profile-export jobs list")
        return 1
    with transfer(console(stderr=True)) as bar:
        for batch_id in batches:
            for file in await client.list_files(batch_id):
                task = bar.add_task(file.name, total=file.bytes)
                progress = partial(_advance, bar, task)
                typer.echo(await client.download(batch_id, file, to / batch_id, progress=progress))
    return None


def _advance(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def _identity(option: str, text: str, *, primary: bool) -> IdentityField:
    path, namespace = _pair(option, text)
    return IdentityField(path=path, namespace=namespace, primary=primary)


def _pair(option: str, text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise typer.BadParameter(
            f"{option} {text!r} needs a name, `=` and a value, such as personalEmail.address=Email."
        )
    return left, right
