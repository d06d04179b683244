"""A server under attack, as those see it who stand outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from tests.watch.processes import Running, running

# What a test compares has to reach it, however large an answer is.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True)
class Size:
    """What a server holds; `bytes` without its children."""

    bytes: int
    files: int
    threads: int
    children: int
    tasks: int


@dataclass(frozen=True)
class Lag:
    """How late a loop was at the most, and how long its process had a processor meanwhile, in milliseconds."""

    late: int
    busy: int


class Attacked:
    """A server of its own process."""

    def __init__(self, server: Running, address: str, data_dir: Path, log: Path) -> None:
        self._server = server
        self._asking = asyncio.Lock()
        self.address, self.data_dir, self._log = address, data_dir, log

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as opened:
            yield opened

    async def lag(self) -> Lag:
        """Return how late its loop was since this was asked last."""
        late, busy = (await self._ask("lag")).split()
        return Lag(int(late), int(busy))

    async def size(self) -> Size:
        return Size(**json.loads(await self._ask("size")))

    async def hold(self) -> None:
        """Let the next attempt wait before its first range."""
        await self._ask("hold")

    async def go_on(self) -> None:
        """Let the attempt that waits go on."""
        await self._ask("go on")

    def errors(self) -> list[str]:
        """Return what its log says of faults that are its own."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if not line.startswith("{") or _is_own_fault(json.loads(line))]

    async def _ask(self, what: str) -> str:
        async with self._asking:
            await self._server.tell(what)
            return await self._server.said()


def _is_own_fault(line: dict[str, object]) -> bool:
    return line.get("level") in {"error", "critical"} or line.get("code") in {"INTERNAL", "UNKNOWN"}


@asynccontextmanager
async def attacked(folder: Path, *database_url: str) -> AsyncIterator[Attacked]:
    """Run a server over a folder, and perhaps a PostgreSQL database; it has to end in order."""
    data_dir, log = folder / "data", folder / "log"
    words = ("tests.hostile.attacked_server", str(data_dir), *database_url)
    async with running(*words, log=log) as server:
        address = (await server.said()).removeprefix("listening on ")
        yield Attacked(server, address, data_dir, log)
    assert server.code == 0, log.read_text()[-5_000:]
