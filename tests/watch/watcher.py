"""A client of WatchJob over raw gRPC that writes down what it sees, and loses its connection again and again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from profile_export.v1 import export_service_pb2 as es
from tests.system.line import Line
from tests.watch.history import Connection, Ended, History, Received
from tests.watch.servers import Servers

METHOD = "/profile_export.v1.ExportService/WatchJob"
# Much longer than any scenario: whatever comes did not come with a heartbeat.
HEARTBEAT = Duration(seconds=60)
Call: TypeAlias = "grpc.aio.UnaryStreamCall[es.WatchJobRequest, bytes]"


async def at_once() -> None:
    """Do not wait before a message is read."""


@dataclass(frozen=True)
class Habits:
    """How a watcher behaves.

    Its first connections, `unrest` of them at most, live for a random time of `mean_life` seconds on average, and end
    with the call or with a cut line. It awaits `pace` before every message that it reads.
    """

    start: int | None = None
    unrest: int = 0
    mean_life: float = 0.15
    hops: bool = False
    is_slow: bool = False
    pace: Callable[[], Awaitable[None]] = at_once
    progress_seconds: int = 0
    options: Sequence[tuple[str, int]] = ()


class Watcher:
    """Watches one job to its end, from one server to the next.

    `is_answered` is set when a server has begun to answer, `has_begun` when something has been read.
    """

    def __init__(self, name: str, job_id: int, servers: Servers, habits: Habits, seed: int, org: str) -> None:
        self.history = History(name, job_id, habits.hops, float("inf") if habits.is_slow else 0.0)
        self.is_answered, self.has_begun = asyncio.Event(), asyncio.Event()
        self._servers, self._habits = servers, habits
        self._dice = random.Random(f"{seed} {name}")
        self._metadata = (("x-gw-ims-org-id", org),)
        self._avoided = ""

    @property
    def paced_by(self) -> Callable[[], Awaitable[None]]:
        return self._habits.pace

    async def run(self) -> History:
        """Watch until the server has said that nothing more will come."""
        while not self.history.is_over:
            server, address = await self._servers.pick(self._dice, but_not=self._avoided)
            connection = Connection(len(self.history.connections), server, self._place(), opened=time.time())
            self.history.connections.append(connection)
            await self._connect(connection, address)
            ended = connection.ended
            stops = ended is not None and ended.code == "UNAVAILABLE" and not ended.hung_up
            self._avoided = server if stops else ""
        self.has_begun.set()
        return self.history

    def _place(self) -> int | None:
        """Return where the next connection is to begin."""
        known = self.history.revision
        if known is None:
            return self._habits.start
        return self._dice.choice([None, *range(known + 1)]) if self._habits.hops else known

    async def _connect(self, connection: Connection, address: str) -> None:
        life = None
        if connection.number < self._habits.unrest:
            life = self._dice.expovariate(1 / self._habits.mean_life)
        if life is not None and self._dice.random() < 0.5:
            async with Line(address) as line:
                cut = asyncio.get_running_loop().call_later(life, line.cut)
                await self._listen(connection, line.address, None, cut)
                cut.cancel()
        else:
            await self._listen(connection, address, life, None)

    async def _listen(
        self, connection: Connection, address: str, life: float | None, cut: asyncio.TimerHandle | None
    ) -> None:
        try:
            async with _call(
                address, self._request(connection), self._metadata, self._habits.options
            ) as call:
                async with asyncio.timeout(life):
                    await self._read_all(connection, call)
                code = (await call.code()).name
            connection.ended = Ended(time.time(), code)
        except asyncio.CancelledError:
            connection.ended = Ended(time.time(), "CANCELLED", hung_up=True)
            raise
        except TimeoutError:
            connection.ended = Ended(time.time(), "CANCELLED", hung_up=True)
        except grpc.aio.AioRpcError as error:
            hung_up = cut is not None and cut.when() <= asyncio.get_running_loop().time()
            connection.ended = Ended.of(time.time(), error, hung_up=hung_up)

    async def _read_all(
        self, connection: Connection, call: grpc.aio.UnaryStreamCall[es.WatchJobRequest, bytes]
    ) -> None:
        await call.initial_metadata()
        self.is_answered.set()
        while True:
            await self._habits.pace()
            raw = await call.read()
            if not isinstance(raw, bytes):
                return
            connection.messages.append(Received.of(time.time(), raw))
            self.has_begun.set()

    def _request(self, connection: Connection) -> es.WatchJobRequest:
        return es.WatchJobRequest(
            job_id=self.history.job_id,
            after_revision=connection.after_revision,
            heartbeat_interval=HEARTBEAT,
            min_progress_interval=Duration(seconds=self._habits.progress_seconds),
        )


@asynccontextmanager
async def _call(
    address: str,
    request: es.WatchJobRequest,
    metadata: Sequence[tuple[str, str]],
    options: Sequence[tuple[str, int]],
) -> AsyncIterator[Call]:
    """Call on a connection of its own, as a client elsewhere would; messages come as the bytes that they are."""
    own = (("grpc.use_local_subchannel_pool", 1), *options)
    async with AsyncExitStack() as leaving:
        channel = await leaving.enter_async_context(grpc.aio.insecure_channel(address, own))
        method: Any = channel.unary_stream(
            METHOD, request_serializer=es.WatchJobRequest.SerializeToString, response_deserializer=None
        )
        call = method(request, metadata=metadata)
        leaving.callback(call.cancel)
        yield call
