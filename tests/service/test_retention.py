"""Retention as callers see it, with time moved in the store between two servers."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from tests.service.conftest import settings_for
from tests.service.harness import Caller, Refusal, refusal_of

DAY = timedelta(days=1)
SUCCEEDED, EXPIRED = batch_pb2.BATCH_STATE_SUCCEEDED, batch_pb2.BATCH_STATE_EXPIRED


def days(number: int) -> Duration:
    return Duration(seconds=number * 86_400)


@asynccontextmanager
async def serving(data_dir: Path) -> AsyncIterator[Caller]:
    """A server that keeps jobs for 30 days."""
    server = Application(load({**settings_for(data_dir), "job_retention_days": "30"}, {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, "org")
    await server.stop()


def time_passes(data_dir: Path, number: int) -> None:
    """Move into the past what retention goes by."""
    micros = number * DAY // timedelta(microseconds=1)
    with closing(sqlite3.connect(data_dir / "store.sqlite")) as store, store:
        for table, column in (
            ("batches", "ingest_time"),
            ("jobs", "end_time"),
            ("expired_jobs", "expire_time"),
            ("drops", "drop_time"),
        ):
            store.execute(f"UPDATE {table} SET {column} = {column} - ?", [micros])


async def get(caller: Caller, job_id: int) -> job_pb2.ExportJob:
    return (await caller.exports.GetJob(es.GetJobRequest(job_id=job_id), metadata=caller.metadata)).job


async def until_gone(caller: Caller, job_id: int, reason: str) -> Refusal:
    """Ask until a job is gone for that reason; pytest's time-out ends a wait for nothing."""
    while True:
        try:
            await get(caller, job_id)
        except grpc.aio.AioRpcError:
            refusal = await refusal_of(get(caller, job_id))
            if refusal.reason == reason:
                return refusal


async def until_expired(caller: Caller, batch_id: str) -> batch_pb2.Batch:
    while (batch := await caller.batch(batch_id)).state != EXPIRED:
        pass
    return batch


@pytest.mark.slow  # three servers, each until a chore has looked
async def test_what_is_too_old_expires_with_the_next_server_and_is_told_apart_from_what_never_was(
    tmp_path: Path,
) -> None:
    # given a source that keeps batches for 60 days, and an export of a batch of it
    async with serving(tmp_path) as caller:
        source = await caller.dataset("record", {"id": "CRM"}, batch_retention=days(60))
        union = await caller.dataset("union")
        await caller.upload(source, "first", [{"id": "1"}, {"id": "2"}])
        job = await caller.export(union)
        before = await caller.batch("first")
        assert before.expire_time.ToDatetime() == before.ingest_time.ToDatetime() + 60 * DAY
        assert job.expire_time.ToDatetime() == job.end_time.ToDatetime() + 30 * DAY

    # when 30 days pass, the job is gone but not its batch, whoever names it
    time_passes(tmp_path, 30)
    async with serving(tmp_path) as caller:
        refusal = await until_gone(caller, job.id, "EXPIRED")
        assert (refusal.code, refusal.metadata["id"]) == (grpc.StatusCode.NOT_FOUND, str(job.id))
        assert refusal.metadata["expire_time"].endswith("Z")
        cancel = caller.exports.CancelJob(es.CancelJobRequest(job_id=job.id), metadata=caller.metadata)
        watches = [anext(caller.watch(job.id)), anext(caller.watch(job.id, job.revision))]
        assert [(await refusal_of(call)).reason for call in (cancel, *watches)] == ["EXPIRED"] * 3
        exported = await caller.batch(job.batch_id)
        assert (exported.state, exported.job_id) == (SUCCEEDED, job.id)
        assert len(await caller.rows(job.batch_id)) == 2
        request = ds.GetReceiptRequest(batch_id=job.batch_id)
        receipt = (await caller.datasets.GetReceipt(request, metadata=caller.metadata)).receipt
        assert (receipt.job_id, [read.batch_id for read in receipt.input_batches]) == (job.id, ["first"])
        assert await caller.visible_batches(source) == ["first"]

    # and when another 30 days pass, the batch has expired, and the job was never there
    time_passes(tmp_path, 30)
    async with serving(tmp_path) as caller:
        expired = await until_expired(caller, "first")
        assert (expired.state_reason, expired.rows) == (
            "Expired: its dataset keeps batches for 60 days.",
            2,
        )
        assert expired.expire_time.ToDatetime() >= expired.ingest_time.ToDatetime() + 60 * DAY
        assert await caller.visible_batches(source) == []
        assert await caller.rows((await caller.export(union)).batch_id) == []
        await until_gone(caller, job.id, "JOB_NOT_FOUND")
        assert await caller.visible_batches(union)


async def test_a_dataset_says_how_long_it_keeps_batches(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"}, batch_retention=days(60))
    plain = await caller.dataset("record", {"id": "CRM"}, batch_retention=days(0))

    made, never = await caller.get_dataset(source), await caller.get_dataset(plain)
    renamed = await caller.update(source, name="other")
    shorter = await caller.update(source, batch_retention=days(1))
    for_ever = await caller.update(source, batch_retention=days(0))

    assert (made.batch_retention, renamed.batch_retention) == (days(60), days(60))
    assert shorter.batch_retention == days(1)
    assert not for_ever.HasField("batch_retention")
    assert not never.HasField("batch_retention")


@pytest.mark.parametrize(
    "kept_for", [Duration(seconds=-1), Duration(seconds=3_599), days(36_501), Duration(seconds=2**62)]
)
async def test_a_retention_that_cannot_be_meant_is_refused(caller: Caller, kept_for: Duration) -> None:
    source = await caller.dataset("record")

    for call in (
        caller.dataset("record", batch_retention=kept_for),
        caller.update(source, batch_retention=kept_for),
    ):
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["batch_retention"])
