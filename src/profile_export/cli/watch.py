"""A job as it runs, and what it came to."""

from datetime import timedelta

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from profile_export.cli.output import count, fact_table, moment, size, span, state, table
from profile_export.client import Client, ExportJob, JobMetrics, JobPhase, JobProgress, JobTransition

PROGRESS_INTERVAL = timedelta(milliseconds=100)
_BAR_WIDTH = 40
PHASE_STYLES = {
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
    with progress_bar(screen, indent) as bar:
        task = bar.add_task("new", total=None, counts="")
        async for message in client.watch_job(job_id, after_revision=0, progress_interval=PROGRESS_INTERVAL):
            for transition in message.transitions:
                screen.print(Text(" " * indent) + move(transition), soft_wrap=True)
                bar.update(task, description=state(transition.to_state).plain.lower())
            if message.HasField("progress"):
                advance(bar, task, message.progress)
            if message.HasField("job"):
                job = message.job
    return job or await client.get_job(job_id)


def progress_bar(screen: Console, indent: int = 0) -> Progress:
    """Return bars for jobs, each a task with `counts`; silent where the output is no terminal."""
    return Progress(
        TextColumn(" " * max(indent - 1, 0)),
        SpinnerColumn(),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=_BAR_WIDTH),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


def summary(job: ExportJob) -> RenderableType:
    """Return what a job came to: its counts, where its time went, and what went wrong."""
    parts: list[RenderableType] = [facts(job), Text(), phase_chart(job.metrics)]
    for error in job.errors:
        line = f"{error.code} in {error.component}, attempt {error.attempt}: {error.message}"
        parts.append(Text(line, style="red"))
    parts.extend(Text(f"Note: {note}", style="yellow") for note in job.notes)
    return Group(*parts)


def phase_chart(metrics: JobMetrics) -> Table:
    """Return the time of each phase as a bar that begins where the one before ends, adding up to the total."""
    chart = table("phase", "", "time", "share", numbers=("time", "share"))
    total = metrics.total_time.ToTimedelta().total_seconds()
    begin = 0.0
    for phase in metrics.phases:
        name = phase_name(phase.phase)
        seconds = phase.time.ToTimedelta().total_seconds()
        bar = Bar(
            total or 1.0, begin, begin + seconds, width=_BAR_WIDTH, color=PHASE_STYLES.get(name, "white")
        )
        chart.add_row(name, bar, span(phase.time.ToTimedelta()), _share(seconds, total))
        begin += seconds
    chart.add_row(
        Text("total", style="bold"),
        "",
        Text(span(timedelta(seconds=total)), style="bold"),
        _share(begin, total),
    )
    return chart


def phase_name(phase: JobPhase.ValueType) -> str:
    """Return the word for a phase."""
    return JobPhase.Name(phase).removeprefix("JOB_PHASE_").lower()


def _share(part: float, total: float) -> str:
    return f"{part / total:.0%}" if total else ""


def move(transition: JobTransition, name: str = "") -> Text:
    """Return the line that tells of a move, of a job that has a name where it is one of several."""
    line = Text(moment(transition.time.ToDatetime(), clock=True) + "  ", style="dim")
    line += Text(f"{name}  " if name else "")
    if transition.revision > 1:
        line += state(transition.from_state) + Text(" → ")
    line += state(transition.to_state)
    details = [f"attempt {transition.attempt}"] if transition.attempt else []
    details += [transition.reason] if transition.reason else []
    return line + Text("  " + ", ".join(details), style="dim") if details else line


def advance(bar: Progress, task: TaskID, progress: JobProgress, name: str = "") -> None:
    """Show how far a job is, which has a name where it is one of several."""
    done, estimated = progress.done, progress.estimated
    counts = f"{count(done)}/{count(estimated)} {progress.unit}" if estimated else ""
    if progress.rows_per_second:
        counts += f"  {count(round(progress.rows_per_second))}/s"
    if progress.HasField("eta"):
        counts += f"  {span(progress.eta.ToTimedelta())} left"
    bar.update(
        task,
        description=f"{name}  {phase_name(progress.phase)}" if name else phase_name(progress.phase),
        completed=done,
        total=estimated or None,
        counts=counts.strip(),
    )


def facts(job: ExportJob) -> Table:
    """Return the counts of a job."""
    rows: list[tuple[str, RenderableType]] = [("job", Text(f"{job.id}  ") + state(job.state))]
    if job.batch_id:
        rows.append(("batch", job.batch_id))
    rows += [("batch", f"{one.batch_id}  {one.namespace}:{one.segment_id}") for one in job.batches]
    rows += metric_facts(job.metrics)
    if job.HasField("expire_time"):
        rows.append(("expires", moment(job.expire_time.ToDatetime())))
    return fact_table(rows)


def metric_facts(metrics: JobMetrics) -> list[tuple[str, RenderableType]]:
    """Return the counters of a job as facts, each with its name before it."""
    rows: list[tuple[str, RenderableType]] = []
    profiles = f"{count(metrics.profiles_exported)} of {count(metrics.profiles_read)} exported"
    rows.append(("profiles", profiles))
    if metrics.profiles_merged:
        rows.append(("", f"{count(metrics.profiles_merged)} put together from several fragments"))
    namespaces = sorted(metrics.profiles_exported_by_namespace.items())
    if namespaces:
        rows.append(("", ", ".join(f"{name} {count(number)}" for name, number in namespaces)))
    left_out = [
        f"{words} {count(getattr(metrics.left_out, name))}"
        for name, words in LEFT_OUT.items()
        if getattr(metrics.left_out, name)
    ]
    if left_out:
        rows.append(("left out", ", ".join(left_out)))
    rows.append(("fragments", f"{count(metrics.fragments_read)} read"))
    if metrics.events_read:
        events = f"{count(metrics.events_exported)} of {count(metrics.events_read)} exported"
        rows.append(("events", events))
    files = f"{count(metrics.files_written)} file{'' if metrics.files_written == 1 else 's'}"
    rows.append(("written", f"{count(metrics.rows_written)} rows, {files}, {size(metrics.bytes_written)}"))
    if metrics.peak_memory_bytes:
        rows.append(("memory", f"{size(metrics.peak_memory_bytes)} at most"))
    return rows
