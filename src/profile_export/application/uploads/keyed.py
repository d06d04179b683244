"""Work that is never done twice at once for one thing, and that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class AbandonedError(Exception):
    """Nobody waits for the work any more, so it was ended."""


class Interest:
    """That of a caller in work that runs in a task of its own, most of which goes on to its end in any case."""

    def __init__(self) -> None:
        self._lost = False
        self._part: asyncio.Future[Any] | None = None

    def lose(self) -> None:
        """Say that nobody waits any more."""
        self._lost = True
        if self._part is not None:
            self._part.cancel()

    async def during(self, part: Coroutine[Any, Any, _Result]) -> _Result:
        """Do a part of the work for as long as somebody waits.

        Raises:
            AbandonedError: Nobody does.
        """
        doing = asyncio.ensure_future(part)
        if self._lost:
            doing.cancel()
        self._part = doing
        try:
            return await doing
        except asyncio.CancelledError:
            if self._lost:
                raise AbandonedError from None
            raise
        finally:
            self._part = None


class Turns:
    """Runs work for one key after the other.

    A caller that is cancelled leaves the work that it began, which goes on to its end but for what it does only while
    somebody waits.
    """

    def __init__(self) -> None:
        self._at_work: dict[Hashable, asyncio.Task[Any]] = {}

    async def take(self, key: Hashable, work: Callable[[Interest], Coroutine[Any, Any, _Result]]) -> _Result:
        """Wait until nothing is being done for a key, and do `work` then.

        Raises:
            Exception: Whatever the work raises.
        """
        while before := self._at_work.get(key):
            await asyncio.wait([before])
        interest = Interest()
        task = asyncio.create_task(work(interest))
        self._at_work[key] = task
        task.add_done_callback(lambda _: self._ended(key, task))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            interest.lose()
            raise

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._at_work[key]
        if not task.cancelled():
            task.exception()  # asked for, or the loop complains when the caller is gone
