"""Export jobs: estimate, start, follow, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from profile_export.cli.serve import importing_server
from profile_export.cli.terminal.cells import Cell, Size, one_line, several, size, state, to_the_second, word
from profile_export.cli.terminal.command import (
    AsJson,
    RequestId,
    command,
    instant,
    job_number,
    length,
    no,
    server_options,
)
from profile_export.cli.terminal.names import DATASET, POLICY
from profile_export.cli.terminal.output import console, print_json, print_rows, remark
from profile_export.cli.terminal.watch import LEFT_OUT, follow, follow_all, print_all, print_summary
from profile_export.client import (
    Client,
    EstimateJobResponse,
    Events,
    Exactness,
    ExportJob,
    ExportSpec,
    Figure,
    JobState,
    MembershipStatus,
    Profiles,
    Segment,
    as_json,
    export_spec,
)


def _show_estimate(answer: EstimateJobResponse) -> None:
    """Write figures, each with how exact it is, then what else is worth knowing, then the sample rows."""
    rows = [(name, *_cells(getattr(answer, name))) for name in ("profiles", "events", "rows", "files")]
    rows.append(("bytes", Size(answer.bytes.value), "about", "", ""))
    rows += [
        (f"left out: {LEFT_OUT[one.reason]}", *_cells(one.profiles))
        for one in answer.left_out
        if one.profiles.value
    ]
    print_rows(("of", "estimate", "how", "at least", "at most"), rows, empty="")
    screen = console()
    for unknown in answer.unknown_fields:
        nearest = f"; the nearest is {one_line(unknown.nearest)}" if unknown.nearest else ""
        line = f"No source has the field {one_line(unknown.path)}{nearest}."
        screen.print(Text(line, style="yellow"), soft_wrap=True)
    for note in answer.notes:
        screen.print(Text(f"Note: {one_line(note)}", style="yellow"), soft_wrap=True)
    if answer.sample_rows:
        print_json([as_json(row) for row in answer.sample_rows])


def _cells(figure: Figure) -> tuple[Cell, Cell, Cell, Cell]:
    if figure.exactness == Exactness.EXACTNESS_EXACT:
        return figure.value, "exact", "", ""
    return figure.value, "about", figure.at_least, figure.at_most if figure.HasField("at_most") else ""


_STATUSES = {word(MembershipStatus, value).lower(): value for value in MembershipStatus.values() if value}


_of_profiles: Callable[..., Any] = partial(typer.Option, rich_help_panel="Which profiles")
_of_events: Callable[..., Any] = partial(typer.Option, rich_help_panel="Their events")


class Mode(Enum):
    """What becomes of the batches that a destination has already."""

    APPEND = "append"
    REPLACE = "replace"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a command line says of an export."""

    to: Annotated[
        str,
        typer.Option(metavar="DATASET", help="The union dataset that gets the rows, by its id or name."),
        DATASET,
    ]
    mode: Annotated[
        Mode,
        typer.Option(
            help="append: beside what the dataset has. replace: in its place, hidden at the moment of success."
        ),
    ] = Mode.APPEND
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="A field to keep, such as person.name. May be given again. Default: all."
        ),
    ] = None
    policy: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Merge policy, by its id or name. Default: the one set as default, else each primary identity is a "
            "profile.",
        ),
        POLICY,
    ] = ""
    segment: Annotated[
        list[str] | None,
        _of_profiles(
            metavar="[NAMESPACE:]ID",
            help="Only who is in this segment; given again, in one of them. Default namespace: ups.",
        ),
    ] = None
    status: Annotated[
        list[str] | None,
        _of_profiles(
            metavar="STATUS",
            help="By which status one is in a segment: realized, existing, exited. Default: the first two.",
        ),
    ] = None
    qualified_from: Annotated[
        str, _of_profiles(metavar="TIME", help="Only who last qualified for it then or later.")
    ] = ""
    qualified_to: Annotated[
        str, _of_profiles(metavar="TIME", help="Only who last qualified for it before then.")
    ] = ""
    newer_than: Annotated[
        str, _of_profiles(metavar="TIME", help="Only profiles whose newest record was ingested later.")
    ] = ""
    empty_profiles: Annotated[
        bool, _of_profiles("--empty-profiles", help="Also profiles that have events and no record.")
    ] = False
    batch_per_segment: Annotated[
        bool, _of_profiles("--batch-per-segment", help="A batch of its own for each segment.")
    ] = False
    events: Annotated[bool, _of_events("--events", help="Take the experience events along.")] = False
    event_field: Annotated[
        list[str] | None, _of_events(metavar="PATH", help="A field of events to keep. Default: all.")
    ] = None
    events_from: Annotated[
        str,
        _of_events(metavar="TIME", help="Only events ingested later, such as 2026-01-31T00:00:00Z."),
    ] = ""
    events_to: Annotated[str, _of_events(metavar="TIME", help="Only events ingested until then.")] = ""

    def spec(self, max_run_time: timedelta | None = None) -> ExportSpec:
        """Write it as a request says it; a job may have a limit beside it.

        Raises:
            typer.BadParameter: A time or a status cannot be read.
        """
        statuses = tuple(_status(text) for text in self.status or ())
        profiles = Profiles(
            segments=tuple(_segment(text, statuses) for text in self.segment or ()),
            qualified_from=instant("--qualified-from", self.qualified_from),
            qualified_to=instant("--qualified-to", self.qualified_to),
            newer_than=instant("--newer-than", self.newer_than),
            without_record=self.empty_profiles,
        )
        if statuses and not profiles.segments:
            raise typer.BadParameter("--status says who is in a segment: name one with --segment.")
        events = Events(
            tuple(self.event_field or ()),
            instant("--events-from", self.events_from),
            instant("--events-to", self.events_to),
        )
        return export_spec(
            self.to,
            fields=self.field or (),
            policy_id=self.policy,
            profiles=profiles if profiles != Profiles() else None,
            events=events if self.events or events != Events() else None,
            batch_per_segment=self.batch_per_segment,
            replace=self.mode is Mode.REPLACE,
            max_run_time=max_run_time,
        )


