"""Computing that grows with what a caller has, beside the loop: in threads, which let the loop in all the time.

For what is linear and bounded. It cannot be stopped, so a call whose share of it takes too long is answered without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from profile_export.domain.errors import ExhaustedError
from profile_export.processes.turns import FairTurns, Whose

MOST_SECONDS = 20.0
"""How long one piece may take, from its beginning; on a quiet machine what the limits allow takes two at most."""
_RETRY_AFTER = timedelta(seconds=10)
# Python computes in one thread at a time: the second is for who has to do less than the first.
_THREADS = 2
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_whose: ContextVar[Whose] = ContextVar("whose", default=None)


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
