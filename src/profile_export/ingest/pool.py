"""Ingestion in a child process, so that parsing never holds up the server's event loop."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from profile_export.ingest.ingestion import ingest
from profile_export.ingest.task import IngestResult, IngestTask

_CONTAINERS_BETWEEN_COLLECTIONS = 50_000


class IngestDiedError(Exception):
    """The process that ingested an upload ended before it was done, such as for want of memory; it may be repeated."""


class IngestPool:
    """Child processes that ingest, started at once and kept warm."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._executor = self._started()

    async def ingest(self, task: IngestTask) -> IngestResult:
        """Do what `ingestion.ingest` does, in a child process; waits while all of them are busy.

        A caller that is cancelled meanwhile leaves the child at work to its end: its files are the sweeper's.

        Raises:
            RowsRefusedError: As `ingestion.ingest`.
            OSError: As `ingestion.ingest`.
            IngestDiedError: The child ended; the next task gets a new one.
        """
        executor = self._executor
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, ingest, task)
        except BrokenProcessPool as error:
            # All tasks of the pool end with it; the first to see it starts the next.
            if executor is self._executor:
                self._executor = self._started()
                executor.shutdown(wait=False)
            message = "The process that checked the upload has ended; send the last message again."
            raise IngestDiedError(message) from error

    def close(self) -> None:
        """Let the tasks at work finish, drop those that wait, and end the children."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        # Never fork: a forked child of a process with gRPC in it hangs.
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_set_up)
        for _ in range(self._workers):
            executor.submit(os.getpid)
        return executor


def _set_up() -> None:
    """Set up a child: an interrupt from the keyboard is the parent's to handle, and the child never outlives it."""
    # Thousands of parsed records at a time wait for Arrow, none in a cycle: looking for those took a fifth of the time.
    gc.set_threshold(_CONTAINERS_BETWEEN_COLLECTIONS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
