"""A store in a PostgreSQL database, which any number of processes share.

Every writing transaction holds one advisory lock of the database until it has committed: alone, or shared with others
that write beside it. So those that write alone see and leave behind what they would as SQLite's one writer, whatever
they do, and what they number becomes visible in the order of the numbers. Only the few methods that many workers call
all the time write beside one another, and say why they may. PostgreSQL gives a lock up only after what was committed is
visible, and each statement of a writing transaction sees all that is.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import Engine, ExceptionContext, NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from profile_export.domain.errors import InvalidArgumentError, UnavailableError
from profile_export.processes.plain_file import check_plain
from profile_export.store.db.transactions import WAIT_SECONDS, CannotOpenError, begin_with, renewing_engine

_OPTIONS = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
_OF_THE_SYSTEM = "system"
"""What libpq takes for the certificates that the system trusts."""


def check_tls_files(url: str) -> None:
    """See that the files can be read. A pipe among them would be waited for.

    Raises:
        CannotOpenError: One cannot; says which option names it.
    """
    try:
        named = parse_qsl(urlsplit(url).query)
    except ValueError:
        return  # the driver says what is wrong with the URL
    for option, place in named:
        if option not in _OPTIONS or place == _OF_THE_SYSTEM:
            continue
        try:
            check_plain(Path(place))
            with Path(place).open("rb"):
                pass
        except OSError as error:
            message = (
                f"The file {place}, which {option} in --database-url names, cannot be read: {error.strerror}. Name "
                "another, or leave the option out, then start again."
            )
            raise CannotOpenError(message) from error


_OLDEST = 14
_READERS = 4
_WRITERS_BESIDE = 4
# Any number that nobody else uses in this database.
_LOCK = 0x70726F66_65787072
_ALONE = f"SELECT pg_advisory_xact_lock({_LOCK})"
_BESIDE = f"SELECT pg_advisory_xact_lock_shared({_LOCK})"
_UNAVAILABLE = (
    "DATABASE_UNAVAILABLE",
    "The database cannot be reached, or broke the connection off. Try again.",
)
_RETRY_AFTER = timedelta(seconds=1)
# SQLSTATE `character_not_in_repertoire`: what gets here as text is Unicode, of which PostgreSQL refuses NUL alone.
_NO_CHARACTER = "22021"
_NAME = f"profile-export {socket.gethostname()[:30]} {os.getpid()}"
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE 'profile-export %' AND application_name <> $1"
)
_SETTINGS = {
    "application_name": _NAME,
    # What is asked here takes less time than its compilation would.
    "jit": "off",
    # A process that is stopped or cut off within a transaction holds up the others for so long. It must be less than
    # what is left of a lease between two heartbeats, or theirs expire meanwhile.
    "idle_in_transaction_session_timeout": "5s",
}

# A renewal waits as long as another transaction of this process may be idle, and a little longer.
_RENEWAL_SECONDS = 6
_RENEWAL_OPTIONS = f"-c application_name=profile-export -c jit=off -c statement_timeout={_RENEWAL_SECONDS}s"


def connector(url: str) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return what opens a connection of the driver's to the database that a URL names, as libpq reads it.

    It raises `UnavailableError` where there is no such database, or none that lets this process in.

    Raises:
        CannotOpenError: The driver is not installed, or a file that the URL names cannot be read.
    """
    check_tls_files(url)
    try:
        import asyncpg  # noqa: PLC0415 - an extra; an embedded server does without it
    except ImportError:
        message = "PostgreSQL needs a driver: pip install 'profile-export[postgres]'."
        raise CannotOpenError(message) from None

    async def connect() -> Any:
        try:
            return await asyncpg.connect(url, server_settings=_SETTINGS)
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _NotConnectedError(*_UNAVAILABLE, retry_after=_RETRY_AFTER) from error

    return connect


class _NotConnectedError(UnavailableError):
    """No connection can be opened; its cause says why."""


