"""Transactions of either kind of database: whose turn it is, what they read and change, and what keeps them out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias, TypeVar

from cachetools import LRUCache
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    NullPool,
    Row,
    Select,
    Table,
    create_engine,
    event,
    func,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from profile_export.domain.catalog.allowances import field_count
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import NotFoundError, UnavailableError
from profile_export.domain.lists import MAX_PAGE_BYTES
from profile_export.domain.schemas.types import ObjectType
from profile_export.processes.turns import FairTurns, WaitedTooLongError, computed_for, present_whose

# SQLSTATE `undefined_table` and `undefined_column`; SQLite has no code for them but a text.
_LACKING = {"42P01", "42703"}
_LACKING_TEXT = "no such "


class CannotOpenError(Exception):
    """The database cannot be opened. Its text is one line with the way out."""


class StoreMissingError(CannotOpenError):
    """There is no store in the database, and none may be made. Nothing has been changed."""


def explained(error: Exception) -> str | None:
    """Say in one sentence what a statement's error says of the database; None: that it is no fault of the database."""
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig.__cause__ or error.orig if error.orig else None
    text = " ".join(str(cause).split())
    if getattr(cause, "sqlstate", None) in _LACKING or text.startswith(_LACKING_TEXT):
        return f"The database lacks what its version has ({text}): put a backup of it in its place, then start again."
    return None


def begin_with(engine: Engine, statement: str) -> None:
    """Have each transaction of an engine begin with a statement."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)


def renewing_engine(url: str, connect: Callable[[], Any], begin: str) -> Engine:
    """Return the engine that renews leases from a thread, each time with a connection of its own."""
    engine = create_engine(url, creator=connect, poolclass=NullPool)
    begin_with(engine, begin)
    return engine


WAIT_SECONDS = 60.0
"""How long a transaction waits for a turn, and for a connection."""
_WRITER = "the writer"
_TENANTS, _NOBODY = "tenants", "nobody"


class WriterTurns:
    """Turns of the transactions of this process that write alone.

    Tenants are served round robin, each one's transactions first come first served. What is for nobody in particular,
    such as chores and the leases of jobs, waits for one transaction of one tenant at most for each of its own.
    """

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        # A tenant waits for its turn among the tenants, then takes turns with what is for nobody in particular.
        self._tenants = FairTurns(1)
        self._writer = FairTurns(1)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a turn of whom this task works for, and hold it.

        Raises:
            UnavailableError: It takes too long.
        """
        whose = present_whose()
        try:
            if whose is None:
                async with self._writer.taken(_NOBODY, self._wait_seconds):
                    yield
            else:
                async with (
                    self._tenants.taken(whose, self._wait_seconds),
                    self._writer.taken(_TENANTS, self._wait_seconds),
                ):
                    # Everybody waits for what the writer computes: it does not queue behind what its tenant computes.
                    with computed_for(_WRITER):
                        yield
        except WaitedTooLongError:
            raise database_busy() from None


def database_busy() -> UnavailableError:
    """Return the answer to who has waited too long."""
    return UnavailableError(
        "DATABASE_BUSY",
        "The server has more to read or write than its database keeps up with. Try again.",
        retry_after=timedelta(seconds=1),
    )


class ChangedJob(NamedTuple):
    """A job that has changed, and whose it is, by their keys; and whether a worker may find one to take since."""

    job_id: int
    tenant_id: int
    one_may_be_due: bool = False


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
            # Each union counts as one field more, so that empty ones count, too.
            fields = sum(field_count(union) + 1 for union in unions.values())
        if fields <= self._kept.maxsize:
            self._kept[tenant_id] = revision, unions, fields


