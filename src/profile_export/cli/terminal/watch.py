"""A job as it runs, all jobs that run, what one came to, and its receipt."""

from __future__ import annotations

from datetime import timedelta

from rich.bar import Bar
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from profile_export.cli.terminal.cells import Size, count, moment, one_line, several, size, span, state, word
from profile_export.cli.terminal.output import (
    Bars,
    Fact,
    console,
    fact_table,
    print_facts,
    print_json_line,
    print_rows,
    table,
)
from profile_export.client import (
    FINAL_STATES,
    AttributeMergeType,
    Client,
    ExportJob,
    GetReceiptResponse,
    IdentityGraph,
    JobChange,
    JobMetrics,
    JobPhase,
    JobProgress,
    JobState,
    JobTransition,
    as_json,
)

_PROGRESS_INTERVAL = timedelta(milliseconds=100)
_BAR_WIDTH = 40
_BESIDE_THE_BAR = 36
_TELL_SECONDS = 5.0
_TELL_ALL_SECONDS = 30.0
_PHASE_STYLES = {
    "queue": "bright_black",
    "plan": "cyan",
    "resolve": "magenta",
    "run": "blue",
    "commit": "green",
    "cancel": "yellow",
    "lost": "red",
}
LEFT_OUT = {
    "not_listed": "no dataset of the policy",
    "too_many_identities": "too many identities",
    "events_only": "events only",
    "not_newer": "nothing newer",
    "not_in_segments": "in no segment asked for",
}


async def follow(client: Client, job_id: int, screen: Console, *, indent: int = 0) -> ExportJob:
    """Show the moves of a job and its progress as they come; return the job when it has ended."""
    job: ExportJob | None = None
    with _progress_bar(screen, indent) as bar:
        task = bar.add_task("new", total=None, counts="", job=f"job {job_id}")
        async for message in client.watch_job(job_id, after_revision=0, progress_interval=_PROGRESS_INTERVAL):
            for transition in message.transitions:
                screen.print(Text(" " * indent) + _move(transition), soft_wrap=True)
                bar.update(task, description=state(transition.to_state).plain.lower())
            if message.HasField("progress"):
                _advance(bar, task, message.progress)
            if message.HasField("job"):
                job = message.job
    return job or await client.get_job(job_id)


