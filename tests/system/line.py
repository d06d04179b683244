"""A connection that can be cut."""

import asyncio
from pathlib import Path
from typing import Self

from profile_export.client import Client, ClientError


class Line:
    """A connection to a server that can be cut: everything on it is lost, the next one may come at once.

    With `stall_after` no more than so many bytes get through to the server before the first cut; `stalled` says that
    the next ones are waiting.

    Args:
        address: HOST:PORT, or the path of a socket.
        stall_after: As said.
    """

    def __init__(self, address: str | Path, stall_after: int | None = None) -> None:
        self._far_end = address
        self._left = stall_after
        self._is_down = False
        self.stalled = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._count = 0
        self._another = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def cut(self) -> None:
        self._left = None
        for call in self._calls:
            call.cancel()

    async def accepted(self, number: int) -> None:
        """Return when so many connections have come, lost ones included."""
        async with self._another:
            await self._another.wait_for(lambda: self._count >= number)

    def lead_to(self, address: str) -> None:
        """Lead the next connections to another server."""
        self._far_end = address

    def go_down(self) -> None:
        """Cut, and let nobody through until it is up again."""
        self._is_down = True
        self.cut()

    def come_up(self) -> None:
        self._is_down = False

    async def _reach_far_end(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._is_down:
            raise ConnectionRefusedError
        if isinstance(self._far_end, Path):
            return await asyncio.open_unix_connection(self._far_end)
        host, port = self._far_end.rsplit(":", 1)
        return await asyncio.open_connection(host, int(port))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.create_task(self._join(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        # Here and not only where the call ends: one that is cut off at once never begins.
        call.add_done_callback(lambda _: writer.transport.abort())

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._another:
            self._count += 1
            self._another.notify_all()
        ends = [writer]
        try:
            far_reader, far_writer = await self._reach_far_end()
            ends.append(far_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._copy(reader, far_writer, upwards=True))
                ways.create_task(self._copy(far_reader, writer, upwards=False))
        except* ConnectionError:
            pass  # an end hung up, or is not there
        finally:
            for end in ends:
                end.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        while data := await reader.read(65_536):
            if upwards and self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    self.stalled.set()
                    await asyncio.Event().wait()  # until the cut
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


async def received(client: Client, batch_id: str) -> int:
    try:
        return sum(upload.received_bytes for upload in (await client.get_batch(batch_id)).uploads)
    except ClientError as error:
        if error.reason != "BATCH_NOT_FOUND":
            raise
        return 0
