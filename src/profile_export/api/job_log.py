"""What all watches of one job write: its log and its progress, read once and serialised once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import datetime

from profile_export.api import convert_jobs
from profile_export.api.reading import Reading
from profile_export.domain.catalog import Tenant
from profile_export.domain.job import Progress
from profile_export.store.events import Wakeups
from profile_export.store.job_rows import JobView
from profile_export.store.jobs import Jobs
from profile_export.v1 import export_service_pb2 as pb


class JobLog(Reading):
    """The log of one job. It is read on while the job can still change."""

    def __init__(
        self, jobs: Jobs, wakeups: Wakeups, tenant: Tenant, job_id: int, now: Callable[[], datetime]
    ) -> None:
        self.progress_number = 0
        """Grows with each new progress; 0 while there is none."""
        self._jobs = jobs
        self._wakeups = wakeups
        self._tenant = tenant
        self._job_id = job_id
        self._now = now
        self._view: JobView | None = None
        self._moves: list[bytes] = []
        self._progress: Progress | None = None
        self._progresses = 0
        self._messages: dict[Hashable, bytes] = {}
        super().__init__()

    @property
    def view(self) -> JobView:
        """The job as it was last read.

        Raises what kept it from being read.
        """
        self.check()
        assert self._view is not None, "a watcher gets a log that has been read"  # noqa: S101 - for the types
        return self._view

    @property
    def is_complete(self) -> bool:
        """Whether the job is final."""
        return self._view is not None and self._view.job.is_final

    def snapshot(self) -> bytes:
        """Return the message with the job as it is."""
        return self._message("snapshot", lambda: pb.WatchJobResponse(job=convert_jobs.export_job(self.view)))

    def moves_after(self, revision: int) -> bytes:
        """Return the message with all moves after a revision, and with the job if it is final."""

        def end() -> pb.WatchJobResponse:
            return pb.WatchJobResponse(job=convert_jobs.export_job(self.view) if self.is_complete else None)

        return self._message(revision, end, b"".join(self._moves[revision:]))

    def progress(self) -> bytes:
        """Return the message with the latest progress."""

        def latest() -> pb.WatchJobResponse:
            return pb.WatchJobResponse(
                progress=convert_jobs.progress(self._progress) if self._progress else None
            )

        return self._message("progress", latest)

    def heartbeat(self) -> bytes:
        """Return a message that says no more than the revision and the time."""
        return self._encoded(pb.WatchJobResponse())

    def _message(self, key: Hashable, make: Callable[[], pb.WatchJobResponse], moves: bytes = b"") -> bytes:
        # Fields of a message may come one by one, and in any order.
        if key not in self._messages:
            self._messages[key] = moves + self._encoded(make())
        return self._messages[key]

    def _encoded(self, message: pb.WatchJobResponse) -> bytes:
        message.revision = self.view.job.revision
        message.server_time.FromDatetime(self._now())
        return message.SerializeToString()

    async def _read_on(self) -> None:
        # Registered before the log is read, so that no change falls between the two.
        with self._wakeups.of_job(self._job_id) as self._asked:
            await self._read()
            while not self.failed and not self.is_complete:
                await self._pause()
                await self._read()

    async def _take_news(self) -> bool:
        view, moves = await self._jobs.transitions_after(self._tenant, self._job_id, len(self._moves))
        self._moves += [
            pb.WatchJobResponse(transitions=[convert_jobs.job_transition(view, move)]).SerializeToString()
            for move in moves
        ]
        advances = view.progress != self._progress
        if advances:
            self._progress = view.progress
            self._progresses += 1
        self.progress_number = self._progresses if view.progress else 0
        self._view = view
        self._messages.clear()
        return advances or bool(moves)
