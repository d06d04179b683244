"""A real server in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.program import Program, program


@dataclass(frozen=True)
class Server(Program):
    """A running server."""

    address: str
    data_dir: Path

    def cpu_seconds(self) -> float:
        """Return the processor time that the server and its children have used so far."""
        return sum(_cpu_seconds(number) for number in (self.process.pid, *_children(self.process.pid)))


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _cpu_seconds(process: int) -> float:
    # Behind the command's name in brackets, which may hold anything: user and system time, in ticks.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running(
    folder: Path, threads: int, memory_limit_mb: int | None = None, *options: str
) -> AsyncIterator[Server]:
    """Run a server with its data in a folder."""
    command = ("serve", "--grpc-address", "127.0.0.1:0", *options)
    async with _started(command, folder, folder / "server.log", threads, memory_limit_mb) as (server, line):
        yield Server(server.process, server.log, line.removeprefix("listening on "), folder / "data")


@asynccontextmanager
async def working(folder: Path, threads: int, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker beside the servers of a folder and a database."""
    command = ("worker", "--database-url", url)
    async with _started(command, folder, folder / "worker.log", threads, None) as (worker, _):
        yield worker.process


@asynccontextmanager
async def _started(
    command: Sequence[str], folder: Path, log: Path, threads: int, memory_limit_mb: int | None
) -> AsyncIterator[tuple[Program, str]]:
    """Start a process of the product, and give what it says when it is ready."""
    settings = {
        "PROFILE_EXPORT_DATA_DIR": str(folder / "data"),
        "PROFILE_EXPORT_THREADS": str(threads),
        "PROFILE_EXPORT_LOG_LEVEL": "warning",
    }
    if memory_limit_mb is not None:
        settings["PROFILE_EXPORT_MEMORY_LIMIT_MB"] = str(memory_limit_mb)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")}
    async with program((sys.executable, "-m", "profile_export", *command), log, kept | settings) as process:
        yield process, await process.line()
