"""The composition roots: they make every room, wire them, and run them for a command; nothing else."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from profile_export.app import processes
from profile_export.app.jobs import WorkerProcess
from profile_export.app.processes import StartError, configure_logs, starting
from profile_export.app.server import Application
from profile_export.config import Options, SettingsError, StoreSettings, load, load_store, load_worker
from profile_export.domain.export.receipt import Verification
from profile_export.lake.data_files import verify as verify_receipt
from profile_export.lake.local import LocalLake
from profile_export.runner.leftovers import Findings, StoreAndLake, check_up
from profile_export.store.db.database import Database, Instances, newest_revision
from profile_export.store.files.folders import DroppedFolders, Named
from profile_export.store.files.snapshots import Compactions

__all__ = ["Application", "StartError", "db_check", "db_status", "db_upgrade", "serve", "verify", "work"]

_OURS_ALONE = 0o077
_Answer = TypeVar("_Answer")
_Settings = TypeVar("_Settings", bound=StoreSettings)


def serve(options: Options) -> None:
    """Run a server until SIGTERM or SIGINT; prints `listening on HOST:PORT` when it answers.

    Args:
        options: As `config.load` takes them; variables come from the environment.

    Raises:
        StartError: A setting, the address or the database cannot be used.
    """
    settings = _settings(load, options)
    asyncio.run(processes.run(lambda: Application(settings), settings.told()))


def work(options: Options) -> None:
    """Run jobs beside the servers of a PostgreSQL database until SIGTERM or SIGINT; prints `working` when it does.

    Args:
        options: As `config.load_worker` takes them; variables come from the environment.

    Raises:
        StartError: A setting or the database cannot be used.
    """
    settings = _settings(load_worker, options)
    asyncio.run(processes.run(lambda: WorkerProcess(settings), settings.told()))


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How a store stands.

    Revisions are versions of the tables: the one there is, None: there are no tables; and the one that this program
    makes. Ids of instances are None where there is none, that of the database also before it is upgraded.
    """

    revision: str | None
    newest_revision: str | None
    database_instance: str | None
    lake_instance: str | None
    in_use: bool


def db_status(options: Options) -> StoreStatus:
    """Say how a store stands, also beside a server.

    Args:
        options: As `config.load_store` takes them; variables come from the environment.

    Raises:
        StartError: A setting or the database cannot be used.
    """

    async def ask(database: Database, lake: LocalLake) -> StoreStatus:
        revision, newest = await database.revision(), newest_revision()
        instance = await Instances(database).get() if revision == newest else None
        in_use = await database.in_use()
        return StoreStatus(revision, newest, instance.id if instance else None, lake.instance(), in_use)

    return _asked(ask, options)


def db_upgrade(options: Options) -> tuple[str | None, str | None]:
    """Bring the tables of a store up to date; return the version that they had and the one that they have.

    Raises:
        StartError: As `db_status`, or others have the database open.
    """

    async def ask(database: Database, lake: LocalLake) -> tuple[str | None, str | None]:
        before = await _store_there(database, lake)
        if await database.in_use():
            raise StartError("Others have the database open: stop all servers and workers, then upgrade it.")
        await database.open(may_make=False)
        return before, await database.revision()

    return _asked(ask, options)


def db_check(options: Options) -> Findings:
    """Say whether a store and its lake agree, also beside a server.

    Raises:
        StartError: As `db_status`.
    """

    async def ask(database: Database, lake: LocalLake) -> Findings:
        if await _store_there(database, lake) != newest_revision():
            message = (
                "The tables are of another version than this program: profile-export db status says which."
            )
            raise StartError(message)
        dropped, compactions = DroppedFolders(database), Compactions(database)
        return await check_up(StoreAndLake(Instances(database), Named(database), compactions, dropped, lake))

    return _asked(ask, options)


def _asked(ask: Callable[[Database, LocalLake], Awaitable[_Answer]], options: Options) -> _Answer:
    settings = _settings(load_store, options)

    async def answer() -> _Answer:
        with starting():
            database = Database(settings.url or settings.data_dir)
            try:
                return await ask(database, LocalLake(settings.data_dir))
            finally:
                await database.close()

    return asyncio.run(answer())


async def _store_there(database: Database, lake: LocalLake) -> str:
    revision = await database.revision()
    if revision is None:
        message = f"There is no store in {lake.root.parent}, or in the database that --database-url names."
        raise StartError(message)
    return revision


def verify(receipt: Path) -> Verification:
    """Check a receipt against the files beside it, as `lake.data_files` does; no server is needed."""
    return verify_receipt(receipt)


def _settings(read: Callable[[Options, Mapping[str, str]], _Settings], options: Options) -> _Settings:
    try:
        settings = read(options, os.environ)
    except SettingsError as error:
        raise StartError(str(error)) from error
    configure_logs(settings.log_level, settings.log_format)
    _keep_private(settings.data_dir)
    return settings


def _keep_private(data_dir: Path) -> None:
    """See that nobody but this user reads what this process and its children write, or a former one wrote.

    Raises:
        StartError: The folder is none.
    """
    os.umask(_OURS_ALONE)
    try:
        data_dir.resolve()
    except (OSError, RuntimeError) as error:
        raise StartError(
            f"The data directory {data_dir} cannot be used: it is a link that leads nowhere. "
            "Name another with --data-dir."
        ) from error
    with suppress(OSError):  # whoever opens the folder next says why it cannot be used
        found = data_dir.stat()
        ours = found.st_uid == os.geteuid() and (data_dir / "lake").is_dir()
        if ours and found.st_mode & _OURS_ALONE:
            data_dir.chmod(stat.S_IMODE(found.st_mode) & ~_OURS_ALONE)
