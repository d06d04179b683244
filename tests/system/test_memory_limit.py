"""Exports of data that takes several times the memory that its engine has for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb
import pyarrow.parquet as pq
import pytest

from profile_export.client import (
    Client,
    DatasetKind,
    IdentityField,
    IdentityGraph,
    JobPhase,
    JobState,
    UploadFormat,
    export_spec,
)
from tests.system.terminal import served

LIMIT_MB = 512
SOURCES = 2
NOTE_BYTES = 10_700
"""Of text that compresses well: its files say little of the memory it takes."""
SLACK_SECONDS = 6
CRM, EMAIL = IdentityField(path="crmId", namespace="CRM"), IdentityField(path="email", namespace="Email")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "times", "identities"),
    [
        (IdentityGraph.IDENTITY_GRAPH_NONE, 3, ([CRM], [CRM])),
        (IdentityGraph.IDENTITY_GRAPH_PDG, 1, ([CRM, EMAIL], [EMAIL])),
    ],
    ids=["none", "pdg"],
)
async def test_data_beyond_the_limit_is_exported_with_progress_that_tells_the_truth(
    tmp_path: Path, graph: IdentityGraph.ValueType, times: int, identities: Sequence[Sequence[IdentityField]]
) -> None:
    persons = times * LIMIT_MB * 10**6 // (SOURCES * NOTE_BYTES)
    with served(tmp_path, "--memory-limit-mb", str(LIMIT_MB)) as (_, address):
        async with Client(address) as client:
            for source, (primary, *others) in enumerate(identities):
                crm = await client.create_dataset(
                    f"source {source}",
                    DatasetKind.DATASET_KIND_RECORD,
                    identities=[
                        IdentityField(path=primary.path, namespace=primary.namespace, primary=True),
                        *others,
                    ],
                )
                upload = notes(tmp_path, source, persons)
                await client.upload(crm.id, upload, UploadFormat.UPLOAD_FORMAT_PARQUET)
            union = await client.create_dataset("people", DatasetKind.DATASET_KIND_UNION)

            policy = await client.create_policy("of the test", graph)
            job = (await client.create_job(export_spec(union.id, policy_id=policy.id))).job
            changes = client.watch_job(job.id)
            progress = [
                (time.monotonic(), change.progress) async for change in changes if change.HasField("progress")
            ]
            ended = time.monotonic()

            job = await client.get_job(job.id)
            assert job.state == JobState.JOB_STATE_SUCCEEDED, job
            assert job.attempt == 1
            assert job.metrics.peak_memory_bytes <= LIMIT_MB * 10**6
            files = [unquote(urlsplit(file.location).path) for file in await client.list_files(job.batch_id)]
            assert wrong_rows(files) == (0, persons)
            assert all(in_order(file) for file in files)

    reached = [(told.phase, told.done) for _, told in progress]
    assert reached == sorted(reached)
    running = [
        (when, told)
        for when, told in progress
        if told.phase == JobPhase.JOB_PHASE_RUN and told.done > told.estimated / 2
    ]
    assert len(running) > 1
    for when, told in running:
        left, eta = ended - when, told.eta.ToTimedelta().total_seconds()
        assert left / 2 - SLACK_SECONDS <= eta <= left * 2 + SLACK_SECONDS


def notes(folder: Path, source: int, persons: int) -> Path:
    """Write an upload of a long text for each person."""
    path = folder / f"{source}.parquet"
    text = f"repeat(md5(i || '-{source}'), {-(-NOTE_BYTES // 32)})"
    duckdb.execute(
        f"COPY (SELECT 'C-' || i AS crmId, 'e' || i AS email, {text} AS note_{source} FROM range({persons}) AS one(i))"
        f" TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)"
    )
    return path


def in_order(file: str) -> bool:
    ids = pq.read_table(file, columns=["_profile_id"])["_profile_id"].to_pylist()
    return bool(ids == sorted(ids))


def wrong_rows(files: list[str]) -> tuple[int, int]:
    """Count the exported rows that are not as they should be, and all persons among them."""
    number = "identityMap['CRM'][1].id[3:]"
    right = " AND ".join(
        f"note_{source} = repeat(md5({number} || '-{source}'), {-(-NOTE_BYTES // 32)})"
        for source in range(SOURCES)
    )
    (found,) = duckdb.execute(
        f"SELECT count(*) FILTER (NOT coalesce({right}, false)), count(DISTINCT {number})"
        f" FROM read_parquet({files})"
    ).fetchall()
    return found
