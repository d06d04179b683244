"""The SQLite file behind everything: opened by one process, migrated at start-up, one writer and many readers."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TextIO, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from profile_export.store.column_types import from_micros

_MIGRATIONS = Path(__file__).parent / "migrations"
_WAIT_FOR_WRITER_SECONDS = 60
_READERS = 4
# Database time only: every instant that is written comes from here. SQLite's clock has milliseconds.
_NOW = text("SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)")


_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")
_Store = TypeVar("_Store", bound="HasDatabase")


class HasDatabase(Protocol):
    """A store class."""

    database: Database


class DataDirectoryInUseError(Exception):
    """Another process has the data directory open."""


class Database:
    """The store's file. Between `open` and `close`, transactions are `read()` and `write()`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._path = data_dir / "store.sqlite"
        self._lock: TextIO | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._writer = _engine(self._path, "BEGIN IMMEDIATE", pool_size=1)
        self._reader = _engine(self._path, "BEGIN", pool_size=_READERS)

    async def open(self) -> None:
        """Lock the data directory, making it if need be, and bring the schema up to date.

        Raises:
            DataDirectoryInUseError: Another process holds the lock.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self._data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            message = (
                f"{self._data_dir} is in use by another process: give this one a data directory of its own."
            )
            raise DataDirectoryInUseError(message) from None
        await asyncio.to_thread(migrate, self._path)

    async def close(self) -> None:
        """Wait for what still runs, close the connections and let go of the data directory."""
        if self._running:
            await asyncio.wait(self._running)
        await self._writer.dispose()
        await self._reader.dispose()
        if self._lock:
            self._lock.close()

    async def to_its_end(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run work that a cancelled caller leaves behind, but never interrupts.

        A statement that is given up half-way leaves its connection, and with it SQLite's write lock, to nobody.
        """
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, or the loop complains when the caller is gone

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open the one writing transaction; it commits when the block ends and rolls back when it raises.

        It takes the write lock at once: a transaction that reads first and writes later can fail with "database is
        locked" whatever the busy timeout.
        """
        async with self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a reading transaction: everything in it sees one moment."""
        async with self._reader.begin() as connection:
            yield connection


def whole(
    method: Callable[Concatenate[_Store, _Parameters], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Store, _Parameters], Coroutine[Any, Any, _Result]]:
    """Make a method of a store class run to its end once it has begun, whatever becomes of its caller."""

    @wraps(method)
    async def run(self: _Store, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return await self.database.to_its_end(method(self, *args, **kwargs))

    return run


async def database_time(connection: AsyncConnection) -> datetime:
    """Return the database's present time."""
    return from_micros((await connection.execute(_NOW)).scalar_one())


def migrate(path: Path) -> None:
    """Bring the schema of the file up to date, making the file if need be. Blocks."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()


def _engine(path: Path, begin: str, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_WAIT_FOR_WRITER_SECONDS,
        connect_args={"isolation_level": None},  # transactions begin as said below, not as the driver guesses
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_as_said(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
