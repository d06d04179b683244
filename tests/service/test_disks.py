"""A server whose disk is full, read-only or has lost something, and jobs that take more memory than there is."""

from __future__ import annotations

import asyncio
import os
import random
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import duckdb
import grpc
import grpc.aio
import pytest

from profile_export.app import Application
from profile_export.config import load
from profile_export.domain import job as job_rules
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.conftest import settings_for
from tests.service.disks import SmallDisk, small_disk
from tests.service.engines import GatedEngine, real_engine
from tests.service.harness import Caller, refusal_of

SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED
PEOPLE = 500
MANY_EVENTS = 40_000


@dataclass
class Server:
    caller: Caller
    stranger: Caller
    engine: GatedEngine
    lake: Path
    source: str
    union: str

    async def run(self) -> job_pb2.ExportJob:
        return await self.caller.finished((await self.caller.job(self.union)).id)

    async def upload(self, batch_id: str) -> batch_pb2.Batch:
        return await self.caller.upload(self.source, batch_id, noise())

    async def check_that_it_goes_on(self, jobs_before: int = 0) -> None:
        """The next job succeeds, and beside its files there are none: nothing of a job that failed is left."""
        job = await self.run()
        assert (job.state, job.attempt) == (SUCCEEDED, 1)
        assert len(await self.caller.visible_batches(self.union)) == jobs_before + 1
        folders = {path.relative_to(self.lake).parts[1] for path in self.files()}
        assert len(folders) == jobs_before + 1

    def files(self) -> list[Path]:
        """What is on the disk of exports."""
        return [path for path in (self.lake / self.union).rglob("*") if path.is_file()]

    async def until_swept(self) -> None:
        """Wait until the worker has removed what a job left, as it does right after the job's end."""
        while self.files():
            await self.caller.get_dataset(self.union)


@asynccontextmanager
async def serving(data_dir: Path, engine: DuckDbEngine | None = None) -> AsyncIterator[Server]:
    """Run a server that has a source of some people with texts, and where to export them."""
    gated = GatedEngine(engine or real_engine())
    application = Application(load(settings_for(data_dir), {}), gated)
    await application.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            caller = Caller(channel, "org")
            source = await caller.dataset("record", {"id": "CRM"})
            union = await caller.dataset("union")
            server = Server(caller, Caller(channel, "other"), gated, data_dir / "lake", source, union)
            await server.upload("rows")
            yield server
    finally:
        await application.stop()
        await gated.engine.close()


def noise() -> list[dict[str, str]]:
    """People with texts that nothing compresses."""
    dice = random.Random(1)
    return [{"id": f"C-{number}", "note": dice.randbytes(500).hex()} for number in range(PEOPLE)]


async def check_that_it_failed(server: Server, job: job_pb2.ExportJob, code: str, *words: str) -> None:
    """A job has FAILED after as many attempts as make sense, says why and what to do, and nothing of it is visible."""
    assert job.state == FAILED
    retryable = len(job.errors) > 1
    assert [(error.code, error.retryable) for error in job.errors] == [(code, retryable)] * (
        3 if retryable else 1
    )
    for error in job.errors:
        assert [word for word in words if word not in error.message] == []
        assert error.message.endswith(".")
    assert await server.caller.visible_batches(server.union) == []
    assert (await server.caller.batch(job.batch_id)).state == batch_pb2.BATCH_STATE_FAILED


