"""A connection that can be cut."""

import asyncio
from typing import Self

from profile_export.client import Client, ClientError


class Line:
    """A connection to a server that can be cut: everything on it is lost, the next one may come at once.

    With `stall_after` no more than so many bytes get through to the server before the first cut; `stalled` says that
    the next ones are waiting.
    """

    def __init__(self, address: str, stall_after: int | None = None) -> None:
        host, port = address.rsplit(":", 1)
        self._far_end = (host, int(port))
        self._left = stall_after
        self.stalled = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

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

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.create_task(self._join(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._far_end)
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
