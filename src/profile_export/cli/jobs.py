"""Export jobs: start, follow, stop."""

from pathlib import Path
from typing import Annotated

import typer

from profile_export.cli.command import AsJson, RequestId, command, length
from profile_export.cli.estimates import show_estimate
from profile_export.cli.export_options import ExportOptions
from profile_export.cli.output import (
    console,
    count,
    moment,
    one_line,
    print_json,
    print_rows,
    size,
    span,
    state,
)
from profile_export.cli.watch import follow, summary
from profile_export.cli.watch_all import follow_all, print_all
from profile_export.client import Client, ExportJob, JobState, as_json

group = typer.Typer(no_args_is_help=True, help="Export jobs: start, follow, stop.")

JobId = Annotated[int, typer.Argument(metavar="ID", help="Number of the job.")]


@command(group, "create")
async def create(
    client: Client,
    *,
    wanted: ExportOptions,
    request_id: RequestId = "",
    max_run_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="The longest time from now to its end, such as 90s or 12h; then it has FAILED. Default: no limit.",
        ),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_data: AsJson = False,
) -> int | None:
    """Start an export and print the number of the job, or with --watch follow it.

    Example: `profile-export jobs create --to 5f0c… --policy 3a1b… --segment gold --events --watch`
    """
    spec = wanted.spec(length("--max-run-time", max_run_time))
    answer = await client.create_job(spec, request_id)
    if watch:
        return await _watch(client, answer.job.id, as_data=as_data)
    if as_data:
        print_json(as_json(answer.job))
    else:
        typer.echo(answer.job.id)
    return None


@command(group, "estimate")
async def estimate(
    client: Client,
    *,
    wanted: ExportOptions,
    rows: Annotated[int, typer.Option(min=0, max=100, metavar="N", help="How many sample rows.")] = 0,
    as_data: AsJson = False,
) -> None:
    """Say what an export would do, without doing it.

    Example: `profile-export jobs estimate --to 5f0c… --field person.name --rows 3`
    """
    answer = await client.estimate_job(wanted.spec(), rows)
    if as_data:
        print_json(as_json(answer))
    else:
        show_estimate(answer)


@command(group, "list")
async def list_(
    client: Client,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the newest.")] = 20,
    as_data: AsJson = False,
) -> None:
    """List the newest jobs.

    Example: `profile-export jobs list --limit 5`
    """
    jobs = await client.list_jobs(limit)
    if as_data:
        print_json([as_json(job) for job in jobs])
        return
    rows = [
        (
            str(job.id),
            state(job.state),
            moment(job.create_time.ToDatetime()),
            span(job.metrics.total_time.ToTimedelta()),
            count(job.metrics.profiles_exported),
            count(job.metrics.events_exported),
            job.spec.destination.dataset_id,
        )
        for job in jobs
    ]
    headers = ("id", "state", "created", "took", "profiles", "events", "to")
    print_rows(headers, rows, empty="No jobs. Start one: profile-export jobs create --to DATASET_ID")


@command(group, "show")
async def show(client: Client, job_id: JobId, as_data: AsJson = False) -> None:
    """Show one job: its state, its counts and where its time went.

    Example: `profile-export jobs show 7 --json`
    """
    _show(await client.get_job(job_id), as_data=as_data)


@command(group, "cancel")
async def cancel(
    client: Client,
    job_id: JobId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the job.")] = "",
    as_data: AsJson = False,
) -> None:
    """Ask a job to stop: nothing of it will be visible.

    Example: `profile-export jobs cancel 7 --reason "wrong policy"`
    """
    job = await client.cancel_job(job_id, reason)
    if as_data:
        print_json(as_json(job))
    else:
        console().print(f"job {job.id}", state(job.state))


@command(group, "watch")
async def watch(
    client: Client,
    job_id: Annotated[
        int | None, typer.Argument(metavar="ID", help="Number of the job. Without it: all that run.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="DATASET_ID", help="Without ID: only jobs that write there.")
    ] = "",
    as_data: AsJson = False,
) -> int:
    """Follow a job to its end: exit 0 if it SUCCEEDED, 1 if not. Without ID follow all that run, until Ctrl-C.

    A lost connection is taken up again where it broke.

    Example: `profile-export jobs watch 7`
    """
    if job_id is not None:
        if to:
            raise typer.BadParameter("--to goes without ID: a job writes to one place.")
        return await _watch(client, job_id, as_data=as_data)
    if as_data:
        await print_all(client, to)
    else:
        await follow_all(client, to, console())
    return 0


@group.command("verify")
def verify(
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", help="A receipt.json, with its files beside it.")
    ],
) -> None:
    """Check the files of an export against their receipt, without a server: exit 0 if all is as it says, 1 if not.

    Every file is read: its SHA-256, bytes and rows. Each finding is a line; so is a Parquet file that is not listed.

    Example: `profile-export jobs verify data/lake/5f0c…/9a1e…/receipt.json`
    """
    from profile_export import app

    checked = app.verify(receipt)
    for finding in checked.findings:
        typer.echo(one_line(finding))
    sums = f"{count(checked.files)} files, {count(checked.rows)} rows, {size(checked.bytes)}"
    verdict = f"findings: {len(checked.findings)}" if checked.findings else "all as the receipt says"
    typer.echo(f"Checked {sums} of batch {one_line(checked.batch_id)}: {verdict}.")
    if checked.findings:
        raise typer.Exit(1)


async def _watch(client: Client, job_id: int, *, as_data: bool) -> int:
    job = await follow(client, job_id, console(stderr=True) if as_data else console())
    if not as_data:
        typer.echo()
    _show(job, as_data=as_data)
    return 0 if job.state == JobState.JOB_STATE_SUCCEEDED else 1


def _show(job: ExportJob, *, as_data: bool) -> None:
    if as_data:
        print_json(as_json(job))
    else:
        console().print(summary(job))
