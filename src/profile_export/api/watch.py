"""WatchJob: a job's log as a stream. The log is the truth, wake-ups carry no data; the promises are in the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.api import convert_jobs
from profile_export.api.convert import timestamp
from profile_export.api.status import server_draining
from profile_export.domain.catalog import Tenant
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.job import Progress, Transition
from profile_export.store.events import Wakeups
from profile_export.store.jobs import Jobs, JobView
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2

Write = Callable[[pb.WatchJobResponse], Awaitable[None]]
_HEARTBEAT_SECONDS = 15.0
_PROGRESS_SECONDS = 0.5
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a watcher asks for; `after_revision` None means a snapshot first."""

    job_id: int
    after_revision: int | None
    heartbeat_seconds: float
    progress_seconds: float

    @classmethod
    def of(cls, request: pb.WatchJobRequest) -> WatchOptions:
        """Read and check a request.

        Raises:
            InvalidArgumentError: The revision is negative, or an interval out of bounds.
        """
        after = request.after_revision if request.HasField("after_revision") else None
        if after is not None and after < 0:
            raise InvalidArgumentError.of_field("after_revision", "must not be negative.")
        heartbeat, progress = _HEARTBEAT_SECONDS, _PROGRESS_SECONDS
        if request.HasField("heartbeat_interval"):
            heartbeat = convert_jobs.seconds_between(
                request.heartbeat_interval, "heartbeat_interval", 1.0, _LONGEST_SECONDS
            )
        if request.HasField("min_progress_interval"):
            progress = convert_jobs.seconds_between(
                request.min_progress_interval, "min_progress_interval", 0.0, _LONGEST_SECONDS
            )
        return cls(request.job_id, after, heartbeat, progress)


class Watches:
    """All watches of this process."""

    def __init__(self, jobs: Jobs, wakeups: Wakeups, now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._wakeups = wakeups
        self._now = now
        self._flags: set[asyncio.Event] = set()
        self._ending = False

    async def end_all(self) -> None:
        """Make every watch end with SERVER_DRAINING; its client resumes elsewhere."""
        self._ending = True
        for flag in self._flags:
            flag.set()

    async def serve(self, tenant: Tenant, options: WatchOptions, write: Write) -> None:
        """Write to one watcher until the job is final.

        A slow reader holds up only its own coroutine: between two writes it has a revision and a flag, no queue.

        Raises:
            NotFoundError: The tenant has no such job.
            PastEndError: `after_revision` is newer than the job.
            UnavailableError: The server is draining.
        """
        # Registered before the log is read, so that no change falls between the two.
        with self._wakeups.of_job(options.job_id) as changed:
            self._flags.add(changed)
            try:
                await self._follow(_Watcher(self._jobs, tenant, options, write, self._now), changed)
            finally:
                self._flags.discard(changed)

    async def _follow(self, watcher: _Watcher, changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            if self._ending:
                raise server_draining()
            if await watcher.catch_up():
                return
            try:
                async with asyncio.timeout_at(watcher.next_write()):
                    await changed.wait()
            except TimeoutError:
                await watcher.beat_if_due()


class _Watcher:
    """One stream: its cursor in the log, and when it wrote last."""

    def __init__(
        self, jobs: Jobs, tenant: Tenant, options: WatchOptions, write: Write, now: Callable[[], datetime]
    ) -> None:
        self._jobs = jobs
        self._tenant = tenant
        self._options = options
        self._write = write
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._revision = options.after_revision
        self._written = self._loop.time()
        self._progress: Progress | None = None
        self._progress_written = float("-inf")
        self._progress_waits = False

    async def catch_up(self) -> bool:
        """Write what the log has beyond the cursor; True if that was the end."""
        view, transitions = await self._read()
        if self._revision is None or (view.job.is_final and not transitions):
            # The snapshot of a new watch, or the end told again to one that resumes there.
            await self._send(view.job.revision, job=convert_jobs.export_job(view))
            self._progress = view.progress
        elif transitions:
            await self._send(
                transitions[-1].revision,
                transitions=[convert_jobs.job_transition(view, transition) for transition in transitions],
                job=convert_jobs.export_job(view) if view.job.is_final else None,
            )
        else:
            await self._send_progress(view)
        return view.job.is_final

    async def _read(self) -> tuple[JobView, Sequence[Transition]]:
        if self._revision is None:
            return await self._jobs.get(self._tenant, self._options.job_id), ()
        return await self._jobs.transitions_after(self._tenant, self._options.job_id, self._revision)

    async def _send_progress(self, view: JobView) -> None:
        """Write progress that is new, unless the last one was just now: then it waits, and the latest wins."""
        due = self._loop.time() >= self._progress_written + self._options.progress_seconds
        self._progress_waits = view.progress is not None and view.progress != self._progress and not due
        if view.progress and view.progress != self._progress and due:
            self._progress, self._progress_written = view.progress, self._loop.time()
            await self._send(view.job.revision, progress=convert_jobs.progress(view.progress))

    async def beat_if_due(self) -> None:
        """Write a heartbeat if nothing else was written for its interval."""
        if (
            self._revision is not None
            and self._loop.time() >= self._written + self._options.heartbeat_seconds
        ):
            await self._send(self._revision)

    def next_write(self) -> float:
        """Return when something is due even if nothing changes, by the loop's clock."""
        beat = self._written + self._options.heartbeat_seconds
        return (
            min(beat, self._progress_written + self._options.progress_seconds)
            if self._progress_waits
            else beat
        )

    async def _send(
        self,
        revision: int,
        *,
        job: job_pb2.ExportJob | None = None,
        transitions: Sequence[job_pb2.JobTransition] = (),
        progress: job_pb2.JobProgress | None = None,
    ) -> None:
        message = pb.WatchJobResponse(
            revision=revision,
            job=job,
            transitions=transitions,
            progress=progress,
            server_time=timestamp(self._now()),
        )
        await self._write(message)
        self._revision = revision
        self._written = self._loop.time()
