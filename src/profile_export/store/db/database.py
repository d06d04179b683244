"""The database behind everything, a SQLite file or a PostgreSQL database: its migrations and its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, wraps
from pathlib import Path
from sqlite3 import Error as DriverError
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, insert, select, text
from sqlalchemy.exc import SQLAlchemyError, TimeoutError  # noqa: A004 - of waiting for a connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from profile_export.domain.errors import UnavailableError
from profile_export.store.db.columns import from_micros
from profile_export.store.db.postgresql import PostgresDatabase
from profile_export.store.db.sqlite import SqliteFile
from profile_export.store.db.tables import instance
from profile_export.store.db.transactions import (
    CannotOpenError,
    KeptUnions,
    StoreMissingError,
    Transaction,
    WriterTurns,
    database_busy,
)
from profile_export.store.db.wakeups import Wakeups

_MIGRATIONS = Path(__file__).parent / "migrations"
# `now()` would be when the transaction began, which may be long before it got the lock.
_POSTGRESQL_TIME = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)")

_log = structlog.get_logger(__name__)


MOST_AT_ONCE = 500
"""How many rows a chore writes in one transaction: whoever comes after it need not wait for all."""
_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")
_Store = TypeVar("_Store", bound="Store")


class Database:
    """The store's database. Between `open` and `close`, transactions are `read()`, `write()` and `write_beside()`.

    Those that write fire `wakeups` after they have committed, and never when they roll back.
    """

    def __init__(self, place: Path | str) -> None:
        """Make one for a file in a data directory, or for the PostgreSQL database that a URL names.

        Raises:
            CannotOpenError: The driver of PostgreSQL is not installed.
        """
        self._place = SqliteFile(place) if isinstance(place, Path) else PostgresDatabase(place)
        self.wakeups = Wakeups()
        self.unions = KeptUnions()
        self._writer_turns = WriterTurns()
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def is_shared(self) -> bool:
        """Whether other processes may have it open."""
        return self._place.is_shared

    @property
    def renewer(self) -> Engine:
        """The engine that renews leases from a thread; its transactions block."""
        return self._place.renewer

    async def open(self, *, may_make: bool = True) -> None:
        """Keep others out unless it is shared, and bring the schema up to date; `may_make` allows to make a store.

        Raises:
            CannotOpenError: Another process has it, or it cannot be reached.
            StoreMissingError: There is none, and none may be made.
        """
        try:
            await self._place.take()
            if not may_make and (self._place.is_empty() or await revision(self._place.migrator) is None):
                raise StoreMissingError
            await migrate(self._place.migrator)
            # A transaction of each kind shows now what would fail later.
            async with self.write() as connection:
                await database_time(connection)
            async with self.read() as connection:
                await database_time(connection)
        except (SQLAlchemyError, DriverError, UnavailableError, OSError) as error:
            raise CannotOpenError(self._place.explain(error)) from error

    async def revision(self) -> str | None:
        """Return the version that the tables are of, whoever has it open; None if there are none.

        Raises:
            CannotOpenError: It cannot be read.
        """
        if self._place.is_empty():
            return None
        try:
            return await revision(self._place.migrator)
        except (SQLAlchemyError, DriverError, UnavailableError, OSError) as error:
            raise CannotOpenError(self._place.explain(error)) from error

    async def in_use(self) -> bool:
        """Say whether another process has it open.

        Raises:
            CannotOpenError: Nobody can tell.
        """
        return await self._place.in_use()

    async def close(self) -> None:
        """Wait for what still runs, close the connections and let others in."""
        if self._running:
            await asyncio.wait(self._running)
        for engine in (self._place.writer, self._place.writer_beside, self._place.reader):
            await engine.dispose()
        self._place.let_go()

    async def to_its_end(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run work that a cancelled caller leaves behind, but never interrupts.

        A statement that is given up half-way leaves its connection, and with it the write lock, to nobody.
        """
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # the loop complains of an exception that nobody has asked for

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """Open the one writing transaction; it commits when the block ends and rolls back when it raises.

        Nothing else is written meanwhile, by no process. Who waits in this process is let in as `WriterTurns` has it.
        """
        async with self._writer_turns.taken(), self._transaction(self._place.writer) as connection:
            yield connection

    @asynccontextmanager
    async def write_beside(self) -> AsyncIterator[Transaction]:
        """Open a writing transaction beside others of this kind, where the database can; else as `write`.

        For what decides only by rows that it has locked, or that nothing but `write` changes.
        """
        beside = self._place.writer_beside
        async with self.write() if beside is self._place.writer else self._transaction(beside) as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Open a reading transaction: everything in it sees one moment."""
        async with self._transaction(self._place.reader) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[Transaction]:
        transaction = Transaction(engine, self.unions)
        try:
            async with transaction, transaction.begin():
                yield transaction
        except TimeoutError as error:
            raise database_busy() from error
        if transaction.new_unions:
            self.unions.keep(*transaction.new_unions)
        for name, facts in transaction.events:
            _log.info(name, **facts)
        self.wakeups.fire(transaction.changes)


class Store:
    """What is stored of one kind: its methods are transactions of the database."""

    def __init__(self, database: Database) -> None:
        self.database = database


def uninterruptible(
    method: Callable[Concatenate[_Store, _Parameters], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Store, _Parameters], Coroutine[Any, Any, _Result]]:
    """Make a method of a store class run to its end once it has begun, whatever becomes of its caller."""

    @wraps(method)
    async def run(self: _Store, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return await self.database.to_its_end(method(self, *args, **kwargs))

    return run


def database_time_within(connection: Connection) -> datetime:
    """Return the database's present time: every instant that is written comes from here."""
    if connection.dialect.name == "sqlite":
        # It runs within this process and has the same clock; a job asks for it thirty times.
        return datetime.now(UTC)
    return from_micros(connection.execute(_POSTGRESQL_TIME).scalar_one())


