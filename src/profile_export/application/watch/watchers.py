"""Watchers, and the readings that they share: one task per watched resource reads it after each change.

A flag wakes each watcher, a quota limits those of a tenant, and a server that stops ends all.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

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


_POLL_SECONDS = 10.0
"""How long a wake-up that was lost between two processes may stay unnoticed."""


class Reading(ABC):
    """Something of the store that is read again and again, by itself, for as long as anybody watches it."""

    def __init__(self) -> None:
        self.flags: set[asyncio.Event] = set()
        """Of its watchers; set whenever there is news."""
        self._arriving: set[asyncio.Event] = set()
        self._asked = asyncio.Event()
        self._begun = self._done = 0
        self._error: Exception | None = None
        self._task = asyncio.create_task(self._read_on())

    @property
    def failed(self) -> bool:
        """Whether it cannot be read."""
        return self._error is not None

    @property
    def is_complete(self) -> bool:
        """Whether there will be no more news."""
        return False

    def check(self) -> None:
        """Raise what kept it from being read, if anything did."""
        if self._error:
            raise self._error

    async def read_anew(self, flag: asyncio.Event) -> None:
        """Return when a reading that began after this call is done.

        Raises what kept it from being read.
        """
        wanted = self._begun + 1
        self._asked.set()
        self._arriving.add(flag)
        try:
            while self._done < wanted and not self.failed and not self.is_complete:
                flag.clear()
                await flag.wait()
        finally:
            self._arriving.discard(flag)
        self.check()

    def close(self) -> None:
        """Stop reading."""
        self._task.cancel()

    @abstractmethod
    async def _read_on(self) -> None:
        """Read and pause in turns, by `_read_while`."""

    @abstractmethod
    async def _take_news(self) -> bool:
        """Read once; say whether there is news to those who wait."""

    async def _read_while(
        self, goes_on: Callable[[], bool], wakeups: AbstractContextManager[asyncio.Event], rest: float = 0.0
    ) -> None:
        """Read after each wake-up, but no sooner than after `rest` seconds, until it fails or does not go on."""
        # The flag is registered before the store is read, so that no change falls between the two.
        with wakeups as self._asked:
            await self._read()
            while not self.failed and goes_on():
                if rest:
                    await asyncio.sleep(rest)
                await self._pause()
                await self._read()

    async def _read(self) -> None:
        self._asked.clear()
        self._begun += 1
        try:
            has_news = await self._take_news()
        except Exception as error:  # noqa: BLE001 - it is told to every watcher, whatever it is
            self._error, has_news = error, True
        self._done = self._begun
        # It is read anew for each watcher that comes: those who are there need not wake for that.
        for flag in self.flags if has_news else self._arriving:
            flag.set()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._asked.wait()


_Key = TypeVar("_Key", bound=Hashable)
_Reading = TypeVar("_Reading", bound=Reading)


class Readings(Generic[_Key, _Reading]):
    """What is watched just now, by key; `make` begins to read what a key stands for."""

    def __init__(self, make: Callable[[_Key], _Reading]) -> None:
        self._make = make
        self._readings: dict[_Key, _Reading] = {}

    @asynccontextmanager
    async def of(self, key: _Key, flag: asyncio.Event) -> AsyncIterator[_Reading]:
        """Give a watcher what it follows, with all that had been written down before the call.

        Raises what keeps it from being read.
        """
        reading = self._readings.get(key)
        if reading is None or reading.failed:
            reading = self._readings[key] = self._make(key)
        reading.flags.add(flag)
        try:
            await reading.read_anew(flag)
            yield reading
        finally:
            reading.flags.discard(flag)
            if not reading.flags:
                if self._readings.get(key) is reading:
                    del self._readings[key]
                reading.close()
