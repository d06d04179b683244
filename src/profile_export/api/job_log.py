"""What all watches of one job write: its log and its progress, read once and serialised once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from profile_export.api import convert_jobs
from profile_export.domain.catalog import Tenant
from profile_export.domain.job import Progress, Transition
from profile_export.store.events import Wakeups
from profile_export.store.job_rows import JobView
from profile_export.store.jobs import Jobs
from profile_export.v1 import export_service_pb2 as pb

_POLL_SECONDS = 10.0
"""How long a wake-up that was lost between two processes may stay unnoticed."""


class JobLogs:
    """The logs of the jobs that are watched."""

    def __init__(self, jobs: Jobs, wakeups: Wakeups, now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._wakeups = wakeups
        self._now = now
        self._logs: dict[tuple[Tenant, int], JobLog] = {}

    @asynccontextmanager
    async def of(self, tenant: Tenant, job_id: int, flag: asyncio.Event) -> AsyncIterator[JobLog]:
        """Give a job's log to a watcher, whose flag is set whenever it has grown, or the progress is new.

        It holds at least what had been written down before the call.

        Raises:
            NotFoundError: The tenant has no such job.
        """
        key = (tenant, job_id)
        log = self._logs.get(key)
        if log is None or log.failed:
            log = self._logs[key] = JobLog(self._jobs, self._wakeups, tenant, job_id, self._now)
        log.flags.add(flag)
        try:
            await log.read_anew(flag)
            yield log
        finally:
            log.flags.discard(flag)
            if not log.flags:
                if self._logs.get(key) is log:
                    del self._logs[key]
                log.close()


class JobLog:
    """The log of one job. It reads on by itself while the job can still change."""

    def __init__(
        self, jobs: Jobs, wakeups: Wakeups, tenant: Tenant, job_id: int, now: Callable[[], datetime]
    ) -> None:
        self.flags: set[asyncio.Event] = set()
        self.progress_number = 0
        """Grows with each new progress; 0 while there is none."""
        self._jobs = jobs
        self._wakeups = wakeups
        self._tenant = tenant
        self._job_id = job_id
        self._now = now
        self._arriving: set[asyncio.Event] = set()
        self._asked = asyncio.Event()
        self._begun = self._done = 0
        self._view: JobView | None = None
        self._moves: list[bytes] = []
        self._progress: Progress | None = None
        self._progresses = 0
        self._messages: dict[Hashable, bytes] = {}
        self._error: Exception | None = None
        self._reading = asyncio.create_task(self._read_on())

    @property
    def failed(self) -> bool:
        """Whether it cannot be read."""
        return self._error is not None

    @property
    def view(self) -> JobView:
        """The job as it was last read.

        Raises what kept it from being read.
        """
        if self._error:
            raise self._error
        assert self._view is not None, "a watcher gets a log that has been read"  # noqa: S101 - for the types
        return self._view

    async def read_anew(self, flag: asyncio.Event) -> None:
        """Return when a reading that began after this call is done."""
        wanted = self._begun + 1
        self._asked.set()
        self._arriving.add(flag)
        try:
            while self._done < wanted and not self.failed and not self._is_complete:
                flag.clear()
                await flag.wait()
        finally:
            self._arriving.discard(flag)

    def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()

    @property
    def _is_complete(self) -> bool:
        return self._view is not None and self._view.job.is_final

    def snapshot(self) -> bytes:
        """Return the message with the job as it is."""
        return self._message("snapshot", lambda: pb.WatchJobResponse(job=convert_jobs.export_job(self.view)))

    def moves_after(self, revision: int) -> bytes:
        """Return the message with all moves after a revision, and with the job if it is final."""

        def end() -> pb.WatchJobResponse:
            return pb.WatchJobResponse(
                job=convert_jobs.export_job(self.view) if self.view.job.is_final else None
            )

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
            while not self._is_complete:
                self._asked.clear()
                self._begun += 1
                try:
                    view, moves = await self._jobs.transitions_after(
                        self._tenant, self._job_id, len(self._moves)
                    )
                    has_news = self._take(view, moves)
                except Exception as error:  # noqa: BLE001 - it is told to every watcher, whatever it is
                    self._error = error
                    has_news = True
                self._done = self._begun
                # It is read anew for each watcher that comes: those who are there need not wake for that.
                for flag in self.flags if has_news else self._arriving:
                    flag.set()
                if self._error:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._asked.wait()

    def _take(self, view: JobView, moves: Sequence[Transition]) -> bool:
        """Keep what was read, and say whether it is news to those who wait."""
        advances = view.progress != self._progress
        self._moves += [
            pb.WatchJobResponse(transitions=[convert_jobs.job_transition(view, move)]).SerializeToString()
            for move in moves
        ]
        if advances:
            self._progress = view.progress
            self._progresses += 1
        self.progress_number = self._progresses if view.progress else 0
        self._view = view
        self._messages.clear()
        return advances or bool(moves)
