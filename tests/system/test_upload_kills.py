"""Uploads whose client or server is killed at random moments: repeated, every row counts exactly once.

`UPLOAD_KILLS_SEED` repeats the kills of a run that failed, as far as the machine lets them hit the same moments.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc.aio
import pyarrow.parquet as pq
import pytest

from profile_export.v1 import batch_pb2, dataset_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from tests.system.uploader import TRY_AGAIN

XDM = "https://ns.adobe.com/xdm/context"
UPLOADER = Path(__file__).with_name("uploader.py")
AT_ONCE = 3
MOST_TRIES = 40


@dataclass(frozen=True)
class Upload:
    """One batch: its files, the ids in them in the order in which they count, and what is planned against it."""

    batch_id: str
    files: Sequence[Path]
    ids: Sequence[str]
    bad_rows: int
    victims: Sequence[str]
    random: Random


def planned(folder: Path, number: int, seed: str) -> Upload:
    """Plan an upload of one to three files, sent in any order; every fifth has a row that is rejected."""
    random = Random(f"{seed} {number}")
    batch_id = f"batch-{number:03}"
    place = folder / batch_id
    place.mkdir(parents=True)
    bad_rows = int(number % 5 == 0)
    files, ids = [], []
    for name in [f"{index}.jsonl" for index in range(random.choice([1, 1, 2, 3]))]:
        mine = [f"{batch_id}-{name}-{row}" for row in range(random.randint(1, 1_500))]
        lines = [json.dumps({"id": one, "value": value_of(one)}) for one in mine]
        lines[len(lines) // 2 : len(lines) // 2] = ["not a row"] * bad_rows
        (place / name).write_text("".join(f"{line}\n" for line in lines))
        files.append(place / name)
        ids += mine
    random.shuffle(files)
    victims = random.choices(["client", "server"], k=random.choice([1, 1, 2]))
    return Upload(batch_id, files, ids, bad_rows, victims, random)


def value_of(one: str) -> str:
    return hashlib.sha256(one.encode()).hexdigest()


@dataclass
class House:
    """A server process, which is killed and started again on the same data."""

    data_dir: Path
    address: str = ""
    standing: asyncio.Lock = field(default_factory=asyncio.Lock)
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "profile_export", "serve", "--grpc-address", "127.0.0.1:0"]
        with (self.data_dir.parent / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, "--data-dir", str(self.data_dir), stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self.process.stdout
        line = (await self.process.stdout.readline()).decode()
        assert line.startswith("listening on "), line
        self.address = line.removeprefix("listening on ").strip()

    async def kill(self) -> None:
        async with self.standing:
            assert self.process
            self.process.kill()
            await self.process.wait()
            await self.start()

    async def stop(self) -> None:
        assert self.process
        self.process.terminate()
        assert await self.process.wait() == 0


@dataclass
class Run:
    """A run of uploads against one dataset, and what was killed."""

    house: House
    dataset_id: str
    kills: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    # How long an upload takes from its first call on: the moments of kills are drawn from this stretch. Short at first,
    # so that a quick machine's first uploads are not over before.
    seconds: float = 0.1

    async def all(self, uploads: Iterable[Upload]) -> None:
        waiting = iter(uploads)

        async def one_after_another() -> None:
            for upload in waiting:
                await self.one(upload)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_another())

    async def one(self, upload: Upload) -> None:
        """Upload until it counts, killing what was planned."""
        victims = list(upload.victims)
        for _ in range(MOST_TRIES):
            async with self.house.standing:
                address = self.house.address
            client = await self._client(upload, address)
            assert client.stdout
            assert client.stderr
            began = await client.stdout.readline()
            clock = asyncio.get_running_loop().time
            start = clock()
            if began and victims and not await _ends_within(client, upload.random.uniform(0, self.seconds)):
                await self._kill(victims.pop(), client)
            told = (await client.stderr.read()).decode()
            code = await client.wait()
            if code == 0:
                self.seconds += (clock() - start - self.seconds) / 5
                return
            assert code in {TRY_AGAIN, -9}, f"{upload.batch_id}: {told}"
            self.repeats += 1
        pytest.fail(f"{upload.batch_id} did not succeed in {MOST_TRIES} tries")

    async def _client(self, upload: Upload, address: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(UPLOADER), address, self.dataset_id, upload.batch_id, str(upload.bad_rows)),
            *(upload.random.choice(["resume", "anew"]), *map(str, upload.files)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def _kill(self, victim: str, client: asyncio.subprocess.Process) -> None:
        self.kills[victim] += 1
        if victim == "server":
            await self.house.kill()
        elif client.returncode is None:
            client.kill()


async def _ends_within(client: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        await asyncio.wait_for(client.wait(), seconds)
    except TimeoutError:
        return False
    return True


# --- What is there afterwards ---


async def dataset(datasets: DatasetServiceStub, schema: str) -> str:
    request = ds.CreateDatasetRequest(
        name=schema,
        schema_ref=dataset_pb2.SchemaRef(id=f"{XDM}/{schema}"),
        identity_fields=[dataset_pb2.IdentityField(path="id", namespace="Test", primary=True)]
        if schema == "profile"
        else [],
    )
    return (await datasets.CreateDataset(request)).dataset.id


async def listed(datasets: DatasetServiceStub, dataset_id: str) -> list[batch_pb2.Batch]:
    batches: list[batch_pb2.Batch] = []
    token = ""
    while True:
        request = ds.ListBatchesRequest(dataset_id=dataset_id, page_size=7, page_token=token)
        page = await datasets.ListBatches(request)
        batches += page.batches
        token = page.next_page_token
        if not token:
            return batches


async def rows_of(datasets: DatasetServiceStub, batch_id: str) -> list[dict[str, Any]]:
    """Read the rows of a batch in their order, from files that are what the service says of them."""
    rows: list[dict[str, Any]] = []
    for file in (await datasets.ListBatchFiles(ds.ListBatchFilesRequest(batch_id=batch_id))).files:
        rows += read_checked(Path(unquote(urlsplit(file.location).path)), file)
    return sorted(rows, key=lambda row: row.get("_row", 0))


def read_checked(path: Path, file: batch_pb2.DataFile) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    assert len(rows) == file.rows
    return rows


async def exported(channel: grpc.aio.Channel, destination: str) -> list[dict[str, Any]]:
    exports = ExportServiceStub(channel)
    spec = job_pb2.ExportSpec(destination=job_pb2.ExportDestination(dataset_id=destination))
    job = (await exports.CreateJob(es.CreateJobRequest(spec=spec))).job
    async for message in exports.WatchJob(es.WatchJobRequest(job_id=job.id)):
        job = message.job if message.HasField("job") else job
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job
    return await rows_of(DatasetServiceStub(channel), job.batch_id)


async def check_service(house: House, source: str, uploads: Sequence[Upload]) -> None:
    """Check that batches, files and an export have every row once."""
    async with grpc.aio.insecure_channel(house.address) as channel:
        datasets = DatasetServiceStub(channel)
        batches = {batch.id: batch for batch in await listed(datasets, source)}
        assert batches.keys() == {upload.batch_id for upload in uploads}
        for upload in uploads:
            batch = batches[upload.batch_id]
            rows = await rows_of(datasets, upload.batch_id)
            assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
            assert (batch.rows, batch.rejected_rows) == (len(rows), upload.bad_rows * len(upload.files))
            assert [row["_row"] for row in rows] == list(range(len(rows)))
            assert {row["_batch_id"] for row in rows} == {upload.batch_id}
            assert [(row["id"], row["value"]) for row in rows] == [(one, value_of(one)) for one in upload.ids]
        rows = await exported(channel, await dataset(datasets, "profile__union"))
        ids = [one for upload in uploads for one in upload.ids]
        assert sorted((row["id"], row["value"]) for row in rows) == sorted(
            (one, value_of(one)) for one in ids
        )


def check_disk(data_dir: Path, source: str, uploads: Sequence[Upload]) -> None:
    """Check that the store of a stopped server says the same, and that the disk has nothing else."""
    store = sqlite3.connect(f"file:{data_dir / 'store.sqlite'}?mode=ro", uri=True)
    batches: Mapping[str, tuple[str, int]] = {
        batch_id: (state, rows)
        for batch_id, state, rows in store.execute(
            "SELECT id, state, rows FROM batches WHERE dataset_id = ?", [source]
        )
    }
    assert batches == {upload.batch_id: ("succeeded", len(upload.ids)) for upload in uploads}
    files = store.execute("SELECT path, rows, sha256 FROM files").fetchall()
    rejected = store.execute("SELECT folder FROM uploads WHERE rejected_rows > 0").fetchall()
    exported = store.execute("SELECT folder FROM batches JOIN receipts ON batch_key = key").fetchall()
    compacted = store.execute("SELECT path FROM compactions").fetchall()
    # What nothing needs any more stays for a while, for those who may still be reading it.
    dropped = {folder for (folder,) in store.execute("SELECT folder FROM drops")}
    # A merge that the last stop has cut off is named, and cleared up at the next start.
    dropped |= {folder for (folder,) in store.execute("SELECT folder FROM merges")}
    store.close()
    for path, rows, sha256 in files:
        content = (data_dir / "lake" / path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        assert pq.read_metadata(data_dir / "lake" / path).num_rows == rows
    named = {path for path, _, _ in files} | {path for (path,) in compacted}
    named |= {f"{folder}/rejected.parquet" for (folder,) in rejected}
    named |= {f"{folder}/receipt.json" for (folder,) in exported} | {"instance"}
    lake = data_dir / "lake"
    found = {str(path.relative_to(lake)) for path in lake.rglob("*") if path.is_file()}
    assert {path for path in found - named if not dropped & set(map(str, Path(path).parents))} == set()
    assert named - found == set()
    assert list((data_dir / "uploads").iterdir()) == []


async def upload_under_fire(folder: Path, count: int) -> Run:
    seed = os.environ.get("UPLOAD_KILLS_SEED") or secrets.token_hex(4)
    sys.stdout.write(f"UPLOAD_KILLS_SEED={seed}\n")
    uploads = [planned(folder / "sent", number, seed) for number in range(count)]
    house = House(folder / "data")
    await house.start()
    async with grpc.aio.insecure_channel(house.address) as channel:
        source = await dataset(DatasetServiceStub(channel), "profile")
    run = Run(house, source)
    await run.all(uploads)
    sys.stdout.write(f"{count} uploads, killed {dict(run.kills)}, repeated {run.repeats} times\n")
    await check_service(house, source, uploads)
    await house.stop()
    # What a killed server has left, the next one removes when it starts.
    await house.start()
    await house.stop()
    check_disk(house.data_dir, source, uploads)
    return run


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_uploads_killed_at_random_moments_leave_every_row_once(tmp_path: Path) -> None:
    # `make chaos` runs the long form.
    count = 100 if os.environ.get("KILLS") else 14

    run = await upload_under_fire(tmp_path, count=count)

    assert min(run.kills["client"], run.kills["server"]) > count // 10
