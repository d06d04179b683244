"""The supervisor of all child processes, and its pools of children of one kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from profile_export.processes.limits import NO_LIMITS, Limits, Watch
from profile_export.processes.messages import ChildDiedError, Load, Run
from profile_export.processes.process import Child
from profile_export.processes.turns import FairTurns, Whose

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_RESERVE_AFTER_SECONDS = 0.25
"""A child in reserve is started where the last idle one is at work for longer than a small file takes."""


class Nursery(Protocol):
    """Where children come from."""

    async def child(self, niceness: int) -> Child:
        """Start one. Raises ChildDiedError where that is not possible."""
        ...

    async def end(self, child: Child) -> None:
        """Kill one."""
        ...


class Pool:
    """Children for one kind of work.

    Args:
        nursery: Where they come from.
        watch: Looks after them.
        most: How many there are at most.
        warm_for: Work to come, whose libraries they load in advance; None: they start with their first task.
        niceness: How far they stand back behind others that want a processor, 0 to 19.
        limits: What a piece of work may take of which nothing else is said.
    """

    def __init__(
        self,
        nursery: Nursery,
        watch: Watch,
        *,
        most: int,
        warm_for: Callable[[Any], object] | None = None,
        niceness: int = 0,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._nursery, self._watch, self._limits = nursery, watch, limits
        self._most, self._warm_for, self._niceness = most, warm_for, niceness
        self._turns = FairTurns(most)
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._closed = False
        self._warming: asyncio.Task[None] | None = None

    async def run(
        self,
        work: Callable[[_Task], _Result],
        task: _Task,
        whose: Whose = None,
        limits: Limits | None = None,
    ) -> _Result:
        """Do `work(task)` in a child, which imports the function by its name.

        Waits for its turn, as `FairTurns` has it. A caller that is cancelled ends the work.

        Raises:
            Exception: Whatever the function raises.
            ChildDiedError: The child ended; the next task gets a new one.
            TooExpensiveError: It took more than `limits` allow, or where there are none, those of the pool.
        """
        limits = limits or self._limits
        async with self._turns.taken(whose):
            child = await self._taken()
            reserve = self._reserve_later()
            try:
                with self._watch.over(child, limits):
                    result: _Result = await child.ask(Run(work, task, limits.bounds))
                return result
            finally:
                if reserve is not None:
                    reserve.cancel()
                await asyncio.shield(self._given_back(child))

    @property
    def is_busy(self) -> bool:
        """Whether a child is at work."""
        return any(child.busy for child in self._children)

    async def close(self) -> None:
        """Kill all children of the pool, whatever they do."""
        self._closed = True
        await asyncio.gather(*(self._nursery.end(child) for child in tuple(self._children)))

    def warm(self) -> None:
        """Begin to start a child, if none is idle and there may be another."""
        is_warming = self._warming is not None and not self._warming.done()
        if (
            self._warm_for is not None
            and not self._idle
            and len(self._children) < self._most
            and not is_warming
        ):
            self._warming = asyncio.create_task(self._warmed())

    def _reserve_later(self) -> asyncio.TimerHandle | None:
        if self._warm_for is None or self._idle or len(self._children) >= self._most:
            return None
        return asyncio.get_running_loop().call_later(_RESERVE_AFTER_SECONDS, self.warm)

    async def _taken(self) -> Child:
        if not self._idle and self._warming is not None:
            await asyncio.shield(self._warming)
        while self._idle:
            child = self._idle.pop()
            if child.alive and not self._closed:
                return child
            # It died while it was idle, for whatever reason: that must not cost a piece of work.
            await self._ended(child)
        return await self._started()

    async def _given_back(self, child: Child) -> None:
        if child.busy or not child.alive:
            await self._ended(child)
            self.warm()
        else:
            self._idle.append(child)

    async def _ended(self, child: Child) -> None:
        self._children.discard(child)
        await self._nursery.end(child)

    async def _started(self) -> Child:
        if self._closed:
            raise ChildDiedError
        child = await self._nursery.child(self._niceness)
        self._children.add(child)
        return child

    async def _warmed(self) -> None:
        # Nobody waits for this one: who needs a child and finds none sees the error for himself.
        with suppress(ChildDiedError, OSError):
            child = await self._started()
            try:
                await child.ask(Load(self._warm_for or _nothing))
            finally:
                await self._given_back(child)


def _nothing(_task: object) -> None:
    pass


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
