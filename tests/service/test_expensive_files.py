"""Files small to send and dear to read: refused for what was too much, alone in waiting, ended by a cancel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import batch_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import schema_service_pb2 as ss
from tests.hostile_files import document, repeated_text, wide_csv, zeros
from tests.service.conftest import settings_for
from tests.service.harness import Caller, json_lines, refusal_of

CSV, LINES, PARQUET = ds.UPLOAD_FORMAT_CSV, ds.UPLOAD_FORMAT_JSON_LINES, ds.UPLOAD_FORMAT_PARQUET
FAILED, LOADING = batch_pb2.BATCH_STATE_FAILED, batch_pb2.BATCH_STATE_LOADING
PROFILE = "https://ns.adobe.com/xdm/context/profile"
SLOW = repeated_text(100_000, 90_000)


class Strict:
    """A server that lets nobody take more than two seconds of its processor, or 700 MB."""

    def __init__(self, channel: grpc.aio.Channel, folder: Path) -> None:
        self.channel, self.folder = channel, folder

    def left_over(self) -> list[Path]:
        """What lies where uploads are kept, and of data."""
        return [path for path in (self.folder / "lake").rglob("*/*") if path.is_file()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Strict]:
    folder: Path = tmp_path_factory.mktemp("strict")
    limits = {"ingest_cpu_seconds": "2", "ingest_cpu_seconds_per_mib": "0", "memory_limit_mb": "700"}
    server = Application(load({**settings_for(folder), **limits, "workers": "0"}, {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Strict(channel, folder)
    await server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "upload_format"),
    [(SLOW, PARQUET), (repeated_text(10_000, 5_000_000), PARQUET), (wide_csv(4_900, 1_500), CSV)],
    ids=["texts", "one-text", "cells"],
)
async def test_a_file_over_a_limit_is_refused_and_nothing_of_it_stays(
    strict: Strict, sent: bytes, upload_format: ds.UploadFormat.ValueType
) -> None:
    caller = Caller(strict.channel, f"over-{len(sent)}")
    source = await caller.dataset("record", {"crmId": "CRM"})

    refusal = await refusal_of(caller.send(source, "b", sent, upload_format))

    batch = await caller.batch("b")
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_TOO_EXPENSIVE")
    assert "Reading the file took more than" in refusal.message
    assert batch.state == FAILED
    assert [error.code for error in batch.errors] == ["INGEST_TOO_EXPENSIVE"]
    assert await caller.visible_batches(source) == []
    assert strict.left_over() == []


@pytest.mark.slow
async def test_values_that_a_row_may_not_have_are_refused_before_they_are_read(strict: Strict) -> None:
    caller = Caller(strict.channel, "zeros")
    source = await caller.dataset("record", {"crmId": "CRM"})

    refusal = await refusal_of(caller.send(source, "b", zeros(50_000_000), PARQUET))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FILE_INVALID")
    assert "50000000 values" in refusal.message


@pytest.mark.parametrize("pattern", ["(?=.*b)a", "^(?=a*)(a|a)*$(?<!b)b", "(a+)\\1{5,}c", "^(a|aa)+(?!c)$"])
async def test_a_pattern_that_looks_around_takes_no_time(strict: Strict, pattern: str) -> None:
    caller = Caller(strict.channel, f"pattern-{pattern.encode().hex()}")
    text = document(
        allOf=[{"$ref": PROFILE}],
        properties={"a": {"type": "string", "pattern": pattern}, "crmId": {"type": "string"}},
        **{"meta:class": PROFILE},
    )
    await caller.schemas.CreateSchema(ss.CreateSchemaRequest(document=text), metadata=caller.metadata)
    source = await caller.dataset("https://ns.example.com/hostile", {"crmId": "CRM"})
    sent = [{"crmId": str(number), "a": "a" * 90_000} for number in range(5)]

    refusal = await refusal_of(caller.upload(source, "b", sent))

    assert (refusal.code, refusal.metadata["row_reason"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "VALUE_INVALID",
    )


async def test_a_slow_file_of_one_tenant_keeps_nobody_else_waiting(strict: Strict) -> None:
    slow, quick = Caller(strict.channel, "slow"), Caller(strict.channel, "quick")
    source, other = [await one.dataset("record", {"crmId": "CRM"}) for one in (slow, quick)]
    uploads = [asyncio.create_task(slow.send(source, f"b{number}", SLOW, PARQUET)) for number in range(6)]

    began = time.monotonic()
    for number in range(3):
        await quick.upload(other, f"q{number}", [{"crmId": "1"}])
    took = time.monotonic() - began

    assert not all(upload.done() for upload in uploads)
    assert took < 10  # one of the six may take as long by the clock
    for upload in uploads:
        upload.cancel()


def _readers(folder: Path) -> set[int]:
    """Return the other processes that have a file of a folder open."""
    found = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if descriptor.readlink().parent == folder:
                found.add(int(descriptor.parts[2]))
    return found - {os.getpid()}


async def test_a_caller_who_cancels_ends_the_reading_and_what_arrived_is_kept(
    data_dir: Path, caller: Caller
) -> None:
    source = await caller.dataset("record", {"crmId": "CRM"})
    call = asyncio.ensure_future(caller.send(source, "b", SLOW, PARQUET))
    while not _readers(data_dir / "uploads"):
        await asyncio.wait([call], timeout=0.01)

    call.cancel()
    while _readers(data_dir / "uploads"):
        await asyncio.wait([call, asyncio.create_task(caller.batch("b"))])

    batch = await caller.batch("b")
    assert batch.state == LOADING
    assert batch.uploads[0].received_bytes == len(SLOW)
    again = await caller.send(source, "c", json_lines([{"crmId": "1"}]), LINES)
    assert again.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    await caller.abort("b")