@pytest.fixture(autouse=True)
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong stays so: nothing is learned by waiting between the attempts."""
    monkeypatch.setattr(job_rules, "FIRST_BACK_OFF", timedelta())


@pytest.fixture
def lake_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "lake") as disk:
        yield disk


# --- Full ---


@pytest.mark.slow
async def test_a_full_disk_fails_the_job_and_refuses_the_upload_until_there_is_room(
    tmp_path: Path, lake_disk: SmallDisk
) -> None:
    async with serving(tmp_path) as server:
        lake_disk.fill(free=100_000)

        job = await server.run()
        refusal = await refusal_of(server.upload("more"))

        await check_that_it_failed(
            server, job, "DISK_FULL", f"/{server.union}/", "No space left", "Free some of it"
        )
        await server.until_swept()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DISK_FULL")
        assert refusal.retry_seconds
        lake_disk.empty()
        assert (await server.upload("more")).rows == PEOPLE
        await server.check_that_it_goes_on()


@pytest.mark.slow  # a lease runs out
async def test_a_disk_that_is_full_for_the_store_too_ends_no_accepted_job(tmp_path: Path) -> None:
    with small_disk(tmp_path / "data") as disk:
        async with serving(tmp_path / "data") as server:
            # given a job that runs when nothing has any room left, neither its files nor the store
            filled = asyncio.Event()

            async def fill() -> None:
                if not filled.is_set():
                    await asyncio.to_thread(disk.fill)
                    filled.set()

            server.engine.after_run = fill
            accepted = await server.caller.job(server.union)
            ended = asyncio.create_task(server.caller.finished(accepted.id))
            await filled.wait()

            # when somebody calls
            job_refusal = await refusal_of(server.caller.job(server.union))
            upload_refusal = await refusal_of(server.upload("more"))

            # then what writes is refused with the advice to come back, and what reads is answered
            for refusal in (job_refusal, upload_refusal):
                assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DISK_FULL")
                assert refusal.retry_seconds
            assert await server.caller.visible_batches(server.union) == []

            # and the job succeeds as soon as there is room
            disk.empty()
            job = await ended
            assert job.state == SUCCEEDED
            assert len(await server.caller.rows(job.batch_id)) == PEOPLE
            assert (await server.upload("more")).rows == PEOPLE


@pytest.mark.slow
async def test_an_engine_that_may_write_no_more_fails_the_job_with_a_reason(tmp_path: Path) -> None:
    """As a quota does it; this limit needs no rights."""
    async with serving(tmp_path) as server:
        normal = resource.getrlimit(resource.RLIMIT_FSIZE)

        async def limit() -> None:
            for process in server.engine.engine.children:
                resource.prlimit(process, resource.RLIMIT_FSIZE, (50_000, normal[1]))

        server.engine.before_run = limit
        job = await server.run()

        await check_that_it_failed(
            server, job, "ENGINE_IO", f"/{server.union}/", "File too large", "See to the disk"
        )
        await server.until_swept()

        async def lift() -> None:
            for process in server.engine.engine.children:
                resource.prlimit(process, resource.RLIMIT_FSIZE, normal)

        server.engine.before_run = lift
        await server.check_that_it_goes_on()


# --- Read-only ---


@pytest.mark.slow
async def test_a_read_only_lake_fails_the_job_and_refuses_the_upload_until_it_is_writable(
    tmp_path: Path, lake_disk: SmallDisk
) -> None:
    async with serving(tmp_path) as server:
        lake_disk.make_read_only()

        job = await server.run()
        refusal = await refusal_of(server.upload("more"))

        await check_that_it_failed(
            server, job, "ENGINE_IO", f"/{server.union}", "Read-only file system", "See to the disk"
        )
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DISK_READ_ONLY")
        lake_disk.make_writable()
        await server.check_that_it_goes_on()


@pytest.mark.slow
async def test_a_place_that_no_folder_can_be_made_in_fails_the_job_with_a_reason(tmp_path: Path) -> None:
    """As without the rights to write there, which bind every user but one."""
    async with serving(tmp_path) as server:
        (server.lake / server.union).write_text("in the way")

        job = await server.run()

        await check_that_it_failed(server, job, "ENGINE_IO", f"/{server.union}/", "See to the disk")
        (server.lake / server.union).unlink()
        await server.check_that_it_goes_on()


# --- Lost ---


def overwrite(path: Path) -> None:
    """Leave what a Parquet file begins and ends with, and nothing of its rows."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [overwrite, truncate, Path.unlink])
async def test_a_damaged_source_fails_the_job_that_names_it_and_can_be_taken_back(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with serving(tmp_path) as server:
        [stored] = (server.lake / server.source).rglob("*.parquet")
        damage(stored)

        job = await server.run()

        await check_that_it_failed(
            server, job, "SOURCE_UNREADABLE", str(stored.relative_to(server.lake)), "revert its batch"
        )
        await server.until_swept()
        await server.caller.revert("rows")
        await server.upload("again")
        await server.check_that_it_goes_on()


# --- Memory ---


@pytest.mark.slow
async def test_a_person_who_takes_more_memory_than_there_is_fails_the_job_with_the_way_out(
    tmp_path: Path,
) -> None:
    """No range is smaller than a person, and their events are one list."""
    async with serving(tmp_path / "data", DuckDbEngine(memory_limit_mb=316, threads=1)) as server:
        clicks = await server.caller.dataset("event", {"id": "CRM"})
        path = tmp_path / "clicks.parquet"
        duckdb.execute(
            "COPY (SELECT 'C-1' AS id, 'e' || i AS _id, TIMESTAMPTZ '2026-01-01 00:00:00Z' AS timestamp,"
            f" repeat(md5(i::VARCHAR), 100) AS note FROM range({MANY_EVENTS}) AS one(i))"
            f" TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)"
        )
        await server.caller.send(clicks, "clicks", path.read_bytes(), ds.UPLOAD_FORMAT_PARQUET)

        job = await server.caller.job(server.union, events=job_pb2.EventList())
        ended = await server.caller.finished(job.id)

        await check_that_it_failed(server, ended, "OUT_OF_MEMORY", "ran out of memory", "Give it more")
        await server.until_swept()
        await server.check_that_it_goes_on()
