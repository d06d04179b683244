"""Work that is never done twice at once for one thing, in tasks of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from profile_export.ingest.interest import Interest

_Result = TypeVar("_Result")


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