def _segment(text: str, statuses: tuple[MembershipStatus.ValueType, ...]) -> Segment:
    namespace, _, segment_id = text.rpartition(":")
    return Segment(segment_id, namespace, statuses)


def _status(text: str) -> MembershipStatus.ValueType:
    if text not in _STATUSES:
        raise typer.BadParameter(f"--status {text!r} is none of {', '.join(_STATUSES)}.")
    return _STATUSES[text]


group = typer.Typer(no_args_is_help=True, help="Export jobs: start, follow, stop.")

JobId = Annotated[int, typer.Argument(parser=job_number, metavar="ID", help="Number of the job.")]


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

    Example: `profile-export jobs create --to People --policy 3a1b… --segment gold --events --watch`
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


@command(group, "estimate", _show_estimate)
async def estimate(
    client: Client,
    *,
    wanted: ExportOptions,
    rows: Annotated[int, typer.Option(min=0, max=100, metavar="N", help="How many sample rows.")] = 0,
) -> EstimateJobResponse:
    """Say what an export would do, without doing it.

    Example: `profile-export jobs estimate --to 5f0c… --field person.name --rows 3`
    """
    return await client.estimate_job(wanted.spec(), rows)


def _show_all(jobs: list[ExportJob]) -> None:
    rows = [
        (
            str(job.id),
            state(job.state),
            to_the_second(job.create_time.ToDatetime()),
            job.metrics.total_time.ToTimedelta(),
            job.metrics.profiles_exported,
            job.metrics.events_exported,
            job.spec.destination.dataset_id,
        )
        for job in jobs
    ]
    headers = ("id", "state", "created", "took", "profiles", "events", "to")
    print_rows(headers, rows, empty=no("jobs", "Start one: profile-export jobs create --to DATASET"))


_STATES = {word(JobState, value).lower(): value for value in JobState.values() if value}


@command(group, "list", _show_all)
async def list_(
    client: Client,
    *,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help=f"Only jobs in this state: {', '.join(_STATES)}. May be given again.",
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="DATASET", help="Only jobs that write there; its id or name."), DATASET
    ] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Only jobs created then or later.")] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the newest.")] = 20,
) -> list[ExportJob]:
    """List the newest jobs.

    Example: `profile-export jobs list --state failed --since 2026-01-31T00:00:00Z`
    """
    wanted = [_state(text) for text in states or ()]
    return await client.list_jobs(limit, states=wanted, dataset_id=to, created_from=instant("--since", since))


def _state(text: str) -> JobState.ValueType:
    if text.lower() not in _STATES:
        raise typer.BadParameter(f"--state {text!r} is none of {', '.join(_STATES)}.")
    return _STATES[text.lower()]


@command(group, "show", print_summary)
async def show(client: Client, job_id: JobId) -> ExportJob:
    """Show one job: its state, its counts and where its time went.

    Example: `profile-export jobs show 7 --json`
    """
    return await client.get_job(job_id)


def _tell(job: ExportJob) -> None:
    """Say in one line how a job stands."""
    console().print(Text(f"job {job.id} ") + state(job.state), soft_wrap=True)


@command(group, "cancel", _tell)
async def cancel(
    client: Client,
    job_id: JobId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the job.")] = "",
) -> ExportJob:
    """Ask a job to stop: nothing of it will be visible.

    Example: `profile-export jobs cancel 7 --reason "wrong policy"`
    """
    return await client.cancel_job(job_id, reason)


@command(group, "watch")
async def watch(
    client: Client,
    job_id: Annotated[
        int | None,
        typer.Argument(parser=job_number, metavar="ID", help="Number of the job. Without it: all that run."),
    ] = None,
    to: Annotated[
        str,
        typer.Option("--to", metavar="DATASET", help="Without ID: only jobs that write there."),
        DATASET,
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
    *,
    as_data: AsJson = False,
) -> None:
    """Check the files of an export against their receipt, without a server: exit 0 if all is as it says, 1 if not.

    Every file is read: its SHA-256, bytes and rows. Each finding is a line; so is a Parquet file that is not listed.

    Example: `profile-export jobs verify data/lake/5f0c…/9a1e…/receipt.json`
    """
    with importing_server():
        from profile_export import app

    checked = app.verify(receipt)
    if as_data:
        print_json(asdict(checked) | {"agree": not checked.findings})
    else:
        for finding in checked.findings:
            typer.echo(one_line(finding))
        sums = f"{several(checked.files, 'file')}, {several(checked.rows, 'row')}, {size(checked.bytes)}"
        verdict = f"findings: {len(checked.findings)}" if checked.findings else "all as the receipt says"
        typer.echo(f"Checked {sums} of batch {one_line(checked.batch_id)}: {verdict}.")
    if checked.findings:
        raise typer.Exit(1)


async def _watch(client: Client, job_id: int, *, as_data: bool) -> int:
    try:
        job = await follow(client, job_id, console(stderr=True) if as_data else console())
    except asyncio.CancelledError:  # by Ctrl-C
        options = server_options()
        remark(
            f"Job {job_id} goes on. Watch it again: profile-export jobs watch {job_id}{options}  "
            f"Stop it: profile-export jobs cancel {job_id}{options}"
        )
        raise
    if as_data:
        print_json(as_json(job))
    else:
        typer.echo()
        print_summary(job)
    return 0 if job.state == JobState.JOB_STATE_SUCCEEDED else 1