async def database_time(connection: AsyncConnection) -> datetime:
    """Return what `database_time_within` does."""
    return await connection.run_sync(database_time_within)


async def revision(engine: AsyncEngine) -> str | None:
    """Return the version that the tables are of; None if there are none."""
    async with engine.connect() as connection:
        return await connection.run_sync(_revision)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def migrate(engine: AsyncEngine) -> None:
    """Bring a schema up to date."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    there = _revision(connection)
    if there == newest_revision():
        return
    if there is not None and there not in {script.revision for script in _scripts().walk_revisions()}:
        message = (
            f"The database is of a newer version ({there}) than this program, which knows up to {newest_revision()}: "
            "install the newer one again, or restore a backup that was made before it."
        )
        raise CannotOpenError(message)
    config = _migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_migrations())


def newest_revision() -> str | None:
    """Return the version of the tables that this program makes."""
    return _scripts().get_current_head()


@dataclass(frozen=True, slots=True)
class Instance:
    """One installation: its database, and the lake that goes with it.

    `token_key` is 32 random bytes, for what is handed out and must come back as it was. It never leaves the servers.
    """

    id: str
    token_key: bytes = field(repr=False)


class Instances(Store):
    """The instance of a database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._token_key: bytes | None = None

    @uninterruptible
    async def get(self) -> Instance | None:
        """Return the instance; None before the first start."""
        async with self.database.read() as connection:
            return await _found(connection)

    async def token_key(self) -> bytes:
        """Return what the instance signs with; it is read once."""
        if self._token_key is None:
            found = await self.get()
            if found is None:
                raise RuntimeError("No token can be signed before the start has made the instance.")
            self._token_key = found.token_key
        return self._token_key

    @uninterruptible
    async def settle(self, proposed: Instance) -> Instance:
        """Return the instance, which becomes the proposed one if there is none: all who propose get the same."""
        async with self.database.write() as connection:
            if there := await _found(connection):
                return there
            await connection.execute(insert(instance).values(id=proposed.id, token_key=proposed.token_key))
        return proposed


async def _found(connection: Transaction) -> Instance | None:
    row = await connection.first(select(instance.c.id, instance.c.token_key))
    return Instance(row.id, row.token_key) if row else None
