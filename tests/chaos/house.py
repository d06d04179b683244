"""The house under fire: processes that are started, killed, stopped and started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from tests.chaos.points import Fuse
from tests.chaos.under_fire import be
from tests.system.terminal import environment

# A process for each start, but libraries are loaded once for all of them.
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(
    ["profile_export.__main__", "profile_export.app", "tests.system.terminal", "tests.chaos.under_fire"]
)
_START_SECONDS = 60
_PORTS = range(20_000, 30_000)
"""Below those that a system gives to connections: an address stays a server's while it is away."""


@dataclass
class Running:
    """One process, from its start to its end."""

    process: BaseProcess
    fuse: Fuse | None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    at_the_point: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    judged: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False
    hit: bool = False

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    @property
    def may_be_hit(self) -> bool:
        return self.ready.is_set() and not self.over.is_set() and not self.stopped

    def send(self, number: signal.Signals) -> None:
        if not self.over.is_set():
            os.kill(self.pid, number)


@dataclass
class Place:
    """A place in the house, which one process after the other takes: always with the same words."""

    name: str
    words: Sequence[str]
    folder: Path
    address: str = ""
    serves: bool = True
    works: bool = True
    running: Running | None = None
    variables: Mapping[str, str] = field(default_factory=environment)

    async def start(self, fuse: Fuse | None = None) -> Running:
        """Start a process, and wait until it is ready, or over before."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = _LOADED.Process(target=be, args=(self.words, self.variables, sender, self.folder, fuse))
        await asyncio.to_thread(process.start)
        sender.close()
        running = self.running = Running(process, fuse)
        told = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(os.dup(receiver.fileno()), "rb", 0)
        receiver.close()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), pipe)
        listening = asyncio.create_task(_listen(told, running))

        def ended() -> None:
            loop.remove_reader(process.sentinel)
            process.join()
            running.over.set()
            listening.cancel()
            transport.close()

        loop.add_reader(process.sentinel, ended)
        async with asyncio.timeout(_START_SECONDS):
            await first(running.ready, running.over)
        return running

    async def end(self) -> int | None:
        """Tell the process to stop, and return its exit code."""
        assert self.running
        self.running.send(signal.SIGTERM)
        await self.running.over.wait()
        return self.running.process.exitcode


async def _listen(told: asyncio.StreamReader, running: Running) -> None:
    while line := await told.readline():
        if line.startswith(b"reached "):
            running.at_the_point.set()
        else:
            running.ready.set()


async def first(*events: asyncio.Event) -> None:
    """Wait until one of these has happened."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def free_address(random: Random) -> str:
    """Choose an address that nobody listens on."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return f"127.0.0.1:{port}"