def _progress_bar(screen: Console, indent: int = 0, *, every: float = _TELL_SECONDS) -> Bars:
    """Return bars for jobs, each a task with `counts`, and with the `job` where its description does not name it."""
    return Bars(
        TextColumn(" " * max(indent - 1, 0)),
        SpinnerColumn(),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=min(_BAR_WIDTH, screen.width // 4)),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        screen=screen,
        line=_progress_line,
        transient=True,
        every=every,
    )


def _progress_line(task: Task) -> str:
    parts = (task.fields["job"], task.description, task.fields["counts"])
    return "  ".join(part for part in parts if part)


def print_summary(job: ExportJob) -> None:
    """Write what a job came to: its counts, where its time went, and what went wrong."""
    print_facts(_facts(job))
    screen = console()
    screen.print()
    if screen.is_terminal:
        screen.print(phase_chart(job.metrics, min(_BAR_WIDTH, screen.width - _BESIDE_THE_BAR)))
    else:
        _print_phases(job.metrics)
    for error in job.errors:
        line = f"{error.code} in {error.component}, attempt {error.attempt}: {error.message}"
        screen.print(Text(one_line(line), style="red"), soft_wrap=True)
    for note in job.notes:
        screen.print(Text(f"Note: {one_line(note)}", style="yellow"), soft_wrap=True)


def _print_phases(metrics: JobMetrics) -> None:
    total = metrics.total_time.ToTimedelta()
    rows = [
        (_phase_name(phase.phase), phase.time.ToTimedelta(), _share(phase.time.ToTimedelta(), total))
        for phase in metrics.phases
    ]
    spent = sum((phase.time.ToTimedelta() for phase in metrics.phases), timedelta())
    print_rows(("phase", "time", "share"), [*rows, ("total", total, _share(spent, total))], empty="")


def phase_chart(metrics: JobMetrics, width: int = _BAR_WIDTH) -> Table:
    """Return the time of each phase as a bar that begins where the one before ends, adding up to the total."""
    chart = table("phase", "", "time", "share", numbers=("time", "share"))
    total = metrics.total_time.ToTimedelta()
    begin = timedelta()
    for phase in metrics.phases:
        name, time = _phase_name(phase.phase), phase.time.ToTimedelta()
        style = _PHASE_STYLES.get(name, "white")
        ends = begin.total_seconds(), (begin + time).total_seconds()
        bar = Bar(total.total_seconds() or 1.0, *ends, width=width, color=style)
        chart.add_row(name, bar, span(time), _share(time, total))
        begin += time
    chart.add_row(Text("total", style="bold"), "", Text(span(total), style="bold"), _share(begin, total))
    return chart


def _phase_name(phase: JobPhase.ValueType) -> str:
    return word(JobPhase, phase).lower()


def _share(part: timedelta, total: timedelta) -> str:
    return f"{part / total:.0%}" if total else ""


def _move(transition: JobTransition, name: str = "") -> Text:
    """Return the line that tells of a move, of a job that has a name where it is one of several."""
    line = Text(moment(transition.time.ToDatetime(), clock=True) + "  ", style="dim")
    line += Text(f"{name}  " if name else "")
    if transition.revision > 1:
        line += state(transition.from_state) + Text(" → ")
    line += state(transition.to_state)
    details = [f"attempt {transition.attempt}"] if transition.attempt else []
    details += [one_line(transition.reason)] if transition.reason else []
    return line + Text("  " + ", ".join(details), style="dim") if details else line


def _advance(bar: Bars, task: TaskID, progress: JobProgress, name: str = "") -> None:
    """Show how far a job is, which has a name where it is one of several."""
    done, estimated = progress.done, progress.estimated
    counts = f"{count(done)}/{count(estimated)} {progress.unit}" if estimated else ""
    if progress.rows_per_second:
        counts += f"  {count(round(progress.rows_per_second))}/s"
    if progress.HasField("eta"):
        counts += f"  {span(progress.eta.ToTimedelta())} left"
    bar.update(
        task,
        description=f"{name}  {_phase_name(progress.phase)}" if name else _phase_name(progress.phase),
        completed=done,
        total=estimated or None,
        counts=counts.strip(),
    )


def facts(job: ExportJob) -> Table:
    """Return the counts of a job."""
    return fact_table(_facts(job))


def _facts(job: ExportJob) -> list[Fact]:
    used = job.spec.merge_policy
    rules = (job.attribute_merge_type, job.identity_graph, job.excluded_identity_count)
    return [
        ("job", Text(f"{job.id}  ") + state(job.state)),
        ("to", job.spec.destination.dataset_id),
        ("policy", f"{one_line(job.merge_policy_name)}  {_policy(used.id, used.version, *rules)}"),
        ("created", job.create_time.ToDatetime()),
        ("batch", job.batch_id or None),
        *(("batch", f"{one.batch_id}  {one.namespace}:{one.segment_id}") for one in job.batches),
        *_metric_facts(job.metrics),
        ("expires", job.expire_time.ToDatetime() if job.HasField("expire_time") else None),
    ]


def _policy(
    policy_id: str,
    version: int,
    merge: AttributeMergeType.ValueType,
    graph: IdentityGraph.ValueType,
    excluded: int,
) -> str:
    rules = f"{word(AttributeMergeType, merge)}, graph {word(IdentityGraph, graph)}"
    without = (
        f", {count(excluded)} {'identity' if excluded == 1 else 'identities'} excluded" if excluded else ""
    )
    return f"{policy_id} version {version}: {rules}{without}"


def _metric_facts(metrics: JobMetrics) -> list[Fact]:
    """Return the counters of a job as facts, each with its name before it."""
    merged, memory = metrics.profiles_merged, metrics.peak_memory_bytes
    namespaces = sorted(metrics.profiles_exported_by_namespace.items())
    left_out = [
        f"{words} {count(getattr(metrics.left_out, name))}"
        for name, words in LEFT_OUT.items()
        if getattr(metrics.left_out, name)
    ]
    events = f"{count(metrics.events_exported)} of {count(metrics.events_read)} exported"
    files = several(metrics.files_written, "file")
    return [
        ("profiles", f"{count(metrics.profiles_exported)} of {count(metrics.profiles_read)} exported"),
        ("", f"{count(merged)} put together from several fragments" if merged else None),
        ("", ", ".join(f"{name} {count(number)}" for name, number in namespaces) or None),
        ("left out", ", ".join(left_out) or None),
        ("fragments", f"{count(metrics.fragments_read)} read"),
        ("events", events if metrics.events_read else None),
        ("written", f"{several(metrics.rows_written, 'row')}, {files}, {size(metrics.bytes_written)}"),
        ("memory", f"{size(memory)} at most" if memory else None),
    ]


_RUNNING = tuple(one for one in JobState.values() if one and one not in FINAL_STATES)


async def follow_all(client: Client, dataset_id: str, screen: Console) -> None:
    """Show a bar for each job that runs, and a line for each move, until interrupted.

    Where the output is no terminal there are lines alone, now and then also of how far the jobs are.
    """
    with _progress_bar(screen, every=_TELL_ALL_SECONDS) as bar:
        shown = _Shown(bar)
        changes = client.watch_jobs(
            states=_RUNNING, dataset_id=dataset_id, progress_interval=_PROGRESS_INTERVAL
        )
        async for message in changes:
            for change in message.changes:
                if line := shown.take(change):
                    screen.print(line, soft_wrap=True)
            if message.list_complete and not shown.jobs:
                screen.print(Text("No job runs. Each that starts is shown here.", style="dim"))


async def print_all(client: Client, dataset_id: str) -> None:
    """Write each job that runs, and then each change, as a line of JSON, until interrupted."""
    async for message in client.watch_jobs(states=_RUNNING, dataset_id=dataset_id):
        for change in message.changes:
            print_json_line(as_json(change))


class _Shown:
    """The jobs that run, each with its bar."""

    def __init__(self, bar: Bars) -> None:
        self.jobs: dict[int, TaskID] = {}
        self._bar = bar

    def take(self, change: JobChange) -> Text | None:
        """Show a change; return the line that tells it, if it is more than progress."""
        if change.HasField("progress"):
            if change.job_id in self.jobs:
                _advance(self._bar, self.jobs[change.job_id], change.progress, self._name(change.job_id))
            return None
        current = change.transition.to_state if change.HasField("transition") else change.job.state
        if change.removed or current in FINAL_STATES:
            self._end(change.job_id)
        else:
            self._show(change, state(current).plain.lower())
        if change.HasField("transition"):
            return _move(change.transition, self._name(change.job_id)) + _result(change.job)
        return None if change.removed else self._listed(change.job)

    def _show(self, change: JobChange, word: str) -> None:
        if change.job_id not in self.jobs:
            self.jobs[change.job_id] = self._bar.add_task(word, total=None, counts="", job="")
        description = f"{self._name(change.job_id)}  {word}"
        self._bar.update(self.jobs[change.job_id], description=description)

    def _end(self, job_id: int) -> None:
        if job_id in self.jobs:
            self._bar.remove_task(self.jobs.pop(job_id))

    def _listed(self, job: ExportJob) -> Text:
        since = moment(job.create_time.ToDatetime())
        return Text(f"{self._name(job.id)}  ") + state(job.state) + Text(f"  since {since}", style="dim")

    @staticmethod
    def _name(job_id: int) -> str:
        return f"job {job_id}"


def _result(job: ExportJob) -> Text:
    if job.state == JobState.JOB_STATE_SUCCEEDED:
        took = span(job.metrics.total_time.ToTimedelta())
        return Text(f"  {count(job.metrics.rows_written)} rows in {took}", style="dim")
    if job.state == JobState.JOB_STATE_FAILED and job.errors:
        return Text("  " + one_line(job.errors[-1].message), style="red")
    return Text()


def print_receipt(answer: GetReceiptResponse) -> None:
    """Write what a receipt proves: the counts, what was read, and the files with their hashes."""
    receipt = answer.receipt
    policy, segment = receipt.merge_policy, receipt.segment
    rules = (policy.attribute_merge.type, policy.identity_graph, len(policy.excluded_identities))
    named = f"{segment.namespace}:{segment.segment_id}" if receipt.HasField("segment") else None
    print_facts(
        [
            ("batch", receipt.batch_id),
            ("dataset", receipt.dataset_id),
            ("job", f"{receipt.job_id}, attempt {receipt.attempt}"),
            ("committed", receipt.commit_time.ToDatetime()),
            ("policy", _policy(policy.id, policy.version, *rules)),
            ("segment", named),
            *_metric_facts(receipt.metrics),
            ("receipt", answer.location),
        ]
    )
    screen = console()
    screen.print()
    print_rows(
        ("source", "batch", "number", "ingested", "rows"),
        [
            (batch.dataset_id, batch.batch_id, batch.number, batch.ingest_time.ToDatetime(), batch.rows)
            for batch in receipt.input_batches
        ],
        empty="No batch was there to read.",
    )
    screen.print()
    print_rows(
        ("file", "rows", "size", "SHA-256"),
        [(file.name, file.rows, Size(file.bytes), file.sha256) for file in receipt.files],
        empty="No row, and so no file.",
    )
    for note in receipt.notes:
        screen.print(Text(f"Note: {one_line(note)}", style="yellow"), soft_wrap=True)
