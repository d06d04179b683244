"""Tenants with tiny jobs: one of them a crowd, which is a process of its own as other people's clients are."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller, json_lines, upload_messages

ROWS = [{"id": f"p{number}"} for number in range(20)]
SLOW_DATA = json_lines({"id": f"slow{number}"} for number in range(20_000))
BUSY = "busy"
"""What a crowd's process says on a line once its jobs wait and its uploads trickle; it goes on until it is ended."""


@dataclass
class Exporter:
    """A tenant with a source and a destination for tiny jobs."""

    caller: Caller
    source: str
    destination: str

    @classmethod
    async def of(cls, caller: Caller) -> Exporter:
        source = await caller.dataset("record", {"id": "CRM"})
        await caller.upload(source, "b", ROWS)
        return cls(caller, source, await caller.dataset("union"))

    async def export(self) -> float:
        """Run a tiny job to its end; return how many seconds that took."""
        began = time.perf_counter()
        await self.caller.export(self.destination)
        return time.perf_counter() - began


@asynccontextmanager
async def exporter(address: str, org: str) -> AsyncIterator[Exporter]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield await Exporter.of(Caller(channel, org))


async def crowd(address: str, jobs: int, uploads: int) -> None:
    """Let jobs wait and uploads trickle, a few bytes with each of them about once a second, for good."""
    async with exporter(address, "crowd") as tenant:
        await asyncio.gather(*(tenant.caller.job(tenant.destination) for _ in range(jobs)))
        calls = [tenant.caller.datasets.UploadBatch(metadata=tenant.caller.metadata) for _ in range(uploads)]
        for number, call in enumerate(calls):
            await call.write(upload_messages(tenant.source, f"slow{number}", SLOW_DATA)[0])
        for number in range(uploads):
            await until_begun(tenant.caller, f"slow{number}")
        print(BUSY, flush=True)  # noqa: T201 - what the test waits for
        at = 0
        while True:
            for call in calls:
                await call.write(ds.UploadBatchRequest(data=SLOW_DATA[at : at + 10]))
                await asyncio.sleep(1 / len(calls))  # what makes them slow
            at += 10


async def until_begun(caller: Caller, batch_id: str) -> None:
    while True:
        try:
            await caller.batch(batch_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        else:
            return


if __name__ == "__main__":
    asyncio.run(crowd(sys.argv[1], *map(int, sys.argv[2:])))
