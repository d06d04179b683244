"""A server killed in the middle of a job."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from profile_export.client import Client, ExportJob, JobPhase, JobState
from tests.system.terminal import served
from tests.system.test_receipts import export_until_it_dies

PEOPLE = 5_000


async def finished(client: Client, job_id: int) -> ExportJob:
    return [message async for message in client.watch_job(job_id)][-1].job


@pytest.mark.slow
async def test_the_next_server_goes_on_from_the_last_range_that_was_recorded(tmp_path: Path) -> None:
    # given a server that was killed with one range of a job recorded, and another one only written
    people = tmp_path / "crm.jsonl"
    people.write_text(
        "".join(f'{{"crmId": "C-{number}", "name": "n{number}"}}\n' for number in range(PEOPLE))
    )
    created = await export_until_it_dies(tmp_path / "data", people, "range")
    lake = tmp_path / "data" / "lake" / created.spec.destination.dataset_id
    left = {path for path in lake.rglob("*.parquet") if path.parent.name == "1"}

    # when the next one starts
    with served(tmp_path) as (_, address):
        async with Client(address) as client:
            job = await finished(client, created.id)
            files = await client.list_files(job.batch_id)
    counted = {Path(unquote(urlsplit(file.location).path)) for file in files}
    rows = Counter(row for path in counted for row in pq.read_table(path)["crmId"].to_pylist())

    # then the job has succeeded with every row once, and says what happened
    assert (job.state, job.attempt) == (JobState.JOB_STATE_SUCCEEDED, 2)
    assert [(error.code, error.attempt) for error in job.errors] == [("LEASE_LOST", 1)]
    assert rows == Counter(f"C-{number}" for number in range(PEOPLE))
    # with the range that was recorded as it was, and without the other one
    assert len(left) == 2
    assert len(counted & {path.resolve() for path in left}) == 1
    assert {path.resolve() for path in lake.rglob("*.parquet")} == counted
    # and the time of the dead attempt is counted as lost
    spent = sum((phase.time.ToTimedelta() for phase in job.metrics.phases), timedelta())
    assert spent == job.metrics.total_time.ToTimedelta()
    assert JobPhase.JOB_PHASE_LOST in [phase.phase for phase in job.phases]
