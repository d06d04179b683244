"""The composition roots: they make every room, wire them, and run them as a server or a worker; nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from profile_export.api.logs import configure_logs
from profile_export.app.processes import StartError
from profile_export.app.server import Application, run_server
from profile_export.app.worker import run_worker
from profile_export.config import Options, SettingsError, WorkSettings, load, load_worker
from profile_export.domain.verification import Verification
from profile_export.lake import verification

__all__ = ["Application", "StartError", "serve", "verify", "work"]

_Settings = TypeVar("_Settings", bound=WorkSettings)


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


def verify(receipt: Path) -> Verification:
    """Check a receipt against the files beside it, as `lake.verification` does; no server is needed."""
    return verification.verify(receipt)


def _settings(read: Callable[[Options, Mapping[str, str]], _Settings], options: Options) -> _Settings:
    try:
        settings = read(options, os.environ)
    except SettingsError as error:
        raise StartError(str(error)) from error
    configure_logs(settings.log_level)
    return settings
