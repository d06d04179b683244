"""Compaction in a real server, which is killed in the middle of a merge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from profile_export.client import Client, DatasetKind, IdentityField, JobState, UploadFormat, export_spec

SECONDS = 30
CRM = IdentityField(path="crmId", namespace="CRM", primary=True)


@dataclass
class Server:
    process: subprocess.Popen[str]
    address: str

    def wait_for(self, event: str) -> None:
        """Read its log until something has happened; the test's time limit ends a wait for nothing."""
        assert self.process.stderr
        while json.loads(self.process.stderr.readline())["event"] != event:
            pass


@contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    command = (sys.executable, "-m", "profile_export", "serve", "--grpc-address", "127.0.0.1:0")
    with subprocess.Popen(
        [*command, "--data-dir", str(data_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield Server(process, process.stdout.readline().removeprefix("listening on ").strip())
        process.terminate()
        process.communicate(timeout=SECONDS)


async def upload(client: Client, folder: Path, dataset_id: str, number: int) -> Path:
    """Upload a batch of one person; return its file in the lake."""
    path = folder / f"{number}.jsonl"
    path.write_text(json.dumps({"crmId": f"C{number}", "name": f"n{number}"}) + "\n")
    batch = (await client.upload(dataset_id, path, UploadFormat.UPLOAD_FORMAT_JSON_LINES)).batch
    return in_lake((await client.list_files(batch.id))[0].location)


def in_lake(location: str) -> Path:
    return Path(unquote(urlsplit(location).path))


async def exported(client: Client, union: str) -> list[str]:
    """Export, and return the names that came out."""
    job = (await client.create_job(export_spec(union))).job
    async for _ in client.watch_job(job.id):
        pass
    job = await client.get_job(job.id)
    assert job.state == JobState.JOB_STATE_SUCCEEDED
    files = [in_lake(file.location) for file in await client.list_files(job.batch_id)]
    return sorted(name for file in files for name in pq.read_table(file)["name"].to_pylist())


@pytest.mark.slow
async def test_a_server_that_is_killed_while_it_compacts_leaves_nothing_wrong(tmp_path: Path) -> None:
    data, names = tmp_path / "data", sorted(f"n{number}" for number in range(10))
    with serving(data) as server:
        async with Client(server.address) as client:
            crm = (await client.create_dataset("crm", DatasetKind.DATASET_KIND_RECORD, identities=[CRM])).id
            union = (await client.create_dataset("people", DatasetKind.DATASET_KIND_UNION)).id
            file = await upload(client, tmp_path, crm, 0)
            for number in range(1, 9):
                await upload(client, tmp_path, crm, number)
            # A pipe where a file was: whoever reads it waits until the other end is opened, too.
            aside = file.rename(tmp_path / "aside")
            os.mkfifo(file)
            await upload(client, tmp_path, crm, 9)
        with file.open("wb"):
            server.process.kill()
            server.process.wait(SECONDS)
    aside.replace(file)
    left = set((data / "lake" / crm).iterdir())

    with serving(data) as again:
        again.wait_for("compacted")
        async with Client(again.address) as client:
            after_the_kill = await exported(client, union)
    with serving(data) as third:
        async with Client(third.address) as client:
            after_a_restart = await exported(client, union)
    kept = set((data / "lake" / crm).iterdir())

    assert after_the_kill == after_a_restart == names
    assert (len(left), len(kept), len(left & kept)) == (11, 11, 10)
