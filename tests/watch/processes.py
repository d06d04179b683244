"""Processes that talk by lines: servers, and clients beyond counting."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from tests.system.terminal import environment

ROOT = Path(__file__).parents[2]


class Running:
    """A process: it is told lines, and says lines."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def tell(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{line}\n".encode())
        await stdin.drain()

    async def said(self) -> str:
        """Return the next line that it says."""
        stdout = self._process.stdout
        assert stdout is not None
        line = (await stdout.readline()).decode().strip()
        assert line, "it has ended"
        return line

    async def stop(self) -> int:
        """Tell it to stop, and return its exit code once it has."""
        if self._process.returncode is None:
            self._process.terminate()
        return await self._process.wait()

    @property
    def code(self) -> int | None:
        """How it has ended; None if it has not."""
        return self._process.returncode

    @property
    def resident_bytes(self) -> int:
        """The memory that it holds, without its children."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def running(*words: str, log: Path | None = None) -> AsyncIterator[Running]:
    """Run a Python module with its arguments; with a log, what it writes to stderr goes there."""
    with log.open("ab") if log else nullcontext() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *words, stdin=PIPE, stdout=PIPE, stderr=errors, cwd=ROOT, env=environment()
        )
    one = Running(process)
    try:
        yield one
    finally:
        await one.stop()


@asynccontextmanager
async def serving(data_dir: Path, *options: str) -> AsyncIterator[tuple[Running, str]]:
    """Run our server, without workers and without a word on every call; give its address as well."""
    where = ("--data-dir", str(data_dir), "--grpc-address", "127.0.0.1:0")
    how = ("--workers", "0", "--log-level", "error")
    async with running("profile_export", "serve", *where, *how, *options) as server:
        yield server, (await server.said()).removeprefix("listening on ")
