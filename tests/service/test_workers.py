"""How many jobs run at once, and a worker whose heartbeats do not come through."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from profile_export.app import Application
from profile_export.config import load
from profile_export.runner import keeper, worker
from profile_export.v1 import job_pb2
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine
from tests.service.harness import Caller


@dataclass
class Serving:
    caller: Caller
    engine: GatedEngine
    union: str


@asynccontextmanager
async def serving(data_dir: Path, workers: int) -> AsyncIterator[Serving]:
    """Run a server of so many workers, with a source of one row."""
    real = real_engine()
    engine = GatedEngine(real)
    application = Application(load({**settings_for(data_dir), "workers": str(workers)}, {}), engine)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        caller = Caller(channel, "org")
        await caller.upload(await caller.dataset("record", {"id": "CRM"}), "rows", [{"id": "1"}])
        yield Serving(caller, engine, await caller.dataset("union"))
    await application.stop()
    await real.close()


class Meeting:
    """A point that nobody leaves before so many have come."""

    def __init__(self, count: int) -> None:
        self._barrier = asyncio.Barrier(count)

    async def __call__(self) -> None:
        await self._barrier.wait()


@pytest.mark.slow
async def test_two_workers_run_two_jobs_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=2) as server:
        server.engine.before_run = Meeting(2)

        made = [await server.caller.job(server.union) for _ in range(2)]
        ended = [await server.caller.finished(job.id) for job in made]

        assert [job.state for job in ended] == [job_pb2.JOB_STATE_SUCCEEDED] * 2
        assert [job.attempt for job in ended] == [1, 1]


@pytest.mark.slow
async def test_a_server_without_workers_runs_no_job_and_still_ends_what_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=0) as server:
        limit = Duration()
        limit.FromMicroseconds(1)

        ended = await server.caller.finished((await server.caller.job(server.union, max_run_time=limit)).id)

        assert (ended.state, ended.attempt) == (job_pb2.JOB_STATE_FAILED, 0)
        assert [error.code for error in ended.errors] == ["RUN_TIME_EXCEEDED"]


@pytest.mark.slow
async def test_a_store_that_fails_for_less_than_a_lease_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.05)
    async with serving(tmp_path, workers=1) as server:
        gate = server.engine.before_run = Gate()
        job = await server.caller.job(server.union)
        await gate.reached.wait()

        with capture_logs() as logs:
            await asyncio.to_thread(change_store, tmp_path, "ALTER TABLE leases RENAME TO elsewhere")
            while not any(entry["event"] == "store_failed" for entry in logs):  # noqa: ASYNC110 - logs wake nobody
                await asyncio.sleep(0)  # a turn of the loop, for the heartbeat
            await asyncio.to_thread(change_store, tmp_path, "ALTER TABLE elsewhere RENAME TO leases")
        gate.passed.set()

        ended = await server.caller.finished(job.id)
        assert (ended.state, ended.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 1)


def change_store(data_dir: Path, statement: str) -> None:
    with closing(sqlite3.connect(data_dir / "store.sqlite")) as store:
        store.execute(statement)


@pytest.mark.slow
async def test_a_worker_whose_heartbeats_do_not_come_through_stops_before_its_lease_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(worker, "TRUSTED_SECONDS", 1.0)
    monkeypatch.setattr(keeper, "TRUSTED_SECONDS", 1.0)
    # With a file nobody else can take the job over: it is kept for as long as a loop may be busy, and no longer.
    monkeypatch.setattr(keeper, "MOST_SECONDS", 1.0)
    async with serving(tmp_path, workers=1) as server:
        # given an attempt that stands still
        gate, stopped = Gate(), asyncio.Event()

        async def stand_still() -> None:
            try:
                await gate()
            finally:
                stopped.set()

        server.engine.before_run = stand_still
        job = await server.caller.job(server.union)
        await gate.reached.wait()

        # when nothing can be written to the store any more
        store = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None, check_same_thread=False)
        with closing(store) as other:
            # In a thread: the server, which may be writing, needs the loop to get done.
            await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
            await stopped.wait()
            server.engine.before_run = Meeting(1)
            other.execute("ROLLBACK")

        # then the attempt has ended, and when the store is back another one does the job
        ended = await server.caller.finished(job.id)
        assert (ended.state, ended.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
        assert list(ended.errors) == []
