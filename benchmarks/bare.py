"""The least that a gRPC server in Python can do: serialised bytes, written as they are. Run as a process of its own."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from sqlalchemy import select

from benchmarks.program import Program, program
from profile_export.store.db.database import Database
from profile_export.store.db.tables import jobs
from profile_export.store.jobs.jobs import JOB_COLUMNS

WATCH, MOVE, REPLAY, GET = "/bare/Watch", "/bare/Move", "/bare/Replay", "/bare/Get"
_KEY = struct.Struct("!q")
_SIZE = struct.Struct("!I")
# As ours has them: thousands may come at once.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.server_max_unrequested_time_in_server", 600),
)


@dataclass(frozen=True)
class Bare(Program):
    """A running one; what it shall stream goes through files in its folder."""

    address: str
    folder: Path


@asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[Bare]:
    """Run one beside the data directory of a server of ours."""
    command = (sys.executable, "-m", "benchmarks.bare", str(folder / "data"))
    async with program(command, folder / "bare.log") as process:
        yield Bare(process.process, process.log, await process.line(), folder)


def get_request(job_id: int, answer: bytes) -> bytes:
    """Return a request of GET: the key to read by, and what to answer then."""
    return _KEY.pack(job_id) + answer


def replay_request(other: Bare, messages: Iterable[bytes]) -> bytes:
    """Write down the messages that REPLAY shall stream; return its request."""
    path = other.folder / "replay"
    path.write_bytes(b"".join(_SIZE.pack(len(message)) + message for message in messages))
    return str(path).encode()


class _Servicer:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._moved = asyncio.Event()
        self._message = b""
        self._replays: dict[bytes, list[bytes]] = {}

    async def watch(self, request: bytes, context: Any) -> None:
        """Give the request back, and when the move comes its message, and end."""
        moved = self._moved
        await context.write(request)
        await moved.wait()
        await context.write(self._message)

    async def move(self, request: bytes, _context: Any) -> bytes:
        """Let all who watch have this message."""
        self._message = request
        self._moved.set()
        self._moved = asyncio.Event()
        return request

    async def replay(self, request: bytes, context: Any) -> None:
        """Write what a file holds, read before."""
        for message in self._replay_of(request):
            await context.write(message)

    def _replay_of(self, request: bytes) -> list[bytes]:
        if request not in self._replays:
            self._replays[request] = list(_messages(Path(request.decode()).read_bytes()))
        return self._replays[request]

    async def get(self, request: bytes, _context: Any) -> bytes:
        """Read a job's row, and answer what was asked for."""
        (key,) = _KEY.unpack_from(request)
        async with self._database.read() as connection:
            row = (await connection.execute(select(*JOB_COLUMNS).where(jobs.c.id == key))).one()
        assert row.id == key
        return request[_KEY.size :]

    def methods(self) -> dict[str, Any]:
        """Return the handlers by name."""
        return {
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "Move": grpc.unary_unary_rpc_method_handler(self.move),
            "Replay": grpc.unary_stream_rpc_method_handler(self.replay),
            "Get": grpc.unary_unary_rpc_method_handler(self.get),
        }


def _messages(data: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(data):
        (size,) = _SIZE.unpack_from(data, at)
        at += _SIZE.size + size
        yield data[at - size : at]


async def _serve(data_dir: Path) -> None:
    # Not opened: the server of ours has the directory, this one only reads beside it.
    database = Database(data_dir)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare", _Servicer(database).methods()),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
