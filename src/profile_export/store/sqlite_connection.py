"""Connections to SQLite that change to their thread once for a statement.

aiosqlite does so for every step: a cursor, the execution, the rows, the end. Each is two changes of thread, which are
most of what a small statement costs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import aiosqlite

_Rows: TypeAlias = Sequence[tuple[Any, ...]]
_CHUNK_ROWS = 64  # aiosqlite wants to know, though nothing here reads rows in chunks


async def connect(path: Path) -> SqliteConnection:
    """Open a connection that begins no transaction by itself."""

    def opened() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    connection = SqliteConnection(opened, _CHUNK_ROWS)
    connection.leave_at_exit()
    await connection
    return connection


class SqliteConnection(aiosqlite.Connection):
    """A connection with a thread of its own, as SQLAlchemy's dialect for aiosqlite takes it."""

    _begin = ""

    def begin(self, statement: str) -> None:
        """Begin a transaction, right before its first statement."""
        self._begin = statement

    async def commit(self) -> None:
        """Commit what has begun."""
        await self._end(super().commit)

    async def rollback(self) -> None:
        """Roll back what has begun."""
        await self._end(super().rollback)

    async def _end(self, end: Callable[[], Awaitable[None]]) -> None:
        if self._begin:
            self._begin = ""
        else:
            await end()

    def leave_at_exit(self) -> None:
        """Keep nobody from ending the process."""
        self._thread.daemon = True

    def cursor(self) -> SqliteCursor:  # type: ignore[override]  # no coroutine: nothing to wait for
        """Return a cursor."""
        return SqliteCursor(self)

    async def run(self, act: Callable[[sqlite3.Cursor], object]) -> tuple[sqlite3.Cursor, _Rows]:
        """Let a fresh cursor do something in the thread; return it, closed, and the rows that it gave."""
        begin, self._begin = self._begin, ""

        def acted() -> tuple[sqlite3.Cursor, _Rows]:
            cursor = self._conn.cursor()
            try:
                if begin:
                    cursor.execute(begin)
                act(cursor)
                return cursor, cursor.fetchall() if cursor.description else ()
            finally:
                cursor.close()

        done: tuple[sqlite3.Cursor, _Rows] = await self._execute(acted)  # type: ignore[no-untyped-call]
        return done


class SqliteCursor:
    """The part of a cursor that SQLAlchemy's dialect for aiosqlite uses; rows are there once a statement has run."""

    arraysize = 1

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._cursor: sqlite3.Cursor | None = None
        self._rows: _Rows = ()

    @property
    def description(self) -> Any:
        """The columns of the rows; None where there are none."""
        return self._cursor and self._cursor.description

    @property
    def rowcount(self) -> int:
        """How many rows were written."""
        return self._cursor.rowcount if self._cursor else -1

    @property
    def lastrowid(self) -> int | None:
        """The key of the row inserted last."""
        return self._cursor.lastrowid if self._cursor else None

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Run a statement."""
        self._cursor, self._rows = await self._connection.run(
            lambda cursor: cursor.execute(statement, parameters)
        )

    async def executemany(self, statement: str, parameters: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each set of parameters."""
        self._cursor, self._rows = await self._connection.run(
            lambda cursor: cursor.executemany(statement, parameters)
        )

    async def fetchall(self) -> _Rows:
        """Return the rows."""
        return self._rows

    async def close(self) -> None:
        """Do nothing: it was closed when the statement had run."""
