"""A store in a SQLite file: opened by one process, one writer and many readers.

aiosqlite hands each step of a statement to its thread: a cursor, the execution, the rows, the end. Each step takes two
changes of thread, which are most of what a small statement costs, so a connection here runs a statement in one step.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias

import aiosqlite
from sqlalchemy import Engine, ExceptionContext, NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from profile_export.domain.errors import UnavailableError
from profile_export.processes.plain_file import NotPlainFileError, check_plain, open_plain
from profile_export.store.db.transactions import WAIT_SECONDS, CannotOpenError, renewing_engine

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
        """Let the process end while the connection is open."""
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


_WAIT_FOR_RENEWAL_SECONDS = 0.5
_READERS = 4
_RETRY_AFTER = timedelta(seconds=5)
# What is the matter with the file or its disk, by SQLite's codes without what each adds about the place.
_DAMAGED = ("DATABASE_DAMAGED", "The database is damaged: put a backup of it in its place.")
_DISK_ERRORS = {
    sqlite3.SQLITE_FULL: (
        "DISK_FULL",
        "The disk that the store is on is full. Free some of it, then try again.",
    ),
    sqlite3.SQLITE_READONLY: (
        "DISK_READ_ONLY",
        "The disk that the store is on is read-only. Make it writable, then try again.",
    ),
    sqlite3.SQLITE_IOERR: ("DISK_FAILED", "The disk that the store is on failed. See to it, then try again."),
    sqlite3.SQLITE_CANTOPEN: (
        "DISK_FAILED",
        "The files of the store cannot be opened. See to their rights and to the limit of open files, then try again.",
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
_OPENING_ERRORS = {
    sqlite3.SQLITE_CANTOPEN: "it is no file, or may not be read and written. See to it, then start again",
    sqlite3.SQLITE_PERM: "it may not be read and written. See to it, then start again",
    sqlite3.SQLITE_BUSY: "another program has it locked. End that, then start again",
    sqlite3.SQLITE_LOCKED: "another program has it locked. End that, then start again",
}
_PRIMARY = 0xFF
_SUFFIXES = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to the file's name for the files that it keeps beside it."""


class SqliteFile:
    """The file in a data directory, and the lock on that directory."""

    is_shared = False

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock: BinaryIO | None = None
        self._path = path = data_dir / "store.sqlite"
        # The writer takes the write lock at once: a transaction that reads first and writes later can fail with
        # "database is locked" whatever the busy timeout.
        self.writer = _engine(path, "BEGIN IMMEDIATE", pool_size=1)
        self.writer_beside = self.writer
        self.reader = _engine(path, "BEGIN", pool_size=_READERS)
        # The migrator goes without the settings of the others: foreign keys must not hold while a table is made anew.
        self.migrator = create_async_engine(_url(path), poolclass=NullPool)

        self.renewer = _renewer(path)

    async def take(self) -> None:
        """Lock the data directory, making it if need be.

        Raises:
            CannotOpenError: Another process holds the lock, or something is in the place of a file.
        """
        self._check_files()
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._lock = open_plain(self._data_dir / "lock", "ab")
        except NotPlainFileError as error:
            message = f"{error.filename} is no plain file: move away what is there, then start again."
            raise CannotOpenError(message) from error
        except OSError as error:
            message = (
                f"The data directory {self._data_dir} cannot be used ({error.strerror}): name a folder with --data-dir "
                "that can be made, read and written."
            )
            raise CannotOpenError(message) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            message = (
                f"{self._data_dir} is in use by another process: give this one a data directory of its own."
            )
            raise CannotOpenError(message) from None

    def is_empty(self) -> bool:
        """Whether there is no file, or nothing in it.

        Raises:
            CannotOpenError: Something else is in its place.
        """
        self._check_files()
        return not self._path.exists() or self._path.stat().st_size == 0

    async def in_use(self) -> bool:
        """Say whether another process has locked the data directory."""
        try:
            with open_plain(self._data_dir / "lock", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _check_files(self) -> None:
        try:
            for suffix in _SUFFIXES:
                check_plain(self._path.with_name(f"{self._path.name}{suffix}"))
        except NotPlainFileError as error:
            message = (
                f"{error.filename} cannot be opened: it is no plain file. Put the database, or a backup of it, in its "
                "place, then start again."
            )
            raise CannotOpenError(message) from error

    def explain(self, error: Exception) -> str:
        """Say in one sentence what keeps the file from being opened, and the way out."""
        if isinstance(error, UnavailableError):
            return f"{self._path}: {error.message}"
        code = _code(getattr(error, "orig", error))
        if code in _DISK_ERRORS and code not in _OPENING_ERRORS:
            return f"{self._path}: {_DISK_ERRORS[code][1]}"
        what = _OPENING_ERRORS.get(code, f"{type(error).__name__}; --log-level debug shows the rest")
        return f"{self._path} cannot be opened: {what}."

    def let_go(self) -> None:
        """Unlock the data directory."""
        if self._lock:
            self._lock.close()


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def _engine(path: Path, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        _url(path),
        # Transactions begin with the statement `begin`, and not where the driver guesses.
        async_creator=lambda: connect(path),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_as_said(connection: Any) -> None:
        connection.connection.driver_connection.begin(begin)

    event.listen(engine.sync_engine, "handle_error", _tell_the_caller)
    return engine


def _renewer(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT_FOR_RENEWAL_SECONDS, isolation_level=None)

    return renewing_engine("sqlite://", connect, "BEGIN IMMEDIATE")


def _tell_the_caller(context: ExceptionContext) -> None:
    """Turn what is no fault of ours into an error that says what to do."""
    if known := _DISK_ERRORS.get(_code(context.original_exception)):
        raise UnavailableError(*known, retry_after=_RETRY_AFTER)


def _code(error: object) -> int:
    """Return SQLite's code of an error; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY
