"""How far a running query is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import duckdb

_POLL_SECONDS = 0.2


class ProgressMeter:
    """Turns the progress of DuckDB's queries into source rows done, which never falls."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, rows: int, report: Callable[[int, int], None]
    ) -> None:
        # Without a progress bar there is no progress, and nobody wants to see it printed.
        connection.execute("SET enable_progress_bar = true")
        connection.execute("SET enable_progress_bar_print = false")
        self._connection, self._rows, self._report = connection, rows, report
        self.begin()

    def begin(self) -> None:
        """Begin a phase: nothing of its rows is done."""
        self._done = self._reported = 0

    @contextmanager
    def measuring(self, rows: int) -> Iterator[None]:
        """Report while the body runs queries, which do about the work of so many rows."""
        finished = Event()
        watcher = Thread(target=self._watch, args=(rows, finished), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
        self._done = min(self._rows, self._done + rows)
        self._reach(self._done)

    def _watch(self, rows: int, finished: Event) -> None:
        while not finished.wait(_POLL_SECONDS):
            # -1 until the query has begun.
            reached = round(max(0.0, self._connection.query_progress()) / 100 * rows)
            self._reach(min(self._rows, self._done + reached))

    def _reach(self, done: int) -> None:
        """Report what is more than before: a query may have been given up and done again in parts."""
        if done > self._reported:
            self._reported = done
            self._report(done, self._rows)
