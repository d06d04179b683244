"""A tenant who makes one small call after the other, and says how long the slowest took.

    python -m tests.hostile.prober ADDRESS ORG DATASET_ID JOB_ID

It answers each line of its input, once it has begun and ended a round of calls since, with JSON: the longest that each
method took since the line before, in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from itertools import count

import grpc.aio

from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from tests.service.harness import Caller

PAUSE_SECONDS = 0.02
PATIENCE_SECONDS = 60


class Prober:
    """Makes two kinds of rounds beside one another: look-ups, and uploads of one row."""

    def __init__(self, caller: Caller, dataset_id: str, job_id: int) -> None:
        self._caller, self._dataset_id, self._job_id = caller, dataset_id, job_id
        self._slowest: dict[str, float] = {}
        self._rounds = [0, 0]
        self._round_over = asyncio.Condition()

    async def look_up(self) -> None:
        caller = self._caller
        while True:
            await self._timed(
                "GetJob",
                caller.exports.GetJob(es.GetJobRequest(job_id=self._job_id), metadata=caller.metadata),
            )
            await self._timed(
                "ListJobs", caller.exports.ListJobs(es.ListJobsRequest(), metadata=caller.metadata)
            )
            await self._timed(
                "GetDataset",
                caller.datasets.GetDataset(
                    ds.GetDatasetRequest(dataset_id=self._dataset_id), metadata=caller.metadata
                ),
            )
            await self._end_round(0)

    async def upload(self) -> None:
        for number in count():
            batch = f"p{number}"
            await self._timed("UploadBatch", self._caller.upload(self._dataset_id, batch, [{"crmId": batch}]))
            await self._end_round(1)

    async def told(self) -> str:
        """Wait for a round of each kind that begins from now on, and return what was slowest."""
        wanted = [number + 2 for number in self._rounds]
        async with self._round_over:
            await self._round_over.wait_for(
                lambda: all(number >= least for number, least in zip(self._rounds, wanted, strict=True))
            )
        slowest, self._slowest = self._slowest, {}
        return json.dumps({method: round(seconds * 1_000) for method, seconds in slowest.items()})

    async def _timed(self, method: str, call: Awaitable[object]) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await call
            took = time.monotonic() - begun
        except (TimeoutError, grpc.aio.AioRpcError):
            took = PATIENCE_SECONDS  # refused or without an answer: no better than late
        self._slowest[method] = max(took, self._slowest.get(method, 0.0))

    async def _end_round(self, kind: int) -> None:
        async with self._round_over:
            self._rounds[kind] += 1
            self._round_over.notify_all()
        await asyncio.sleep(PAUSE_SECONDS)


async def probe(address: str, org: str, dataset_id: str, job_id: str) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with grpc.aio.insecure_channel(address) as channel:
        prober = Prober(Caller(channel, org), dataset_id, int(job_id))
        rounds = [asyncio.create_task(prober.look_up()), asyncio.create_task(prober.upload())]
        while await lines.readline():
            print(await prober.told(), flush=True)  # noqa: T201 - as said
        for one in rounds:
            one.cancel()


if __name__ == "__main__":
    asyncio.run(probe(*sys.argv[1:]))
