"""A cancel of a running job: how soon the engine stops, what is seen and left of the job, and who asked for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from tests.service.engines import Gate, go_on
from tests.service.harness import Caller
from tests.service.test_disks import Server, serving

PROMISED_SECONDS = 2
BIG_TEXTS = 40_000
"""They take one thread several seconds, in a few ranges."""


async def cancel(caller: Caller, job_id: int, reason: str = "") -> job_pb2.ExportJob:
    request = es.CancelJobRequest(job_id=job_id, reason=reason)
    return (await caller.exports.CancelJob(request, metadata=caller.metadata)).job


async def gone(processes: Sequence[int]) -> None:
    """Wait until processes have ended."""
    loop = asyncio.get_running_loop()
    for process in processes:
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def check_that_a_cancel_stops(server: Server, job_id: int) -> None:
    """Cancel a running job: its engine has stopped soon, nothing is visible or left, and the job says who and when."""
    engines = server.engine.engine.children
    asked = time.monotonic()
    before = datetime.now(UTC)

    told = await cancel(server.caller, job_id, "changed my mind")
    await gone(engines)
    stopped = time.monotonic() - asked
    ended = await server.caller.finished(job_id)

    assert told.state == job_pb2.JOB_STATE_CANCELLING
    assert engines
    assert stopped <= PROMISED_SECONDS
    assert ended.state == job_pb2.JOB_STATE_CANCELLED
    assert list(ended.errors) == []
    assert ended.cancellation.reason == "changed my mind"
    assert ended.state_reason == f"Cancelled by {ended.cancellation.requested_by}: changed my mind"
    assert ended.cancellation.requested_by
    asked_at = ended.cancellation.request_time.ToDatetime(UTC)
    assert before - timedelta(milliseconds=5) <= asked_at <= ended.end_time.ToDatetime(UTC)
    assert await server.caller.visible_batches(server.union) == []
    assert (await server.caller.batch(ended.batch_id)).state == batch_pb2.BATCH_STATE_ABORTED
    server.engine.before_run = go_on
    await server.check_that_it_goes_on()


@pytest.mark.slow  # of the data
async def test_an_engine_in_the_middle_of_a_long_range_has_stopped_within_two_seconds(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        big = tmp_path / "big.parquet"
        duckdb.execute(
            "COPY (SELECT 'B-' || i AS id, repeat(md5(i::VARCHAR), 300) AS note"
            f" FROM range({BIG_TEXTS}) AS one(i)) TO '{big}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)"
        )
        await server.caller.send(server.source, "big", big.read_bytes(), ds.UPLOAD_FORMAT_PARQUET)
        job = await server.caller.job(server.union)
        async for change in server.caller.watch(job.id):
            if change.progress.phase == job_pb2.JOB_PHASE_RUN and change.progress.done:
                break

        assert change.progress.done < change.progress.estimated
        await check_that_a_cancel_stops(server, job.id)


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "between two ranges"])
async def test_an_engine_that_hangs_has_stopped_within_two_seconds(tmp_path: Path, *, at_work: bool) -> None:
    async with serving(tmp_path) as server:
        hanging = asyncio.Event()

        async def hang() -> None:
            for process in server.engine.engine.children:
                os.kill(process, signal.SIGSTOP)
            hanging.set()
            if not at_work:
                await Gate()()

        server.engine.before_run = hang
        job = await server.caller.job(server.union)
        await hanging.wait()

        await check_that_a_cancel_stops(server, job.id)