class Transaction(AsyncConnection):
    """A transaction that collects what it changes. `Database` wakes those who wait for that after the commit.

    Each of `changes` is a job, or None for batches. The methods that return rows read long JSON beside the loop.
    `unions` are those that the database keeps; it keeps `new_unions` after the commit. Each of `events` is a name with
    facts, which the log has after the commit.
    """

    def __init__(self, engine: AsyncEngine, unions: KeptUnions) -> None:
        super().__init__(engine)
        self.unions = unions
        self.new_unions: tuple[int, int, Unions] | None = None
        self.changes: list[ChangedJob | None] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def tell(self, name: str, **facts: Any) -> None:
        """Have the log say something if the transaction is committed."""
        self.events.append((name, facts))

    def job_changed(self, job_id: int, tenant_id: int, *, one_may_be_due: bool = False) -> None:
        """Say that the transaction changes a job.

        A job may be due once one is new or one that ran does so no longer, since a tenant runs only so many.
        """
        self.changes.append(ChangedJob(job_id, tenant_id, one_may_be_due))

    def batches_changed(self) -> None:
        """Say that the transaction makes batches count, or cease to."""
        self.changes.append(None)

    async def all(self, query: Executable, parameters: Any = None) -> Sequence[Row[Any]]:
        """Return the rows of a query."""
        return await self.run_sync(lambda within: within.execute(query, parameters).all())

    async def first(self, query: Executable, parameters: Any = None) -> Row[Any] | None:
        """Return the first row of a query; None if there is none."""
        return await self.run_sync(lambda within: within.execute(query, parameters).first())

    async def one(self, query: Executable) -> Row[Any]:
        """Return the row of a query that has exactly one."""
        return await self.run_sync(lambda within: within.execute(query).one())

    async def value(self, query: Executable) -> Any:
        """Return the value of a query that has exactly one."""
        return await self.run_sync(lambda within: within.execute(query).scalar_one())

    async def existing(self, query: Executable, kind: str, named: str) -> Row[Any]:
        """Return the first row of a query for something that a caller has named.

        Raises:
            NotFoundError: There is none.
        """
        row = await self.first(query)
        if row is None:
            raise NotFoundError.of(kind, named)
        return row

    async def values(self, query: Executable) -> Sequence[Any]:
        """Return the values of a query for one column."""
        return (await self.scalars(query)).all()

    async def among(
        self, query: Select[Any], column: ColumnElement[Any], values: Iterable[Any]
    ) -> Sequence[Row[Any]]:
        """Return the rows of a query that have one of some values in a column, however many values there are."""
        return [row for some in slices(values) for row in await self.all(query.where(column.in_(some)))]

    async def insert_new(self, table: Table, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, but for those whose key or other unique value is there already."""
        insert = sqlite.insert if self.dialect.name == "sqlite" else postgresql.insert
        await self.execute(insert(table).on_conflict_do_nothing(), rows)


FEW = 8
"""Fewer rows than these are read without asking first how large they are."""


async def page_rows(
    connection: Transaction,
    query: Select[Any],
    size: int,
    stored: ColumnElement[int],
    room: int = MAX_PAGE_BYTES,
) -> tuple[Sequence[Row[Any]], bool]:
    """Read up to `size` rows of a sorted query, but stop behind those that fill the room; say whether others follow.

    `stored` is about how many characters a row holds, without what is always short; `room` is for so many of these.
    """
    if size < FEW:
        rows = await connection.all(query.limit(size + 1))
        return rows[:size], len(rows) > size
    measured = query.with_only_columns(stored, maintain_column_froms=True).limit(size + 1)
    sizes = await connection.values(measured)
    count = min(size, fitting_count(sizes, room))
    rows = await connection.all(query.limit(count)) if count else ()
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


# PostgreSQL's protocol counts parameters in 15 bits, and a statement may have a few of its own.
_MOST_PARAMETERS = 30_000


_Value = TypeVar("_Value")


def slices(values: Iterable[_Value], most: int = _MOST_PARAMETERS) -> Iterator[Sequence[_Value]]:
    """Cut values of which there may be any number into what one statement takes as parameters, or fewer."""
    rest = iter(values)
    while part := tuple(islice(rest, most)):
        yield part
