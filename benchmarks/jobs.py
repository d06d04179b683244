"""How many small jobs get through, and how long a job waits for its next worker when one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import ours
from benchmarks.report import Line, seconds
from benchmarks.server import running, working
from benchmarks.tiny import PROFILES, people, write_lines
from profile_export.client import Client, JobState, export_spec
from tests.databases import Postgres

_MANY = 4
_LONG = 50_000
"""The profiles of a job that is still running when its worker is killed."""


async def measure_jobs(folder: Path, *, jobs: int, kills: int, workers: Sequence[int]) -> list[Line]:
    """Measure jobs of 1,000 profiles, created at once, with so many workers on each database; and take-overs."""
    lines = []
    for number in workers:
        place = _made(folder / f"sqlite-{number}")
        async with running(place, 1, None, "--workers", str(number)) as server:
            took = await _all_at_once(place, server.address, jobs)
        lines.append(_through(f"SQLite, {number} in the server", jobs, took))
    with tempfile.TemporaryDirectory(prefix="profile-export-bench-") as elsewhere:
        postgres = Postgres(Path(elsewhere) / "postgres", "bench")
        for number in workers:
            place = _made(folder / f"postgres-{number}")
            async with _scaled_out(place, postgres, number) as (address, _):
                took = await _all_at_once(place, address, jobs)
            lines.append(_through(f"PostgreSQL, {number} worker processes", jobs, took))
        place = _made(folder / "kills")
        async with _scaled_out(place, postgres, kills + 1) as (address, url):
            waits = await _kill(place, address, url, kills)
    longest = Line(
        "a worker killed in a job: until the next claim, longest", seconds(max(waits)), hold="report"
    )
    return [*lines, longest]


def _through(how: str, jobs: int, took: float) -> Line:
    return Line(f"tiny jobs, create to SUCCEEDED: {how}", f"{jobs / took:.1f} jobs/s", hold="report")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@asynccontextmanager
async def _scaled_out(folder: Path, postgres: Postgres, workers: int) -> AsyncIterator[tuple[str, str]]:
    """Run a server that only serves, and workers beside it; give its address and that of the database."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(postgres.database(with_tables=False))
        server = await stack.enter_async_context(
            running(folder, 1, None, "--workers", "0", "--database-url", url)
        )
        await asyncio.gather(*(stack.enter_async_context(working(folder, 1, url)) for _ in range(workers)))
        yield server.address, url


async def _loaded(folder: Path, client: Client, profiles: int = PROFILES) -> str:
    """Upload a source; return where to export it to."""
    path = write_lines(folder / "people.jsonl", people(range(profiles)))
    await ours.upload_lines(client, await ours.crm_dataset(client), path)
    return await ours.destination(client)


async def _all_at_once(folder: Path, address: str, jobs: int) -> float:
    """Return how long so many jobs take from the first call to the last final transition."""
    async with Client(address) as client:
        destination = await _loaded(folder, client)
        await asyncio.gather(
            *(ours.run_job(client, destination) for _ in range(_MANY))
        )  # engines are warm then
        begin = time.monotonic()
        await asyncio.gather(*(ours.run_job(client, destination) for _ in range(jobs)))
        return time.monotonic() - begin


async def _kill(folder: Path, address: str, url: str, kills: int) -> list[float]:
    """Kill whoever has just claimed a job, so many times; return how long each job waited for its next claim."""
    store: Any = await asyncpg.connect(url)
    waits: list[float] = []
    async with Client(address) as client:
        destination = await _loaded(folder, client, _LONG)
        for _ in range(kills):
            job_id = (await client.create_job(export_spec(destination))).job.id
            claims: list[float] = []
            async for message in client.watch_job(job_id):
                for transition in message.transitions:
                    if transition.to_state != JobState.JOB_STATE_PROCESSING:
                        continue
                    claims.append(time.monotonic())
                    if len(claims) == 1:
                        query = "SELECT worker FROM leases WHERE job_id = $1"
                        worker = await store.fetchval(query, job_id)
                        os.kill(int(worker.partition("-")[0]), signal.SIGKILL)
            first, second = claims
            waits.append(second - first)
    await store.close()
    return waits
