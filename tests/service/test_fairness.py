"""One tenant's queue and slow uploads cost another tenant's job no more than the one job that runs just now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import grpc.aio
import pytest

from profile_export.api.call_turns import MOST_AT_ONCE
from profile_export.v1 import dataset_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from tests.service.harness import SCHEMAS, Caller, json_lines, upload_messages

MOST_JOBS_WAITED_FOR = 1.5
"""The one that runs when it comes, and what around it is not work."""
SCHEMA = dataset_pb2.SchemaRef(id=SCHEMAS["record"])
ROWS = [{"id": f"p{number}"} for number in range(20)]
SLOW_DATA = json_lines({"id": f"slow{number}"} for number in range(20_000))


@dataclass(frozen=True)
class Took:
    """How many seconds a job took: in all from its creation on, of them in the queue, and at work."""

    all: float
    queue: float
    work: float


def _queue_and_work(job: job_pb2.ExportJob) -> tuple[float, float]:
    phases = {one.phase: one.time.ToTimedelta().total_seconds() for one in job.metrics.phases}
    queue = phases.pop(job_pb2.JOB_PHASE_QUEUE)
    return queue, sum(phases.values())


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

    async def export(self) -> Took:
        """Run a tiny job to its end."""
        began = time.perf_counter()
        job = await self.caller.export(self.destination)
        return Took(time.perf_counter() - began, *_queue_and_work(job))

    async def ended(self) -> int:
        """Count the jobs that have run."""
        return len(await self.works())

    async def works(self) -> list[float]:
        """Return for how many seconds each job that has run was worked on."""
        return [
            _queue_and_work(job)[1] for job in await self._jobs() if job.state == job_pb2.JOB_STATE_SUCCEEDED
        ]

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


async def test_of_a_tenant_with_many_jobs_waiting_one_runs_before_anothers(
    caller: Caller, stranger: Caller
) -> None:
    crowd, other = await Exporter.of(caller), await Exporter.of(stranger)

    async with busy(crowd, jobs=40, uploads=10):
        for _ in range(3):
            before = await crowd.ended()
            await other.export()
            between = await crowd.ended() - before

            # The one that ran when it came, and one that ended or was begun around the two looks.
            assert between <= 3


@pytest.mark.slow
@pytest.mark.timeout(600)  # six hundred jobs, where the machine is busy
async def test_a_tiny_job_beside_two_hundred_and_a_hundred_slow_uploads_waits_for_one_job(
    caller: Caller, stranger: Caller
) -> None:
    crowd, other = await Exporter.of(caller), await Exporter.of(stranger)
    await other.export()
    waits = []
    # The machine may be busy with other things: the best of a few tries counts.
    for _ in range(3):
        alone = median([(await other.export()).all for _ in range(5)])
        async with busy(crowd, jobs=200, uploads=100):
            beside = [await other.export() for _ in range(5)]
            work = median(await crowd.works())
        took, queue = median(one.all for one in beside), median(one.queue for one in beside)
        waits.append(queue / work)
        print(  # noqa: T201 - the figures
            f"alone {alone * 1000:.0f} ms, beside {took * 1000:.0f} ms, {took / alone:.2f} times as long; of them "
            f"{queue * 1000:.0f} ms in the queue, while each job of the others takes {work * 1000:.0f} ms"
        )
        if waits[-1] <= MOST_JOBS_WAITED_FOR:
            break

    assert min(waits) <= MOST_JOBS_WAITED_FOR


async def test_a_burst_of_calls_keeps_no_call_of_another_tenant_behind_all_of_it(
    caller: Caller, stranger: Caller
) -> None:
    async def calls_of(tenant: Caller, name: str) -> str:
        request = ds.CreateDatasetRequest(name=name, schema_ref=SCHEMA)
        return (await tenant.datasets.CreateDataset(request, metadata=tenant.metadata)).dataset.name

    burst = [asyncio.create_task(calls_of(caller, f"burst {number}")) for number in range(120)]
    await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
    await calls_of(stranger, "one")
    answered = sum(call.done() for call in burst)
    await asyncio.gather(*burst)

    # Those that had a place stood before it in the queue, and as many may have got one until it was answered.
    assert answered <= 4 * MOST_AT_ONCE
