"""A store in a PostgreSQL database, which any number of processes share.

Every writing transaction holds one advisory lock of the database until it has committed: alone, or shared with others
that write beside it. So those that write alone see and leave behind what they would as SQLite's one writer, whatever
they do, and what they number becomes visible in the order of the numbers. Only the few methods that many workers call
all the time write beside one another, and say why they may. PostgreSQL gives a lock up only after what was committed is
visible, and each statement of a writing transaction sees all that is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from profile_export.store.opening import CannotOpenError

_WAIT_FOR_CONNECTION_SECONDS = 60
_READERS = 4
_WRITERS_BESIDE = 4
# Any number that nobody else uses in this database.
_LOCK = 0x70726F66_65787072
_ALONE = f"SELECT pg_advisory_xact_lock({_LOCK})"
_BESIDE = f"SELECT pg_advisory_xact_lock_shared({_LOCK})"
_SETTINGS = {
    "application_name": "profile-export",
    # What is asked here takes less time than its compilation would.
    "jit": "off",
    # A process that is stopped or cut off within a transaction holds up the others for so long. It must be less than
    # what is left of a lease between two heartbeats, or theirs expire meanwhile.
    "idle_in_transaction_session_timeout": "5s",
}


def connector(url: str) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return what opens a connection of the driver's to the database that a URL names, as libpq reads it.

    It raises `CannotOpenError` where there is no such database, or none that lets this process in.

    Raises:
        CannotOpenError: The driver is not installed.
    """
    try:
        import asyncpg  # noqa: PLC0415 - an extra; an embedded server does without it
    except ImportError:
        message = "PostgreSQL needs a driver: pip install 'profile-export[postgres]'."
        raise CannotOpenError(message) from None

    async def connect() -> Any:
        try:
            return await asyncpg.connect(url, server_settings=_SETTINGS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            message = f"PostgreSQL cannot be reached: {error or type(error).__name__}"
            raise CannotOpenError(message) from error

    return connect


class PostgresDatabase:
    """The database that a URL such as `postgresql://user@host/name` names."""

    is_shared = True

    def __init__(self, url: str) -> None:
        self._connect = connector(url)
        # One, since a second one would only wait for it.
        self.writer = self._engine("READ COMMITTED", _ALONE, pool_size=1)
        self.writer_beside = self._engine("READ COMMITTED", _BESIDE, pool_size=_WRITERS_BESIDE)
        self.reader = self._engine("REPEATABLE READ", None, pool_size=_READERS)
        # It writes alone as well: servers that start together wait for the one that migrates.
        self.migrator = _at_begin(
            create_async_engine("postgresql+asyncpg://", async_creator=self._connect, poolclass=NullPool),
            _ALONE,
        )

    def _engine(self, isolation: Any, begin: str | None, pool_size: int) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level=isolation,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=_WAIT_FOR_CONNECTION_SECONDS,
            pool_pre_ping=True,  # a restart of PostgreSQL costs the calls that it interrupts, and no others
        )
        return _at_begin(engine, begin) if begin else engine

    async def take(self) -> None:
        """See that it is there. There is nothing to lock: others may have it open.

        Raises:
            CannotOpenError: It is not.
        """
        await (await self._connect()).close()

    def let_go(self) -> None:
        """Nothing to unlock."""


def _at_begin(engine: AsyncEngine, statement: str) -> AsyncEngine:
    @event.listens_for(engine.sync_engine, "begin")
    def lock(connection: Any) -> None:
        connection.exec_driver_sql(statement)

    return engine
