"""A server that its system gives no more: callers are told to come back, and can once there is more."""

from __future__ import annotations

import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.service.harness import Caller, refusal_of
from tests.system.terminal import served

MEGABYTE = 2**20
PEOPLE = 4_000


@contextmanager
def limited(process: int, kind: int, most: int) -> Iterator[None]:
    before = resource.prlimit(process, kind)
    resource.prlimit(process, kind, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, kind, before)


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[int, Caller]]:
    with served(tmp_path) as (process, address):
        async with grpc.aio.insecure_channel(address) as channel:
            yield process.pid, Caller(channel, "org")


def noise() -> list[dict[str, str]]:
    """People with texts that nothing compresses."""
    dice = random.Random(1)
    return [{"id": f"C-{number}", "note": dice.randbytes(500).hex()} for number in range(PEOPLE)]


@pytest.mark.slow
async def test_files_that_may_grow_no_further_refuse_an_upload_until_they_may(
    server: tuple[int, Caller],
) -> None:
    process, caller = server
    dataset = await caller.dataset("record", {"id": "CRM"})

    with limited(process, resource.RLIMIT_FSIZE, 2 * MEGABYTE):
        refusal = await refusal_of(caller.upload(dataset, "b", noise()))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DISK_FULL")
    assert refusal.retry_seconds
    assert (await caller.upload(dataset, "b", noise())).rows == PEOPLE


@pytest.mark.slow
async def test_too_many_open_files_refuse_an_upload_until_there_may_be_more(
    server: tuple[int, Caller],
) -> None:
    process, caller = server
    dataset = await caller.dataset("record", {"id": "CRM"})

    with limited(process, resource.RLIMIT_NOFILE, open_files(process) // 2):
        refusal = await refusal_of(caller.upload(dataset, "b", noise()))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SYSTEM_LIMIT")
    assert refusal.retry_seconds
    assert (await caller.upload(dataset, "b", noise())).rows == PEOPLE
