"""A tenant with more jobs and uploads than a server can do at once, and another with a tiny job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.service.harness import Caller, json_lines, upload_messages

ROWS = [{"id": f"p{number}"} for number in range(20)]
SLOW_DATA = json_lines({"id": f"slow{number}"} for number in range(20_000))


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

    async def cancel_all(self) -> None:
        for job in await self._jobs():
            request = es.CancelJobRequest(job_id=job.id)
            try:
                await self.caller.exports.CancelJob(request, metadata=self.caller.metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise

    async def _jobs(self) -> list[job_pb2.ExportJob]:
        request = es.ListJobsRequest(page_size=1_000)
        return list((await self.caller.exports.ListJobs(request, metadata=self.caller.metadata)).jobs)


@asynccontextmanager
async def busy(tenant: Exporter, jobs: int, uploads: int) -> AsyncIterator[None]:
    """Keep a tenant's jobs waiting and its uploads trickling while the block runs."""
    await asyncio.gather(*(tenant.caller.job(tenant.destination) for _ in range(jobs)))
    calls = [tenant.caller.datasets.UploadBatch(metadata=tenant.caller.metadata) for _ in range(uploads)]
    for number, call in enumerate(calls):
        await call.write(upload_messages(tenant.source, f"slow{number}", SLOW_DATA)[0])
    trickling = asyncio.create_task(_trickle(calls))
    try:
        yield
    finally:
        trickling.cancel()
        for call in calls:
            call.cancel()
        await tenant.cancel_all()


async def _trickle(
    calls: list[grpc.aio.StreamUnaryCall[ds.UploadBatchRequest, ds.UploadBatchResponse]],
) -> None:
    """Send a few bytes with each call in turn, all of them about once a second."""
    at = 0
    while True:
        for call in calls:
            await call.write(ds.UploadBatchRequest(data=SLOW_DATA[at : at + 10]))
            await asyncio.sleep(1 / len(calls))  # what makes them slow
        at += 10
