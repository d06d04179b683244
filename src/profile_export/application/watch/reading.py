"""One task per watched resource reads the store after each change and wakes the resource's watchers."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Generic, TypeVar

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
        """Read and pause in turns, with `_asked` the flag that the store's wake-ups set."""

    @abstractmethod
    async def _take_news(self) -> bool:
        """Read once; say whether there is news to those who wait."""

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
