"""The database behind everything, a SQLite file or a PostgreSQL database: its migrations and its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, wraps
from itertools import islice
from operator import itemgetter
from pathlib import Path
from sqlite3 import Error as DriverError
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from cachetools import LRUCache
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Row,
    Select,
    Table,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError, TimeoutError  # noqa: A004 - of waiting for a connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from profile_export.domain.catalog.allowances import field_count
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import UnavailableError
from profile_export.domain.lists import MAX_PAGE_BYTES
from profile_export.domain.schemas.types import ObjectType
from profile_export.store.db.access import CannotOpenError, StoreMissingError, WriterTurns, database_busy
from profile_export.store.db.columns import from_micros
from profile_export.store.db.postgresql import PostgresDatabase
from profile_export.store.db.sqlite import SqliteFile
from profile_export.store.db.tables import instance
from profile_export.store.db.wakeups import Transaction, Wakeups

Unions: TypeAlias = Mapping[DatasetKind, ObjectType]
_MOST_FIELDS = 200_000


class KeptUnions:
    """Unions by tenant, each at one revision of what the tenant's sources know: those used last."""

    def __init__(self, most_fields: int = _MOST_FIELDS) -> None:
        """Keep those of so many fields together."""
        self._kept: LRUCache[int, tuple[int, Unions, int]] = LRUCache(most_fields, getsizeof=itemgetter(2))

    def at(self, tenant_id: int, revision: int) -> Unions | None:
        """Return the unions at a revision; None if others are kept, or none."""
        kept_at, unions, _ = self._kept.get(tenant_id, (None, None, 0))
        return unions if kept_at == revision else None

    def keep(self, tenant_id: int, revision: int, unions: Unions) -> None:
        """Keep the unions at a revision that is committed, instead of those at another one."""
        _, before, fields = self._kept.pop(tenant_id, (None, None, 0))
        if before is None or any(before[kind] is not union for kind, union in unions.items()):
            # One more for each, so that empty ones count, too.
            fields = sum(field_count(union) + 1 for union in unions.values())
        if fields <= self._kept.maxsize:
            self._kept[tenant_id] = revision, unions, fields


_MIGRATIONS = Path(__file__).parent / "migrations"
# `now()` would be when the transaction began, which may be long before it got the lock.
_POSTGRESQL_TIME = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)")


# PostgreSQL's protocol counts them in 15 bits, and a statement may have a few of its own.
_MOST_PARAMETERS = 30_000
MOST_AT_ONCE = 500
"""How many rows a chore writes in one transaction: whoever comes after it need not wait for all."""
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")
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
        """What renews leases from a thread, each time with a connection of its own; its transactions block."""
        return self._place.renewer

    async def open(self, *, may_make: bool = True) -> None:
        """Keep others out unless it is shared, and bring the schema up to date.

        Args:
            may_make: Whether a store is made where there is none.

        Raises:
            CannotOpenError: Another process has it, or it cannot be reached.
            StoreMissingError: There is none, and none may be made.
        """
        try:
            await self._place.take()
            if not may_make and (self._place.is_empty() or await revision(self._place.migrator) is None):
                raise StoreMissingError
            await migrate(self._place.migrator)
            # What is the matter with it is to be heard of now.
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
            task.exception()  # asked for, or the loop complains when the caller is gone

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
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a reading transaction: everything in it sees one moment."""
        async with self._transaction(self._place.reader) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[Transaction]:
        transaction = Transaction(engine)
        try:
            async with transaction, transaction.begin():
                yield transaction
        except TimeoutError as error:
            raise database_busy() from error
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


def slices(values: Iterable[_Value], most: int = _MOST_PARAMETERS) -> Iterator[Sequence[_Value]]:
    """Cut values of which there may be any number into what one statement takes as parameters, or fewer."""
    rest = iter(values)
    while part := tuple(islice(rest, most)):
        yield part


def database_time_within(connection: Connection) -> datetime:
    """Return the database's present time: every instant that is written comes from here."""
    if connection.dialect.name == "sqlite":
        # It runs within this process and has the same clock; a job asks for it thirty times.
        return datetime.now(UTC)
    return from_micros(connection.execute(_POSTGRESQL_TIME).scalar_one())


async def database_time(connection: AsyncConnection) -> datetime:
    """Return what `database_time_within` does."""
    return await connection.run_sync(database_time_within)


async def fetch_all(connection: AsyncConnection, query: Executable) -> Sequence[Row[Any]]:
    """Return the rows of a query whose columns may hold long JSON, which is read beside the loop then."""
    return await connection.run_sync(lambda within: within.execute(query).all())


async def fetch_first(connection: AsyncConnection, query: Executable) -> Row[Any] | None:
    """Return the first of such rows; None if there is none."""
    return await connection.run_sync(lambda within: within.execute(query).first())


FEW = 8
"""So many are read without asking first how large they are."""


async def page_rows(
    connection: AsyncConnection,
    query: Select[Any],
    size: int,
    stored: ColumnElement[int],
    room: int = MAX_PAGE_BYTES,
) -> tuple[Sequence[Row[Any]], bool]:
    """Read up to `size` rows of a sorted query, but stop behind those that fill the room; say whether others follow.

    Args:
        connection: Within a transaction.
        query: Sorted, without a limit.
        size: How many rows are wanted.
        stored: What a row holds in characters, about, but for what is always short.
        room: How many of these there may be.
    """
    if size < FEW:
        rows = await fetch_all(connection, query.limit(size + 1))
        return rows[:size], len(rows) > size
    measured = query.with_only_columns(stored, maintain_column_froms=True).limit(size + 1)
    sizes = (await connection.scalars(measured)).all()
    count = min(size, fitting_count(sizes, room))
    rows = await fetch_all(connection, query.limit(count)) if count else ()
    return rows, count < len(sizes)


def characters(*columns: ColumnElement[Any]) -> ColumnElement[int]:
    """Return how many characters some columns of a row have together."""
    lengths = [func.coalesce(func.length(column), 0) for column in columns]
    total: ColumnElement[int] = lengths[0]
    for length in lengths[1:]:
        total = total + length
    return total


def fitting_count(sizes: Iterable[int], room: int) -> int:
    """Return how many of the first rows fit into so much room; at least one, if there is one."""
    count = 0
    for size in sizes:
        room -= size
        if count and room < 0:
            break
        count += 1
    return count


def insert_new(connection: AsyncConnection, table: Table) -> Any:
    """Insert rows, but for those whose key or other unique value is there already."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


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
    if there is not None and there not in _known_revisions():
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
def newest_revision() -> str | None:
    """Return the version of the tables that this program makes."""
    return ScriptDirectory.from_config(_migrations()).get_current_head()


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(
        script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()
    )


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


async def _found(connection: AsyncConnection) -> Instance | None:
    row = (await connection.execute(select(instance.c.id, instance.c.token_key))).one_or_none()
    return Instance(row.id, row.token_key) if row else None
