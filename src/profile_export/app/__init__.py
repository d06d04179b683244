"""The composition roots: they make every room, wire them, and run them for a command; nothing else."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from profile_export.app import databases
from profile_export.app.jobs import run_worker
from profile_export.app.processes import StartError, configure_logs
from profile_export.app.server import Application, run_server
from profile_export.config import Options, SettingsError, StoreSettings, load, load_store, load_worker
from profile_export.domain.export.receipt import Verification
from profile_export.lake.data_files import verify as verify_receipt
from profile_export.runner.leftovers import Findings

__all__ = ["Application", "StartError", "db_check", "db_status", "db_upgrade", "serve", "verify", "work"]

_OURS_ALONE = 0o077
_Settings = TypeVar("_Settings", bound=StoreSettings)


def serve(options: Options) -> None:
    """Run a server until SIGTERM or SIGINT; prints `listening on HOST:PORT` when it answers.

    Args:
        options: As `config.load` takes them; variables come from the environment.

    Raises:
        StartError: A setting, the address or the database cannot be used.
    """
    asyncio.run(run_server(_settings(load, options)))


def work(options: Options) -> None:
    """Run jobs beside the servers of a PostgreSQL database until SIGTERM or SIGINT; prints `working` when it does.

    Args:
        options: As `config.load_worker` takes them; variables come from the environment.

    Raises:
        StartError: A setting or the database cannot be used.
    """
    asyncio.run(run_worker(_settings(load_worker, options)))


def db_status(options: Options) -> databases.StoreStatus:
    """Say how a store stands.

    Args:
        options: As `config.load_store` takes them; variables come from the environment.

    Raises:
        StartError: A setting or the database cannot be used.
    """
    return asyncio.run(databases.status(_settings(load_store, options)))


def db_upgrade(options: Options) -> tuple[str | None, str | None]:
    """Bring the tables of a store up to date; return the version that they had and the one that they have.

    Raises:
        StartError: As `db_status`.
    """
    return asyncio.run(databases.upgrade(_settings(load_store, options)))


def db_check(options: Options) -> Findings:
    """Say whether a store and its lake agree.

    Raises:
        StartError: As `db_status`.
    """
    return asyncio.run(databases.check(_settings(load_store, options)))


def verify(receipt: Path) -> Verification:
    """Check a receipt against the files beside it, as `lake.data_files` does; no server is needed."""
    return verify_receipt(receipt)


def _settings(read: Callable[[Options, Mapping[str, str]], _Settings], options: Options) -> _Settings:
    try:
        settings = read(options, os.environ)
    except SettingsError as error:
        raise StartError(str(error)) from error
    configure_logs(settings.log_level)
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
    with suppress(OSError):  # what keeps the folder from being used is said by who uses it
        found = data_dir.stat()
        ours = found.st_uid == os.geteuid() and (data_dir / "lake").is_dir()
        if ours and found.st_mode & _OURS_ALONE:
            data_dir.chmod(stat.S_IMODE(found.st_mode) & ~_OURS_ALONE)
