"""Work on files in child processes, so that parsing and sorting never hold up the server's event loop."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

_CONTAINERS_BETWEEN_COLLECTIONS = 50_000
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class ChildDiedError(Exception):
    """The process that did some work ended before it was done, such as for want of memory; it may be repeated."""


class Children:
    """Child processes that do one task after the other, and stay warm between them.

    Args:
        warm_for: Work to come, whose libraries they load in advance; None: they start with their first task.
        workers: How many.
        niceness: How far they stand back behind others that want a processor, 0 to 19.
    """

    def __init__(
        self, warm_for: Callable[[Any], object] | None = None, workers: int = 1, niceness: int = 0
    ) -> None:
        self._warm_for, self._workers, self._niceness = warm_for, workers, niceness
        # Never fork: a forked child of a process with gRPC in it hangs.
        self._context = multiprocessing.get_context("spawn")
        # Nothing is ever sent: a child ends when the sending end closes.
        self._end_heard, self._end_told = self._context.Pipe(duplex=False)
        self._executor = self._started()

    async def run(self, work: Callable[[_Task], _Result], task: _Task) -> _Result:
        """Do `work(task)` in a child, which imports the function by its name; waits while all of them are busy.

        A caller that is cancelled meanwhile leaves the child at work to its end: its files are the sweeper's.

        Raises:
            Exception: Whatever the function raises.
            ChildDiedError: The child ended; the next task gets a new one.
        """
        executor = self._executor
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work, task)
        except BrokenProcessPool as error:
            # All tasks of the pool end with it; the first to see it starts the next.
            if executor is self._executor:
                self._executor = self._started()
                executor.shutdown(wait=False)
            message = "The process that did the work has ended."
            raise ChildDiedError(message) from error

    def close(self) -> None:
        """Let the tasks at work finish, drop those that wait, and end the children."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """End the children at once, whatever they are at."""
        self._end_told.close()
        self.close()

    def _started(self) -> ProcessPoolExecutor:
        executor = ProcessPoolExecutor(
            self._workers,
            mp_context=self._context,
            initializer=_set_up,
            initargs=(self._niceness, self._end_heard),
        )
        if self._warm_for:
            for _ in range(self._workers):
                executor.submit(_load, self._warm_for)
        return executor


def _load(_work: Callable[[Any], object]) -> None:
    """Do nothing: the function has been imported on its way here."""


def _set_up(niceness: int, end_heard: Connection) -> None:
    """Set up a child: an interrupt from the keyboard is the parent's to handle, and the child never outlives it."""
    os.nice(niceness)
    # Thousands of parsed records at a time wait for Arrow, none in a cycle: looking for those took a fifth of the time.
    gc.set_threshold(_CONTAINERS_BETWEEN_COLLECTIONS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel, end_heard), daemon=True).start()


def _end_after(*ends: int | Connection) -> None:
    wait(ends)
    os._exit(1)
