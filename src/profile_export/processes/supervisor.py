"""The supervisor: every child process of a server or worker comes from it, and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from profile_export.processes.errors import ChildDiedError
from profile_export.processes.limits import NO_LIMITS, Limits, Watch
from profile_export.processes.pool import Pool
from profile_export.processes.process import Child


class Supervisor:
    """All children of this process."""

    def __init__(self) -> None:
        self._children: set[Child] = set()
        self._closed = False
        self.watch = Watch()

    def pool(
        self,
        *,
        most: int = 1,
        warm_for: Callable[[Any], object] | None = None,
        niceness: int = 0,
        limits: Limits = NO_LIMITS,
    ) -> Pool:
        """Return a pool of children of one kind, see there; none of them is started yet."""
        return Pool(self, self.watch, most=most, warm_for=warm_for, niceness=niceness, limits=limits)

    async def child(self, niceness: int = 0) -> Child:
        """Start a child.

        Raises:
            ChildDiedError: It ended at once, or the supervisor is closed.
            OSError: The system gives no further process.
        """
        self._check_open()
        child = await Child.started(niceness)
        self._children.add(child)
        if self._closed:
            await self.end(child)
        self._check_open()
        return child

    async def end(self, child: Child) -> None:
        """Kill a child, whatever it does."""
        await child.kill()
        self._children.discard(child)

    async def close(self) -> None:
        """Kill every child, whatever it does; there will be none again."""
        self._closed = True
        await asyncio.gather(*(self.end(child) for child in tuple(self._children)))

    def _check_open(self) -> None:
        if self._closed:
            raise ChildDiedError
