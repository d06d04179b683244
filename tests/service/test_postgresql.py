"""A server whose store is a PostgreSQL database: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import job_pb2
from tests.databases import Postgres
from tests.service.conftest import settings_for
from tests.service.harness import Caller, refusal_of


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
