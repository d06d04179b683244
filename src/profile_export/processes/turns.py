"""Turns: places for work are given out fairly among those for whom it is done, among them threads that compute."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import count
from typing import Any, ParamSpec, TypeVar

from profile_export.domain.errors import ExhaustedError

Whose = Hashable
"""For whom something is done, such as a tenant."""
MOST_SECONDS = 20.0
"""How long one piece may take, from its beginning; on a quiet machine what the limits allow takes two at most."""
_RETRY_AFTER = timedelta(seconds=10)
# Python computes in one thread at a time: the second is for who has to do less than the first.
_THREADS = 2
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_whose: ContextVar[Whose] = ContextVar("whose", default=None)


class WaitedTooLongError(Exception):
    """No turn has come in time."""


class FairTurns:
    """Gives out a number of places.

    Who has none gets the next free one, the longest waiting first and round robin. Who has one gets another while
    nobody without waits, and another place stays free for those who may come.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: Counter[Whose] = Counter()
        self._waiting: dict[Whose, deque[asyncio.Future[None]]] = {}
        # Where in the round stands who has a place, or waits for one: it goes to the end when it comes, when it gets a
        # place, and when it gives one back. Who came later, however often, is served later.
        self._round: dict[Whose, int] = {}
        self._numbers = count(1)

    @asynccontextmanager
    async def taken(self, whose: Whose, seconds: float | None = None) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            WaitedTooLongError: There was none within so many seconds; None: it is waited for as long as need be.
        """
        turn = asyncio.get_running_loop().create_future()
        if whose not in self._round:
            self._to_end_of_round(whose)
        self._waiting.setdefault(whose, deque()).append(turn)
        self._admit()
        try:
            if not turn.done():
                await _within(seconds, turn)
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._give_back(whose)
            else:
                self._leave(whose, turn)
            self._admit()

    def _give_back(self, whose: Whose) -> None:
        self._held[whose] -= 1
        self._to_end_of_round(whose)
        if not self._held[whose]:
            del self._held[whose]
            if whose not in self._waiting:
                del self._round[whose]

    def _leave(self, whose: Whose, turn: asyncio.Future[None]) -> None:
        self._waiting[whose].remove(turn)
        if not self._waiting[whose]:
            del self._waiting[whose]
            if not self._held[whose]:
                del self._round[whose]

    def _admit(self) -> None:
        while self._waiting and (free := self._places - self._held.total()):
            whose = min(self._waiting, key=lambda one: (self._held[one], self._round[one]))
            if self._held[whose] and free == 1:
                return
            waiting = self._waiting[whose]
            waiting.popleft().set_result(None)
            self._held[whose] += 1
            self._to_end_of_round(whose)
            if not waiting:
                del self._waiting[whose]

    def _to_end_of_round(self, whose: Whose) -> None:
        self._round[whose] = next(self._numbers)


async def _within(seconds: float | None, turn: asyncio.Future[None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await turn
    except TimeoutError:
        raise WaitedTooLongError from None


class Computing:
    """Threads that compute, for everybody in turn."""

    def __init__(self) -> None:
        self._turns = FairTurns(_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="computing")
        self._ending: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Do some work for whom the call that runs is for.

        Raises:
            Exception: What the work raises.
            ExhaustedError: It takes too long.
        """
        turn = self._turns.taken(_whose.get())
        await turn.__aenter__()
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # Whether or not somebody still waits, the turn is over when the thread is free.
        done.add_done_callback(lambda ended: self._end(turn, ended))
        finished, _ = await asyncio.wait([done], timeout=MOST_SECONDS)
        if finished:
            return done.result()
        raise ExhaustedError(
            "REQUEST_TOO_EXPENSIVE",
            f"The request takes more than {MOST_SECONDS:g} s to compute. Ask for less at once, or try again later.",
            metadata={"limit": f"{MOST_SECONDS:g}s"},
            retry_after=_RETRY_AFTER,
        )

    def _end(self, turn: AbstractAsyncContextManager[None], ended: asyncio.Future[Any]) -> None:
        if not ended.cancelled():
            ended.exception()  # asked for, or the loop complains when the caller is gone
        task = asyncio.ensure_future(turn.__aexit__(None, None, None))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


_COMPUTING = Computing()


def compute_for(whose: Whose) -> None:
    """Say for whom all is computed from now on in this task, and in those that it makes."""
    _whose.set(whose)


@contextmanager
def computed_for(whose: Whose) -> Iterator[None]:
    """Say for whom all is computed within the block."""
    token = _whose.set(whose)
    try:
        yield
    finally:
        _whose.reset(token)


def present_whose() -> Whose:
    """Return for whom this task works; None: for nobody in particular."""
    return _whose.get()


async def compute(
    work: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Do some work in a thread, in turn; see `Computing.run`."""
    return await _COMPUTING.run(lambda: work(*args, **kwargs))


async def compute_if(
    wide: bool,  # noqa: FBT001 - what decides, before what is decided about
    work: Callable[_Parameters, _Result],
    *args: _Parameters.args,
    **kwargs: _Parameters.kwargs,
) -> _Result:
    """Do some work in a thread if what it works on is wide, else at once: changing threads takes longer than most."""
    return await compute(work, *args, **kwargs) if wide else work(*args, **kwargs)
