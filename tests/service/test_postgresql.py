"""A server whose store is a PostgreSQL database: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.databases import Postgres
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine
from tests.service.harness import Caller, json_lines, refusal_of, upload_messages


@pytest_asyncio.fixture
async def url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database(with_tables=False) as made:
        yield made


@pytest_asyncio.fixture
async def on_postgresql(tmp_path: Path, url: str) -> AsyncIterator[Caller]:
    server = Application(load({**settings_for(tmp_path), "database_url": url}, {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, "org")
    await server.stop()


async def test_a_profile_is_exported_and_only_files_are_in_the_data_directory(
    on_postgresql: Caller, tmp_path: Path
) -> None:
    crm = await on_postgresql.dataset("record", {"crmId": "CRMID", "email": "Email"})
    shop = await on_postgresql.dataset("record", {"email": "Email"})
    out = await on_postgresql.dataset("union")
    await on_postgresql.upload(crm, "crm-1", [{"crmId": "7", "email": "a@x.org", "city": "Oslo"}])
    await on_postgresql.upload(shop, "shop-1", [{"email": "a@x.org", "city": "Bergen"}])

    job = await on_postgresql.export(out)

    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert {row["city"] for row in await on_postgresql.rows(job.batch_id)} >= {"Bergen"}
    assert not (tmp_path / "store.sqlite").exists()


async def test_text_that_a_database_cannot_hold_is_the_callers_error(on_postgresql: Caller) -> None:
    refusal = await refusal_of(on_postgresql.dataset("record", {"crmId": "CRMID"}, name="a\0b"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_INVALID")


@pytest.mark.slow
async def test_a_job_whose_connection_is_cut_is_tried_again(on_postgresql: Caller, url: str) -> None:
    # given a job that waits for the database to take its first range
    crm = await on_postgresql.dataset("record", {"crmId": "CRMID"})
    out = await on_postgresql.dataset("union")
    await on_postgresql.upload(crm, "crm-1", [{"crmId": "7"}])
    admin: Any = await asyncpg.connect(url)
    holding = admin.transaction()
    await holding.start()
    await admin.execute("LOCK TABLE job_ranges IN SHARE MODE")
    job = await on_postgresql.job(out)
    waits = "FROM pg_locks WHERE NOT granted AND relation = 'job_ranges'::regclass"
    while not await admin.fetchval(f"SELECT count(*) {waits}"):
        pass

    # when its connection is cut
    await admin.execute(f"SELECT pg_terminate_backend(pid) {waits}")
    await holding.rollback()
    await admin.close()

    # then the next attempt succeeds, and the job tells what happened
    ended = await on_postgresql.finished(job.id)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.attempt == 2
    assert [(error.code, error.component, error.retryable) for error in ended.errors] == [
        ("DATABASE_UNAVAILABLE", "store", True)
    ]


# --- Killed ---


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of its own for a test that kills it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder) / "killed", "own")
        yield server
        server.stop()


@pytest.mark.slow
async def test_a_killed_postgresql_costs_no_accepted_job_and_no_upload(
    tmp_path: Path, own_postgres: Postgres
) -> None:
    real = real_engine()
    engine = GatedEngine(real)
    url = own_postgres.url("postgres")
    application = Application(load({**settings_for(tmp_path), "database_url": url}, {}), engine)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        await check_that_a_kill_costs_nothing(Caller(channel, "org"), engine, own_postgres)
    await application.stop()
    await real.close()


async def check_that_a_kill_costs_nothing(caller: Caller, engine: GatedEngine, postgres: Postgres) -> None:
    # given a job that runs, one that waits, one that is over, and an upload half of which has been sent
    crm = await caller.dataset("record", {"crmId": "CRMID"})
    out = await caller.dataset("union")
    rows = json_lines({"crmId": f"C-{number}"} for number in range(1_000))
    await caller.send(crm, "before", rows)
    over = await caller.export(out)
    gate = engine.before_run = Gate()
    running, waiting = [await caller.job(out, request_id=name) for name in ("running", "waiting")]
    await gate.reached.wait()
    sent, killed = asyncio.Event(), asyncio.Event()

    async def in_two_halves() -> AsyncIterator[ds.UploadBatchRequest]:
        start, data, finish = upload_messages(crm, "under-way", rows)
        yield start
        yield ds.UploadBatchRequest(data=data.data[:1_000])
        sent.set()
        await killed.wait()
        yield ds.UploadBatchRequest(data=data.data[1_000:])
        yield finish

    upload = asyncio.create_task(
        refusal_of(caller.datasets.UploadBatch(in_two_halves(), metadata=caller.metadata))
    )
    await sent.wait()

    # when PostgreSQL is killed
    postgres.kill()
    killed.set()

    # then every call says so, and when to come back
    asked = (
        caller.exports.GetJob(es.GetJobRequest(job_id=running.id), metadata=caller.metadata),
        caller.job(out),
        caller.send(crm, "after", rows),
    )
    for refusal in [await upload, *[await refusal_of(call) for call in asked]]:
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert refusal.retry_seconds
    gate.passed.set()

    # and when it is back, every accepted job ends well, once, and the upload is repeated
    await asyncio.to_thread(postgres.restart)
    ended = [await caller.finished(job.id) for job in (running, waiting)]
    assert [job.state for job in ended] == [job_pb2.JOB_STATE_SUCCEEDED] * 2
    assert {error.code for job in ended for error in job.errors} <= {"DATABASE_UNAVAILABLE", "LEASE_LOST"}
    seen = await caller.visible_batches(out)
    assert sorted(seen) == sorted(job.batch_id for job in (over, *ended))
    assert (await caller.job(out, request_id="running")).id == running.id
    for batch_id in ("under-way", "after"):
        assert (await caller.send(crm, batch_id, rows)).batch.rows == 1_000
    assert await caller.visible_batches(crm) == ["before", "under-way", "after"]
