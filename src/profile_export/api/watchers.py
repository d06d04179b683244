"""What all watches of a server share: how they are woken, and how they are ended when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from profile_export.api import convert_jobs
from profile_export.api.status import server_draining
from profile_export.api.streams import Streams
from profile_export.domain.catalog import Tenant
from profile_export.domain.errors import InvalidArgumentError
from profile_export.v1 import export_service_pb2 as pb

Write = Callable[[bytes], Awaitable[None]]
"""Sends a message, serialised before: many watchers get the same. It returns when the reader has room for another."""
_HEARTBEAT_SECONDS = 15.0
_PROGRESS_SECONDS = 0.5
_LONGEST_SECONDS = 60.0


class Watchers:
    """The watches of a server, each by the flag that wakes it."""

    def __init__(self, most: int | None) -> None:
        """Make room for so many of each tenant; None: any number."""
        self._of_tenant = Streams("watches", most, "End some; WatchJobs tells of all jobs in one.")
        self._flags: set[asyncio.Event] = set()
        self._ending = False

    @contextmanager
    def one(self, tenant: Tenant) -> Iterator[asyncio.Event]:
        """Count a watch among them while the block runs; yield its flag.

        Raises:
            ExhaustedError: The tenant has as many watches as it may have.
        """
        flag = asyncio.Event()
        with self._of_tenant.one(tenant):
            self._flags.add(flag)
            try:
                yield flag
            finally:
                self._flags.discard(flag)

    async def end_all(self) -> None:
        """Wake every watch, to find that the server is draining; its client resumes elsewhere."""
        self._ending = True
        for flag in self._flags:
            flag.set()

    def check_goes_on(self) -> None:
        """Raise the error that ends every watch once the server is draining."""
        if self._ending:
            raise server_draining()


@dataclass(frozen=True, slots=True)
class Intervals:
    """After how many seconds of silence a watcher wants a heartbeat, and how many at least between two progresses."""

    heartbeat: float
    progress: float


def after_revision(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> int | None:
    """Read from where a watch goes on; None: it begins with what is there.

    Raises:
        InvalidArgumentError: It is negative.
    """
    after = request.after_revision if request.HasField("after_revision") else None
    if after is not None and after < 0:
        raise InvalidArgumentError.of_field("after_revision", "must not be negative.")
    return after


def intervals(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> Intervals:
    """Read how often a watcher wants to hear something.

    Raises:
        InvalidArgumentError: An interval is out of bounds.
    """
    heartbeat, progress = _HEARTBEAT_SECONDS, _PROGRESS_SECONDS
    if request.HasField("heartbeat_interval"):
        heartbeat = convert_jobs.seconds_between(
            request.heartbeat_interval, "heartbeat_interval", 1.0, _LONGEST_SECONDS
        )
    if request.HasField("min_progress_interval"):
        progress = convert_jobs.seconds_between(
            request.min_progress_interval, "min_progress_interval", 0.0, _LONGEST_SECONDS
        )
    return Intervals(heartbeat, progress)


class Pacing:
    """When a watcher was last written to, and so when the next heartbeat and the next progress are due."""

    __slots__ = ("_intervals", "_loop", "_progress_written", "_written")

    def __init__(self, intervals: Intervals) -> None:
        self._loop = asyncio.get_running_loop()
        self._intervals = intervals
        self._written = self._loop.time()
        self._progress_written = float("-inf")

    def wrote(self, *, progress: bool = False) -> None:
        """Note that something was written just now."""
        self._written = self._loop.time()
        if progress:
            self._progress_written = self._written

    @property
    def heartbeat_due(self) -> bool:
        """Whether it has been silent for long enough."""
        return self._loop.time() >= self._written + self._intervals.heartbeat

    @property
    def progress_due(self) -> bool:
        """Whether a progress that is new may be written."""
        return self._loop.time() >= self._progress_written + self._intervals.progress

    async def pause(self, flag: asyncio.Event, *, progress_waits: bool) -> None:
        """Return when the flag is set, or something is due by the clock."""
        due = self._written + self._intervals.heartbeat
        if progress_waits:
            due = min(due, self._progress_written + self._intervals.progress)
        # Lighter than a timeout around the wait, of which there is one for each watcher.
        alarm = self._loop.call_at(due, flag.set)
        try:
            await flag.wait()
        finally:
            alarm.cancel()
