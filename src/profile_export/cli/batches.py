"""Batches: what became of an upload, and taking it back."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from profile_export.cli.terminal.command import AsJson, command
from profile_export.cli.terminal.output import (
    batch_state,
    console,
    count,
    fact_table,
    moment,
    one_line,
    print_json,
    print_rows,
    size,
    table,
)
from profile_export.cli.terminal.watch import shown_receipt
from profile_export.client import Batch, BatchState, Client, RejectedRow, as_json

group = typer.Typer(no_args_is_help=True, help="Batches: what became of an upload, and taking it back.")

BatchId = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Kept with the batch.")]


@command(group, "list")
async def list_(
    client: Client,
    dataset_id: Annotated[str, typer.Argument(metavar="DATASET_ID", help="Any dataset.")],
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
            moment(batch.ingest_time.ToDatetime()),
            count(batch.rows),
            count(batch.rejected_rows),
            count(batch.file_count),
            size(batch.bytes),
        )
        for batch in batches
    ]
    headers = ("id", "ingested", "rows", "rejected", "files", "size")
    print_rows(
        headers, rows, empty=f"No batches. Upload one: profile-export datasets upload {dataset_id} PATH"
    )


@command(group, "show")
async def show(client: Client, batch_id: BatchId, as_data: AsJson = False) -> None:
    """Show one batch, in any state: its counts, what has arrived of its files, and why it was refused.

    Example: `profile-export batches show crm-2026-01 --json`
    """
    _show(await client.get_batch(batch_id), as_data=as_data)


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
        console().print(shown_receipt(answer))


@command(group, "complete")
async def complete(client: Client, batch_id: BatchId, as_data: AsJson = False) -> None:
    """Make a batch of several files count, once all of them have arrived.

    `datasets upload` does so by itself; this is for a batch that another client has filled.

    Example: `profile-export batches complete crm-2026-01`
    """
    _tell((await client.complete_batch(batch_id)).batch, as_data=as_data)


@command(group, "abort")
async def abort(client: Client, batch_id: BatchId, reason: Reason = "", as_data: AsJson = False) -> None:
    """Give up a batch that is still LOADING and remove what was received of it.

    Example: `profile-export batches abort crm-2026-01 --reason "wrong file"`
    """
    _tell(await client.abort_batch(batch_id, reason), as_data=as_data)


@command(group, "revert")
async def revert(client: Client, batch_id: BatchId, reason: Reason = "", as_data: AsJson = False) -> None:
    """Take back a batch that has SUCCEEDED: its rows stop counting at once.

    Example: `profile-export batches revert crm-2026-01 --reason "wrong day"`
    """
    _tell(await client.revert_batch(batch_id, reason), as_data=as_data)


def print_rejected(
    rows: Sequence[RejectedRow],
    total: int,
    batch_id: str,
    *,
    screen: Console | None = None,
    paths: Mapping[str, str] | None = None,
) -> None:
    """Write rejected rows as a table, and how to see those that are not in it.

    Args:
        rows: The first of them.
        total: How many there are.
        batch_id: Their batch.
        screen: Where to write. None: the output.
        paths: The files by their names within the batch. None: the names will do.
    """
    screen = screen or console()
    made = table("file", "row", "reason", "field", numbers=("row",))
    made.add_column(Text("why, and the row as sent"))
    for row in rows:
        made.add_row(
            (paths or {}).get(row.file_name, row.file_name),
            count(row.row_number),
            row.reason,
            one_line(row.path),
            Group(
                one_line(row.message), Text(one_line(row.row), style="dim", no_wrap=True, overflow="ellipsis")
            ),
        )
    screen.print(made if rows else Text("No rejected rows.", style="dim"))
    if total > len(rows):
        hint = f"{count(len(rows))} of {count(total)} rejected rows; all: profile-export batches rejected {batch_id}"
        screen.print(Text(hint, style="dim"), soft_wrap=True)


def _tell(batch: Batch, *, as_data: bool) -> None:
    """Say in one line how a batch stands."""
    if as_data:
        print_json(as_json(batch))
    else:
        console().print(f"batch {batch.id}", batch_state(batch.state), soft_wrap=True)


def _show(batch: Batch, *, as_data: bool) -> None:
    if as_data:
        print_json(as_json(batch))
        return
    facts: list[tuple[str, RenderableType]] = [
        ("batch", Text(f"{batch.id}  ") + batch_state(batch.state)),
        ("dataset", batch.dataset_id),
    ]
    if batch.HasField("job_id"):
        facts.append(("job", str(batch.job_id)))
    facts += _times(batch)
    if batch.number:
        facts.append(("number", count(batch.number)))
    files = f"{count(batch.file_count)} data file{'' if batch.file_count == 1 else 's'}"
    facts.append(("rows", f"{count(batch.rows)}, {files}, {size(batch.bytes)}"))
    if batch.rejected_rows:
        facts.append(
            ("rejected", f"{count(batch.rejected_rows)} (profile-export batches rejected {batch.id})")
        )
    for upload in batch.uploads:
        arrived = "complete" if upload.complete else "not complete"
        facts.append(("file", f"{upload.file_name}  {size(upload.received_bytes)} received, {arrived}"))
    for error in batch.errors:
        if not error.HasField("row_number"):
            facts.append(("error", f"{error.code}: {one_line(error.message)}"))
    if batch.state_reason:
        facts.append(("reason", one_line(batch.state_reason)))
    console().print(fact_table(facts))


def _times(batch: Batch) -> list[tuple[str, RenderableType]]:
    expiry = "expired" if batch.state == BatchState.BATCH_STATE_EXPIRED else "expires"
    times = {
        "created": batch.create_time,
        "ended": batch.end_time,
        "ingested": batch.ingest_time,
        expiry: batch.expire_time,
    }
    # One that is absent reads as the beginning of time.
    return [(name, moment(time.ToDatetime())) for name, time in times.items() if time.ToMicroseconds()]
