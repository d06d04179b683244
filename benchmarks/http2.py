"""A gRPC client that costs next to nothing, so that what is measured is the server: frames are counted, not decoded.

It speaks as much of HTTP/2 as calls with small requests need. Whether a call went well is seen by its messages: the
status, in compressed headers, is not read.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_FRAME = struct.Struct("!HBBBI")  # the length in two parts
_PREFIX = struct.Struct("!BI")
# Windows as wide as they get: never a word about them again.
_WIDEST = 2**31 - 1
_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW = 65_535
_PATIENCE_SECONDS = 120
PER_CONNECTION = 100
"""As many streams go over one connection: more is unusual, and some servers do not take more."""


class CallFailedError(Exception):
    """A call ended without the messages that it should have brought."""


def _ignore(_stream: Stream) -> None:
    pass


class Stream:
    """A call that is under way."""

    __slots__ = ("_on_end", "_on_message", "_rest", "messages")

    def __init__(self, on_message: Callable[[Stream], None], on_end: Callable[[Stream], None]) -> None:
        self.messages: list[bytes] = []
        self._rest = b""
        self._on_message = on_message
        self._on_end = on_end

    def take(self, data: bytes) -> None:
        """Take what came; messages may be cut anywhere."""
        data = self._rest + data if self._rest else data
        while len(data) >= _PREFIX.size:
            _, size = _PREFIX.unpack_from(data)
            end = _PREFIX.size + size
            if len(data) < end:
                break
            self.messages.append(data[_PREFIX.size : end])
            data = data[end:]
            self._on_message(self)
        self._rest = data

    def end(self) -> None:
        """Take note that nothing more will come."""
        self._on_end(self)


class Connection(asyncio.Protocol):
    """A connection to a server."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        window = struct.pack("!HI", _INITIAL_WINDOW_SIZE, _WIDEST)
        more = struct.pack("!I", _WIDEST - _DEFAULT_WINDOW)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, window) + _frame(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives the signature
        """End what is under way."""
        for stream in self._streams.values():
            stream.end()
        self._streams.clear()

    def close(self) -> None:
        """Break off."""
        assert self._transport is not None
        self._transport.abort()

    def call(
        self,
        method: str,
        request: bytes,
        on_message: Callable[[Stream], None] = _ignore,
        on_end: Callable[[Stream], None] = _ignore,
    ) -> Stream:
        """Begin a call with one request."""
        number, self._next_id = self._next_id, self._next_id + 2
        stream = self._streams[number] = Stream(on_message, on_end)
        assert self._transport is not None
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, number, _headers(method, self._address))
            + _frame(_DATA, _END_STREAM, number, _PREFIX.pack(0, len(request)) + request)
        )
        return stream

    def data_received(self, data: bytes) -> None:
        """Take whole frames off what has come."""
        data = self._received + data if self._received else data
        at = 0
        while len(data) - at >= _FRAME.size:
            high, low, kind, flags, number = _FRAME.unpack_from(data, at)
            end = at + _FRAME.size + (high << 8) + low
            if len(data) < end:
                break
            self._take(kind, flags, number, data[at + _FRAME.size : end])
            at = end
        self._received = data[at:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA and number in self._streams:
            self._streams[number].take(payload)
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, b"" if kind == _SETTINGS else payload))
        elif kind == _GOAWAY:
            self._transport.close()
        ends = kind == _RESET or (kind in {_DATA, _HEADERS} and flags & _END_STREAM)
        if ends and number in self._streams:
            self._streams.pop(number).end()


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, number) + payload


def _headers(method: str, address: str) -> bytes:
    # POST and http stand in HPACK's table, as do the names of path and authority; the rest is spelled out.
    named = ((b"\x04", method), (b"\x01", address))
    spelled = (("te", "trailers"), ("content-type", "application/grpc"))
    return b"\x83\x86" + b"".join(
        [
            *(name + _text(value) for name, value in named),
            *(b"\x00" + _text(name) + _text(value) for name, value in spelled),
        ]
    )


def _text(value: str) -> bytes:
    assert len(value) < 127, "longer ones have a length of several bytes"
    return bytes([len(value)]) + value.encode()


class Caller:
    """Calls, over as many connections as they need."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    async def answer(self, method: str, request: bytes) -> bytes:
        """Return the answer of a call that has one.

        Raises:
            CallFailedError: It has none.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream = self._connections[0].call(method, request, on_end=lambda _: ended.set_result(None))
        await asyncio.wait_for(ended, _PATIENCE_SECONDS)
        if len(stream.messages) != 1:
            raise CallFailedError(f"{method} gave {len(stream.messages)} messages.")
        return stream.messages[0]

    def audience(self, method: str, request: bytes, size: int) -> Audience:
        """Begin so many calls that are answered with streams."""
        return Audience(self._connections, method, request, size)


class Audience:
    """Streams that are to get the same number of messages each."""

    def __init__(self, connections: Sequence[Connection], method: str, request: bytes, size: int) -> None:
        self._size = size
        self._having: Counter[int] = Counter()
        self._awaited = 0
        self._all_have: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.streams = [
            connections[number % len(connections)].call(method, request, self._message, self._end)
            for number in range(size)
        ]

    async def have(self, messages: int) -> float:
        """Wait until each stream has got so many messages; return when the last one had, by the wall clock.

        Raises:
            CallFailedError: A stream ended before.
        """
        if self._having[messages] == self._size:
            return time.time()
        self._awaited = messages
        self._all_have = asyncio.get_running_loop().create_future()
        return await asyncio.wait_for(self._all_have, _PATIENCE_SECONDS)

    def _message(self, stream: Stream) -> None:
        count = len(stream.messages)
        self._having[count] += 1
        if count == self._awaited and self._having[count] == self._size and not self._all_have.done():
            self._all_have.set_result(time.time())

    def _end(self, stream: Stream) -> None:
        if len(stream.messages) < self._awaited and not self._all_have.done():
            self._all_have.set_exception(CallFailedError(f"ended after {len(stream.messages)} messages."))


@asynccontextmanager
async def calling(address: str, streams: int = 1) -> AsyncIterator[Caller]:
    """Connect for so many streams at a time; what is under way at the end is broken off."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connections = []
    try:
        for _ in range(-(-streams // PER_CONNECTION)):
            _, connection = await loop.create_connection(lambda: Connection(address), host, int(port))
            connections.append(connection)
        yield Caller(connections)
    finally:
        for connection in connections:
            connection.close()
