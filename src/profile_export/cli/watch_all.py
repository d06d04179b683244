"""All jobs that run, as they run."""

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from profile_export.cli.output import count, moment, one_line, print_json_line, span, state
from profile_export.cli.watch import PROGRESS_INTERVAL, advance, move, progress_bar
from profile_export.client import FINAL_STATES, Client, ExportJob, JobChange, JobState, as_json

_RUNNING = tuple(one for one in JobState.values() if one and one not in FINAL_STATES)


async def follow_all(client: Client, dataset_id: str, screen: Console) -> None:
    """Show a bar for each job that runs, and a line for each move, until interrupted.

    Where the output is no terminal there are the lines alone.
    """
    with progress_bar(screen) as bar:
        shown = _Shown(bar)
        changes = client.watch_jobs(
            states=_RUNNING, dataset_id=dataset_id, progress_interval=PROGRESS_INTERVAL
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

    def __init__(self, bar: Progress) -> None:
        self.jobs: dict[int, TaskID] = {}
        self._bar = bar

    def take(self, change: JobChange) -> Text | None:
        """Show a change; return the line that tells it, if it is more than progress."""
        if change.HasField("progress"):
            if change.job_id in self.jobs:
                advance(self._bar, self.jobs[change.job_id], change.progress, self._name(change.job_id))
            return None
        current = change.transition.to_state if change.HasField("transition") else change.job.state
        if change.removed or current in FINAL_STATES:
            self._end(change.job_id)
        else:
            self._show(change, state(current).plain.lower())
        if change.HasField("transition"):
            return move(change.transition, self._name(change.job_id)) + _result(change.job)
        return None if change.removed else self._listed(change.job)

    def _show(self, change: JobChange, word: str) -> None:
        if change.job_id not in self.jobs:
            self.jobs[change.job_id] = self._bar.add_task(word, total=None, counts="")
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
