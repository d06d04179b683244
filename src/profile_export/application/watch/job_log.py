"""Watches of one job. Its log and progress are read and serialised once, and all who watch the job get those bytes.

The log is the truth, wake-ups carry no data; the contract says what a watch promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from profile_export.application.watch.watchers import Intervals, Pacing, Reading, Readings, Watchers, Write
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.job import JobView, Progress, Transition
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.jobs.jobs import Jobs


class JobEncoder(Protocol):
    """Serialises what one door sends to the watchers of a job.

    Its bytes are kept for all watchers, except those of heartbeats. Every message says the job's revision, and when it
    was made (`now`).
    """

    def move(self, view: JobView, move: Transition) -> bytes:
        """Return the part of a message that tells one move."""

    def moves(self, parts: Sequence[bytes], view: JobView, now: datetime) -> bytes:
        """Join moves, as `move` returned them, to one message, which includes the job if it is final."""

    def snapshot(self, view: JobView, now: datetime) -> bytes:
        """Return the message that includes the whole job; a watch begins with it."""

    def progress(self, view: JobView, now: datetime) -> bytes:
        """Return the message that tells the progress of the job's running attempt."""

    def heartbeat(self, view: JobView, now: datetime) -> bytes:
        """Return a message that says no more than the revision and the time."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a watcher asks for; `after_revision` None means a snapshot first."""

    job_id: int
    after_revision: int | None
    intervals: Intervals


class JobLog(Reading):
    """The log of one job. It is read on while the job can still change."""

    def __init__(
        self,
        jobs: Jobs,
        wakeups: Wakeups,
        encoder: JobEncoder,
        now: Callable[[], datetime],
        tenant: Tenant,
        job_id: int,
    ) -> None:
        self.progress_number = 0
        """The number of the latest progress, which grows with each; 0 while no progress is known."""
        self._jobs = jobs
        self._wakeups = wakeups
        self._encoder = encoder
        self._now = now
        self._tenant = tenant
        self._job_id = job_id
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
        return self._made_once("snapshot", lambda: self._encoder.snapshot(self.view, self._now()))

    def moves_after(self, revision: int) -> bytes:
        """Return the message with all moves after a revision, and with the job if it is final."""
        return self._made_once(
            revision, lambda: self._encoder.moves(self._moves[revision:], self.view, self._now())
        )

    def progress(self) -> bytes:
        """Return the message with the latest progress."""
        return self._made_once("progress", lambda: self._encoder.progress(self.view, self._now()))

    def heartbeat(self) -> bytes:
        """Return a message that says no more than the revision and the time."""
        return self._encoder.heartbeat(self.view, self._now())

    def _made_once(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return a message; the first watcher that needs it after a reading makes it for all."""
        if key not in self._messages:
            self._messages[key] = make()
        return self._messages[key]

    async def _read_on(self) -> None:
        await self._read_while(lambda: not self.is_complete, self._wakeups.of_job(self._job_id))

    async def _take_news(self) -> bool:
        view, moves = await self._jobs.transitions_after(self._tenant, self._job_id, len(self._moves))
        self._moves += [self._encoder.move(view, move) for move in moves]
        advances = view.progress != self._progress
        if advances:
            self._progress = view.progress
            self._progresses += 1
        self.progress_number = self._progresses if view.progress else 0
        self._view = view
        self._messages.clear()
        return advances or bool(moves)


class JobWatches:
    """All watches of single jobs that one door serves."""

    def __init__(
        self,
        watchers: Watchers,
        jobs: Jobs,
        wakeups: Wakeups,
        encoder: JobEncoder,
        now: Callable[[], datetime],
    ) -> None:
        self._watchers = watchers
        self._logs = Readings[tuple[Tenant, int], JobLog](
            lambda tenant_and_job: JobLog(jobs, wakeups, encoder, now, *tenant_and_job)
        )

    async def serve(self, tenant: Tenant, options: WatchOptions, write: Write, write_last: Write) -> None:
        """Write to one watcher until the job is final, and then the last message with `write_last`.

        A slow reader holds up only its own coroutine: between two writes it has a revision and a flag, no queue.

        Raises:
            NotFoundError: The tenant has no such job.
            PastEndError: `after_revision` is newer than the job.
            UnavailableError: The server is draining.
            ExhaustedError: The tenant has as many watches as it may have.
        """
        with self._watchers.one(tenant) as flag:
            async with self._logs.of((tenant, options.job_id), flag) as log:
                log.view.job.check_reached(options.after_revision or 0)
                await self._follow(log, flag, options, write, write_last)

    async def _follow(
        self, log: JobLog, flag: asyncio.Event, options: WatchOptions, write: Write, write_last: Write
    ) -> None:
        pacing = Pacing(options.intervals)
        revision = options.after_revision
        told = log.progress_number if revision is None else 0
        while True:
            flag.clear()
            self._watchers.check_goes_on()
            job = log.view.job
            if revision is None or job.is_final or revision < job.revision:
                # A snapshot, moves, or the end told again to one that resumes there.
                message = log.snapshot() if revision is None else log.moves_after(revision)
                revision = job.revision
                if job.is_final:
                    await write_last(message)
                    return
                await write(message)
                pacing.wrote()
            elif log.progress_number not in {0, told} and pacing.progress_due:
                told = log.progress_number
                await write(log.progress())
                pacing.wrote(progress=True)
            elif pacing.heartbeat_due:
                await write(log.heartbeat())
                pacing.wrote()
            else:
                await pacing.pause(flag, progress_waits=log.progress_number not in {0, told})
