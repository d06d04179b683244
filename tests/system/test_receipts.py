"""A server killed between the commit of a job and the file of its receipt."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from profile_export.client import (
    BatchState,
    Client,
    ClientError,
    DatasetKind,
    ExportJob,
    IdentityField,
    UploadFormat,
    export_spec,
)
from profile_export.domain.catalog.datasets import Tenant
from profile_export.store.db.database import Database
from profile_export.store.files.batches import Batches
from tests.system.terminal import environment, served

ROOT = Path(__file__).parents[2]
CRM = IdentityField(path="crmId", namespace="CRM", primary=True)
SECONDS = 30
AT_ONCE = timedelta()


@dataclass(frozen=True)
class Exported:
    folder: Path
    batch_id: str

    @property
    def lake(self) -> Path:
        return self.folder / "data" / "lake"

    def receipts(self) -> list[Path]:
        return list(self.lake.resolve().rglob("receipt.json*"))

    async def take_back(self) -> None:
        """Do what a call does that comes between the commit and the death."""
        database = Database(self.folder / "data")
        await database.open()
        await Batches(database).revert(Tenant(), self.batch_id, "")
        await database.close()


@contextmanager
def serving_until_it_dies(data_dir: Path, point: str) -> Iterator[str]:
    """Run a server that dies at a point, as `dying_server` names them; give its address."""
    command = [sys.executable, "-m", "tests.system.dying_server", str(data_dir), point]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().removeprefix("listening on ").strip()
            assert server.wait(SECONDS) == -signal.SIGKILL
        finally:
            server.kill()


async def export_until_it_dies(data_dir: Path, people: Path, point: str) -> ExportJob:
    """Export by a server that dies at a point; return the job as it was created."""
    with serving_until_it_dies(data_dir, point) as address:
        async with Client(address, patience=AT_ONCE) as client:
            crm = (await client.create_dataset("crm", DatasetKind.DATASET_KIND_RECORD, identities=[CRM])).id
            union = (await client.create_dataset("people", DatasetKind.DATASET_KIND_UNION)).id
            await client.upload(crm, people, UploadFormat.UPLOAD_FORMAT_JSON_LINES)
            job = (await client.create_job(export_spec(union))).job
            # The last word still comes through, or is lost with the server.
            with suppress(ClientError):
                async for _ in client.watch_job(job.id):
                    pass
    return job


@pytest_asyncio.fixture(loop_scope="session")
async def exported(tmp_path: Path) -> Exported:
    """A job that has succeeded, and whose server has died before there was a file of its receipt."""
    person = tmp_path / "crm.jsonl"
    person.write_text('{"crmId": "C-1"}\n')
    job = await export_until_it_dies(tmp_path / "data", person, "receipt")
    made = Exported(tmp_path, job.batch_id)
    assert len(list(made.lake.rglob("*.parquet"))) == 2
    assert made.receipts() == []
    return made


@pytest.mark.slow
async def test_the_next_server_writes_what_the_one_that_died_has_not(exported: Exported) -> None:
    with served(exported.folder) as (_, address):
        async with Client(address) as client:
            answer = await client.get_receipt(exported.batch_id)
            batch = await client.get_batch(exported.batch_id)

    assert (answer.receipt.job_id, answer.receipt.files[0].rows) == (batch.job_id, 1)
    assert [path.as_uri() for path in exported.receipts()] == [answer.location]
    assert exported.receipts()[0].read_bytes() == answer.document


@pytest.mark.slow
async def test_the_next_server_writes_nothing_for_a_batch_that_was_taken_back_meanwhile(
    exported: Exported,
) -> None:
    await exported.take_back()

    with served(exported.folder) as (_, address):
        async with Client(address) as client:
            batch = await client.get_batch(exported.batch_id)

    assert batch.state == BatchState.BATCH_STATE_REVERTED
    assert exported.receipts() == []
