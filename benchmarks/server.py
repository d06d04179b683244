"""A real server in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_STOP_SECONDS = 20


class ServerDiedError(Exception):
    """The server is gone, or never came."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    address: str
    process: asyncio.subprocess.Process
    log: Path
    data_dir: Path

    def check(self) -> None:
        """Raise ServerDiedError if it is gone."""
        if self.process.returncode is not None:
            raise ServerDiedError(f"ended with {self.process.returncode}:\n{_last_words(self.log)}")

    def peak_bytes(self) -> int:
        """Return the most memory that the server's own process has held."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

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
    log = folder / "server.log"
    command = ("serve", "--grpc-address", "127.0.0.1:0", *options)
    async with _started(command, folder, log, threads, memory_limit_mb) as (process, line):
        yield Server(line.removeprefix("listening on "), process, log, folder / "data")


@asynccontextmanager
async def working(folder: Path, threads: int, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker beside the servers of a folder and a database."""
    command = ("worker", "--database-url", url)
    async with _started(command, folder, folder / "worker.log", threads, None) as (process, _):
        yield process


@asynccontextmanager
async def _started(
    command: Sequence[str], folder: Path, log: Path, threads: int, memory_limit_mb: int | None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a process of the product, and give what it says when it is ready."""
    settings = {
        "PROFILE_EXPORT_DATA_DIR": str(folder / "data"),
        "PROFILE_EXPORT_THREADS": str(threads),
        "PROFILE_EXPORT_LOG_LEVEL": "warning",
    }
    if memory_limit_mb is not None:
        settings["PROFILE_EXPORT_MEMORY_LIMIT_MB"] = str(memory_limit_mb)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")}
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "profile_export",
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=kept | settings,
        )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().strip()
        if not line:
            raise ServerDiedError(f"did not start:\n{_last_words(log)}")
        yield process, line
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
