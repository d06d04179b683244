"""Clients that hang up are nobody's fault: a line at `debug`, no error and no stack trace, whatever they were at."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc.aio
import pytest
from structlog.testing import capture_logs

from profile_export.app import Application
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from tests.service.harness import CHUNK, Caller, json_lines, upload_messages

ROWS = [{"id": f"{number}", "note": f"{number}" * 200} for number in range(2_000)]


@dataclass
class Cable:
    """A connection through which a client talks to the server, and that can be cut."""

    channel: grpc.aio.Channel
    ends: list[asyncio.StreamWriter] = field(default_factory=list)

    def cut(self) -> None:
        """Break the connection off with a RST, as a client does that is killed."""
        for end in self.ends:
            if end.transport.is_closing():
                continue
            end.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            end.transport.abort()


@asynccontextmanager
async def cable_to(port: int) -> AsyncIterator[Cable]:
    pumps: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(65_536):
                target.write(piece)
                await target.drain()

    async def connect(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        cable.ends += [to_server, to_client]
        pumps.extend(
            asyncio.create_task(pump(*pair)) for pair in ((from_client, to_server), (from_server, to_client))
        )

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as relay:
        address = f"127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
            cable = Cable(channel)
            yield cable
            cable.cut()
            await asyncio.gather(*pumps, return_exceptions=True)


async def unary(caller: Caller, _source: str) -> grpc.aio.Call:
    """A call that takes its time: a batch that is completed."""
    request = ds.CompleteBatchRequest(batch_id="several")
    call = caller.datasets.CompleteBatch(request, metadata=caller.metadata)
    await call.wait_for_connection()
    return call


async def upload(caller: Caller, source: str) -> grpc.aio.Call:
    call = caller.datasets.UploadBatch(metadata=caller.metadata)
    start, *_ = upload_messages(source, "half", b"")
    await call.write(start)
    await call.write(ds.UploadBatchRequest(data=b"x" * CHUNK))
    return call


async def upload_at_its_end(caller: Caller, source: str) -> grpc.aio.Call:
    call = caller.datasets.UploadBatch(metadata=caller.metadata)
    for message in upload_messages(source, "whole", json_lines(ROWS)):
        await call.write(message)
    return call


async def watch(caller: Caller, _source: str) -> grpc.aio.Call:
    call = caller.exports.WatchJobs(es.WatchJobsRequest(), metadata=caller.metadata)
    await call.read()
    return call


async def download(caller: Caller, _source: str) -> grpc.aio.Call:
    """A file of which the first bytes were read."""
    [file] = await caller.files("there")
    request = ds.ReadBatchFileRequest(batch_id="there", file_name=file.name)
    call = caller.datasets.ReadBatchFile(request, metadata=caller.metadata)
    await call.read()
    return call


@pytest.mark.parametrize(
    ("begin", "method"),
    [
        (unary, "CompleteBatch"),
        (upload, "UploadBatch"),
        (upload_at_its_end, "UploadBatch"),
        (watch, "WatchJobs"),
        (download, "ReadBatchFile"),
    ],
)
@pytest.mark.parametrize("how", ["cut", "cancel"])
async def test_a_client_that_hangs_up_is_no_error(
    application: Application,
    caller: Caller,
    caplog: pytest.LogCaptureFixture,
    begin: Callable[[Caller, str], Awaitable[grpc.aio.Call]],
    method: str,
    how: str,
) -> None:
    source = await caller.dataset("record", {"id": "Test"})
    await caller.upload(source, "there", ROWS)
    if begin is unary:
        await caller.create_batch(source, "several")
        for name in ("2", "1"):
            await caller.send(source, "several", json_lines(ROWS), file_name=name)

    with capture_logs() as said:
        async with cable_to(application.port) as cable:
            gone = Caller(cable.channel, "org")
            gone.metadata = caller.metadata
            call = await begin(gone, source)
            if how == "cut":
                cable.cut()
            else:
                call.cancel()
            await until_ended(said, method)

    assert [line for line in said if line["log_level"] not in {"debug", "info"}] == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert (await caller.batch("there")).rows == len(ROWS)


async def until_ended(said: Sequence[Mapping[str, object]], method: str) -> None:
    """Wait until the server is done with the call: a short one may have come to its end."""
    async with asyncio.timeout(30):
        while not any(str(line.get("method")).endswith(method) for line in said):  # noqa: ASYNC110 - a list of lines
            await asyncio.sleep(0.01)
