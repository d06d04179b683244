"""A server whose loop is held up for longer than a lease lasts keeps its jobs."""

from __future__ import annotations

import time
from pathlib import Path

import grpc.aio
import pytest

from profile_export.app import Application
from profile_export.config import load
from profile_export.domain.job import LEASE_TTL
from profile_export.v1 import job_pb2
from tests.databases import Place
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine
from tests.service.harness import Caller
from tests.system.terminal import started

HELD_UP_SECONDS = 2 * LEASE_TTL.total_seconds()


@pytest.mark.slow
async def test_a_job_outlives_a_loop_that_is_held_up_while_others_wait_for_its_lease(
    empty_place: Place, tmp_path: Path
) -> None:
    # given a job that runs, and on a database that is shared another process that would take it over
    settings = settings_for(tmp_path)
    if isinstance(empty_place, str):
        settings |= {"database_url": empty_place}
    engine, gate = GatedEngine(real_engine()), Gate()
    engine.before_run = gate
    server = Application(load(settings, {}), engine)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        caller = Caller(channel, "org")
        crm, out = await caller.dataset("record", {"crmId": "CRM"}), await caller.dataset("union")
        await caller.upload(crm, "crm-1", [{"crmId": "7"}])
        job = await caller.job(out)
        await gate.reached.wait()
        words = ("worker", "--data-dir", str(tmp_path), "--database-url", str(empty_place), "--threads", "1")
        if isinstance(empty_place, str):
            with started(words, tmp_path / "worker.log") as (_, line):
                assert line == "working"
                hold_up_the_loop()
        else:
            hold_up_the_loop()

        # when its loop goes on
        gate.passed.set()
        ended = await caller.finished(job.id)

    # then it is still the first attempt's
    assert (ended.state, ended.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
    assert job_pb2.JOB_PHASE_LOST not in {phase.phase for phase in ended.phases}
    await server.stop()
    await engine.engine.close()


def hold_up_the_loop() -> None:
    until = time.monotonic() + HELD_UP_SECONDS
    while time.monotonic() < until:
        pass
