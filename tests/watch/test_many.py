"""Watches beyond counting: they leave nothing behind, and all of them may come back at once."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from profile_export.v1 import export_service_pb2 as es
from tests.service.harness import Caller
from tests.watch.processes import Running, running, serving
from tests.watch.watcher import METHOD

MIB = 1024 * 1024
# `make soak` asks for the long form.
WARM_UP, WATCHES, CLIENTS = (4_000, 20_000, 5_000) if "SOAK" in os.environ else (1_500, 1_000, 500)
AT_ONCE, CROWDS = 100, 2
ALLOWANCE = (2 if "SOAK" in os.environ else 6) * MIB
"""What our server may grow more than a bare one over all watches: 100 bytes for each of the long form. In the short
form it is not warm yet."""
SPARE_FILES = 500


async def waiting_job(caller: Caller) -> int:
    return (await caller.job(await caller.dataset("union"))).id


# --- Soak ---


async def open_and_cancel(address: str, request: es.WatchJobRequest, count: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_stream(
            METHOD, request_serializer=es.WatchJobRequest.SerializeToString, response_deserializer=None
        )

        async def one() -> None:
            call = method(request)
            assert isinstance(await call.read(), bytes)
            call.cancel()

        for _ in range(count // AT_ONCE):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def growth(server: Running, address: str, job_id: int) -> int:
    """Return how many bytes a server grows over many watches, once it is warm."""
    request = es.WatchJobRequest(job_id=job_id)
    await open_and_cancel(address, request, WARM_UP)
    before = server.resident_bytes
    await open_and_cancel(address, request, WATCHES)
    return server.resident_bytes - before


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_watches_that_were_opened_and_cancelled_leave_no_more_behind_than_with_a_bare_server(
    tmp_path: Path,
) -> None:
    async with running("tests.watch.bare_server") as server:
        bare = await growth(server, (await server.said()).removeprefix("listening on "), 1)
    async with serving(tmp_path) as (server, address), grpc.aio.insecure_channel(address) as channel:
        ours = await growth(server, address, await waiting_job(Caller(channel, "default")))

    print(f"grown by {ours / MIB:.1f} MiB, a bare server by {bare / MIB:.1f} MiB")  # noqa: T201 - the figures
    assert ours <= max(bare, 0) + ALLOWANCE


# --- All at once ---


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process and those that it starts open as many files as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CLIENTS + SPARE_FILES:
        pytest.skip(f"a process may open {hard} files here, and a server of {CLIENTS} clients needs more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Clients in several processes, each client with a connection of its own."""

    def __init__(self, parts: list[Running]) -> None:
        self._parts = parts

    async def come(self, address: str) -> None:
        """Have all of them watch the job at once; return when each has been told something or refused."""
        for part in self._parts:
            await part.tell(address)
        for part in self._parts:
            assert await part.said() == "told"

    async def ends(self) -> Counter[str]:
        """Return how many calls ended how, with which revisions, once all have ended."""
        ends: Counter[str] = Counter()
        for part in self._parts:
            ends.update(json.loads(await part.said()))
        return ends


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("many_files")
async def test_clients_that_come_back_at_once_are_all_let_in_and_told_the_end(tmp_path: Path) -> None:
    async with AsyncExitStack() as house:
        # given that many clients on a server
        first, address = await house.enter_async_context(serving(tmp_path))
        async with grpc.aio.insecure_channel(address) as channel:
            job_id = await waiting_job(Caller(channel, "default"))
        words = ("tests.watch.crowd", str(job_id), str(CLIENTS // CROWDS))
        crowd = Crowd([await house.enter_async_context(running(*words)) for _ in range(CROWDS)])
        await crowd.come(address)

        # when it is drained, each is told so
        assert await first.stop() == 0
        assert await crowd.ends() == {"UNAVAILABLE SERVER_DRAINING [1]": CLIENTS}

        # then all of them come to the next one at once, and are told how the job ends
        _, address = await house.enter_async_context(serving(tmp_path))
        await crowd.come(address)
        async with grpc.aio.insecure_channel(address) as channel:
            caller = Caller(channel, "default")
            await caller.exports.CancelJob(es.CancelJobRequest(job_id=job_id), metadata=caller.metadata)
        assert await crowd.ends() == {"OK [1, 2]": CLIENTS}
