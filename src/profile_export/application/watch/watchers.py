"""Who watches at a server: a flag wakes each watcher, a quota limits a tenant's, and a server that stops ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from profile_export.application.doors import Streams
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import server_draining

Write = Callable[[bytes], Awaitable[None]]
"""Sends one message, which an encoder has serialised. It returns when the reader has room for another."""


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

    heartbeat: float = 15.0
    progress: float = 0.5


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
        """Whether nothing has been written for the whole heartbeat interval."""
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
