"""The servers of a scenario: one after the other over a data directory, or several at once over PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from profile_export.app import Application
from profile_export.config import load
from tests.service.conftest import settings_for
from tests.service.harness import Caller
from tests.watch.history import Drain
from tests.watch.scripted import ScriptedEngine, Scripts

SERVICE = "profile_export.v1.ExportService"


class Servers:
    """Servers by name, those that are up; one that has stopped comes back under another name, on another port."""

    def __init__(self, data_dir: Path, database_url: str | None, scripts: Scripts, org: str) -> None:
        self._settings = {**settings_for(data_dir), "database_url": database_url}
        self._scripts, self._org = scripts, org
        self._applications: dict[str, Application] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._changed = asyncio.Condition()

    async def start(self, name: str, workers: int) -> None:
        settings = load({**self._settings, "workers": str(workers)}, {})
        application = Application(settings, ScriptedEngine(name, self._scripts))
        await application.start()
        self._channels[name] = grpc.aio.insecure_channel(f"127.0.0.1:{application.port}")
        async with self._changed:
            self._applications[name] = application
            self._changed.notify_all()

    def caller(self, name: str) -> Caller:
        return Caller(self._channels[name], self._org)

    @property
    def names(self) -> list[str]:
        return list(self._applications)

    async def pick(self, dice: random.Random, but_not: str) -> tuple[str, str]:
        """Return name and address of a server, other than the one that has just said that it stops."""
        async with self._changed:
            await self._changed.wait_for(lambda: set(self._applications) - {but_not})
            name = dice.choice(sorted(set(self._applications) - {but_not}))
            return name, f"127.0.0.1:{self._applications[name].port}"

    async def drain(self, name: str) -> Drain:
        """Stop a server, with an eye on its health."""
        health = health_pb2_grpc.HealthStub(self._channels[name]).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        await health.read()
        not_serving = asyncio.create_task(_not_serving(health.read))
        asked = time.time()
        await self._applications[name].stop()
        stopped, said = time.time(), await not_serving
        async with self._changed:
            del self._applications[name]
        await self._channels.pop(name).close()
        begun = sum(server == name and at > said for server, at in self._scripts.begun)
        return Drain(name, asked, said, stopped, begun)

    async def stop(self) -> None:
        """Stop all that are up."""
        for channel in self._channels.values():
            await channel.close()
        for application in self._applications.values():
            await application.stop()


async def _not_serving(read: Callable[[], Awaitable[health_pb2.HealthCheckResponse]]) -> float:
    """Return when a server said that it does not serve; never, if it ended without a word."""
    with suppress(grpc.aio.AioRpcError):
        while True:
            answer = await read()
            if answer is grpc.aio.EOF:
                break
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return time.time()
    return float("inf")