class PostgresDatabase:
    """The database that a URL such as `postgresql://user@host/name` names."""

    is_shared = True

    def __init__(self, url: str) -> None:
        self._connect = connector(url)
        # One connection, since a second one would only wait for the lock of the first.
        self.writer = self._engine("READ COMMITTED", _ALONE, **_pool(1))
        self.writer_beside = self._engine("READ COMMITTED", _BESIDE, **_pool(_WRITERS_BESIDE))
        self.reader = self._engine("REPEATABLE READ", None, **_pool(_READERS))
        # The migrator writes alone as well: servers that start together wait for the one that migrates.
        self.migrator = self._engine("READ COMMITTED", _ALONE, poolclass=NullPool)
        self.renewer = _renewer(url)

    def _engine(self, isolation: Any, begin: str | None, **pool: Any) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level=isolation,
            pool_pre_ping=True,  # a restart of PostgreSQL costs the calls that it interrupts, and no others
            **pool,
        )
        event.listen(engine.sync_engine, "handle_error", _tell_the_caller)
        if begin:
            begin_with(engine.sync_engine, begin)
        return engine

    async def _opened(self) -> Any:
        try:
            return await self._connect()
        except UnavailableError as error:
            raise CannotOpenError(_why(error.__cause__)) from error

    async def take(self) -> None:
        """See that it is there. There is nothing to lock: others may have it open.

        Raises:
            CannotOpenError: It is not.
        """
        connection = await self._opened()
        try:
            version = connection.get_server_version().major
            encoding = await connection.fetchval("SHOW server_encoding")
        finally:
            await connection.close()
        if version < _OLDEST:
            message = f"PostgreSQL {version} is too old for this program: it needs {_OLDEST} or newer."
            raise CannotOpenError(message)
        if encoding != "UTF8":
            message = (
                f"The database has the encoding {encoding}, and not UTF8: make one WITH ENCODING 'UTF8'."
            )
            raise CannotOpenError(message)

    def is_empty(self) -> bool:
        """Return False: only its tables tell whether it is empty."""
        return False

    async def in_use(self) -> bool:
        """Say whether another process is connected, by its name."""
        connection = await self._opened()
        try:
            return bool(await connection.fetchval(_OTHERS, _NAME))
        finally:
            await connection.close()

    def explain(self, error: Exception) -> str:
        """Say in one sentence what keeps the database from being used, and the way out."""
        if isinstance(error, _NotConnectedError):
            return _why(error.__cause__)
        if isinstance(error, UnavailableError):
            return error.message
        return f"PostgreSQL refuses: {_text(getattr(error, 'orig', error))}."

    def let_go(self) -> None:
        """Do nothing: there is nothing to unlock."""


def _renewer(url: str) -> Engine:
    def connect() -> Any:
        import psycopg  # noqa: PLC0415 - an extra, as above

        return psycopg.connect(url, connect_timeout=_RENEWAL_SECONDS, options=_RENEWAL_OPTIONS)

    # A renewal writes beside others, as heartbeats do: what ends an attempt writes alone.
    return renewing_engine("postgresql+psycopg://", connect, _BESIDE)


def _why(error: BaseException | None) -> str:
    """Say why there is no connection."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or type(error).__name__
        return (
            f"PostgreSQL cannot be reached: TLS fails with {reason}. See to its certificate, and to the files that "
            "sslrootcert, sslcert, sslkey and sslcrl in --database-url name."
        )
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"PostgreSQL cannot be reached: {' '.join(reason.split())}. See that it runs where --database-url says."
    if _sqlstate(error):
        return (
            f"PostgreSQL cannot be reached: {_text(error)}. See to it, or name another with --database-url."
        )
    # The error may quote a part of the URL, which may be the password.
    return (
        "PostgreSQL cannot be reached: --database-url cannot be read. Give postgresql://USER@HOST:PORT/DATABASE, with "
        "%XX for what is special in it."
    )


def _sqlstate(error: object) -> str | None:
    """Return the code of an error that the server tells; None if it is of another kind."""
    return getattr(error, "sqlstate", None)


def _text(error: object) -> str:
    """Return what the server says of an error, on one line; of others no more than their kind."""
    if _sqlstate(error):
        return " ".join(str(error).split()).rstrip(".")
    return type(error).__name__


def _pool(size: int) -> dict[str, Any]:
    return {"pool_size": size, "max_overflow": 0, "pool_timeout": WAIT_SECONDS}


def _tell_the_caller(context: ExceptionContext) -> None:
    """Turn errors that a caller can do something about into ours."""
    if context.is_pre_ping:
        return  # the pool makes another connection, and nobody need be told
    if context.is_disconnect:
        raise UnavailableError(*_UNAVAILABLE, retry_after=_RETRY_AFTER)
    if _sqlstate(context.original_exception) == _NO_CHARACTER:
        message = "No text may contain a NUL character."
        raise InvalidArgumentError("TEXT_INVALID", message)
