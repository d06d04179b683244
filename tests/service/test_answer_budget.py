"""Answers have a budget of bytes: pages of lists end early, and the server reads no more than it tells."""

from __future__ import annotations

import json
import secrets
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.domain.lists import MAX_PAGE_BYTES
from profile_export.v1 import dataset_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from tests.service.conftest import settings_for
from tests.service.harness import SCHEMAS, Caller, export_spec

WIDE, MANY = 240, 12
"""How many long names a large thing has, and how many large things there are: three megabytes of each."""
KNOWN = profile_pb2.Identity(namespace="CRM", id="1")
TEXT = dataset_pb2.SCALAR_TYPE_STRING
CHANNEL = (("grpc.max_receive_message_length", 64 * 2**20),)


def long(number: int) -> str:
    return f"{number:04}".ljust(1_000, "n")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)],
)
async def idle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[grpc.aio.Channel]:
    """A server on which no job ever runs."""
    async with AsyncExitStack() as open_ones:
        options: dict[str, Any] = {"workers": "0"}
        if request.param == "postgresql":
            database = request.getfixturevalue("postgres").database(with_tables=True)
            options["database_url"] = await open_ones.enter_async_context(database)
        server = Application(load({**settings_for(tmp_path_factory.mktemp("idle")), **options}, {}))
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", CHANNEL)
        yield await open_ones.enter_async_context(channel)
        await server.stop()


@pytest.fixture
def caller(idle: grpc.aio.Channel) -> Caller:
    return Caller(idle, f"org-{secrets.token_hex(6)}")


async def read_all(call: Any, request: Any, caller: Caller, items: str) -> tuple[list[Any], list[int], int]:
    """Read a list to its end; return its items, the bytes of its pages, and the most memory that any of it took."""
    found: list[Any] = []
    sizes = []
    tracemalloc.start()
    try:
        while True:
            answer = await call(request, metadata=caller.metadata)
            sizes.append(answer.ByteSize())
            found += getattr(answer, items)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return found, sizes, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_within_budget(sizes: list[int]) -> None:
    assert len(sizes) > 1  # of three megabytes
    assert max(sizes) < MAX_PAGE_BYTES + 1_000


@pytest.mark.slow
async def test_jobs_datasets_and_schemas_come_in_pages_of_two_megabytes(caller: Caller) -> None:
    out = await caller.dataset("union")
    spec = export_spec(out, fields=[f"segmentMembership.ups.{long(number)}" for number in range(WIDE)])
    paths = {long(number): TEXT for number in range(WIDE)}
    jobs, datasets = [], [out]
    for number in range(MANY):
        request = es.CreateJobRequest(spec=spec)
        jobs.append((await caller.exports.CreateJob(request, metadata=caller.metadata)).job.id)
        datasets.append(await caller.dataset("record", {"id": "CRM"}, declared=paths))
        description = long(number) * WIDE
        await caller.schema({"$id": f"https://x.org/{number}", "type": "object", "title": description})

    listed_jobs, job_sizes, job_memory = await read_all(
        caller.exports.ListJobs, es.ListJobsRequest(page_size=1_000), caller, "jobs"
    )
    listed_datasets, dataset_sizes, _ = await read_all(
        caller.datasets.ListDatasets, ds.ListDatasetsRequest(page_size=1_000), caller, "datasets"
    )
    listed_schemas, schema_sizes, _ = await read_all(
        caller.schemas.ListSchemas, ss.ListSchemasRequest(page_size=1_000), caller, "schemas"
    )

    assert [job.id for job in listed_jobs] == jobs[::-1]
    assert [dataset.id for dataset in listed_datasets] == datasets
    registered = [schema.id for schema in listed_schemas if schema.id not in SCHEMAS.values()]
    assert registered == [f"https://x.org/{number}" for number in range(MANY)]
    for sizes in (job_sizes, dataset_sizes, schema_sizes):
        assert_within_budget(sizes)
    # The client has what it was told (twice, while it is taken apart); the server has read a few pages at the most.
    assert job_memory - 2 * sum(job_sizes) < 10 * MAX_PAGE_BYTES


async def test_a_watch_of_all_jobs_lists_large_ones_in_small_messages(caller: Caller) -> None:
    out = await caller.dataset("union")
    spec = export_spec(out, fields=[f"segmentMembership.ups.{long(number)}" for number in range(WIDE)])
    jobs = [
        (await caller.exports.CreateJob(es.CreateJobRequest(spec=spec), metadata=caller.metadata)).job.id
        for _ in range(MANY)
    ]

    listed, sizes = [], []
    stream: Any = caller.exports.WatchJobs(es.WatchJobsRequest(), metadata=caller.metadata)
    while not (message := await stream.read()).list_complete:
        listed += [change.job_id for change in message.changes]
        sizes.append(message.ByteSize())
    stream.cancel()
    again: Any = caller.exports.WatchJobs(es.WatchJobsRequest(after_revision=0), metadata=caller.metadata)
    told: list[int] = []
    while len(told) < MANY:
        told += [change.job_id for change in (await again.read()).changes]
    again.cancel()

    assert (listed, told) == (jobs, jobs)
    assert max(sizes) < 600 * 1_024


async def test_batches_with_long_errors_come_in_pages_of_two_megabytes(caller: Caller) -> None:
    name = "n" * 1_000
    source = await caller.dataset("record", {"id": "CRM"}, declared={name: dataset_pb2.SCALAR_TYPE_LONG})
    rows = [{"id": "1"}, *({"id": "1", name: "no number"} for _ in range(100))]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    for number in range(MANY):
        await caller.send(source, f"b{number:02}", data, max_bad_records=100)

    batches, sizes, _ = await read_all(
        caller.datasets.ListBatches, ds.ListBatchesRequest(page_size=1_000), caller, "batches"
    )

    assert [batch.id for batch in batches] == [f"b{number:02}" for number in range(MANY)]
    assert {len(batch.errors) for batch in batches} == {100}
    assert_within_budget(sizes)


async def test_events_previews_and_rejected_rows_come_in_pages_of_two_megabytes(caller: Caller) -> None:
    web = await caller.dataset("event", {"id": "CRM"})
    rows = [
        {"id": "1", "_id": f"e{number:03}", "timestamp": "2026-01-01T00:00:00Z", "text": "x" * 9_000}
        for number in range(350)
    ]
    await caller.upload(web, "events", rows)
    source = await caller.dataset("record", {"id": "CRM"})
    bad = [{"id": "1"}, *({"id": True, "text": "x" * 90_000} for _ in range(35))]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in bad)
    await caller.send(source, "rejects", data, max_bad_records=100)

    request = ps.ListProfileEventsRequest(identity=KNOWN, page_size=1_000)
    events, event_sizes, _ = await read_all(caller.profiles.ListProfileEvents, request, caller, "events")
    rejects, rejected_sizes, _ = await read_all(
        caller.datasets.ListRejectedRows,
        ds.ListRejectedRowsRequest(batch_id="rejects", page_size=1_000),
        caller,
        "rows",
    )
    preview = await caller.datasets.PreviewDataset(
        ds.PreviewDatasetRequest(dataset_id=web, row_count=1_000), metadata=caller.metadata
    )

    assert [event.id for event in events] == [f"e{number:03}" for number in range(350)]
    assert [row.row_number for row in rejects] == list(range(2, 37))
    assert_within_budget(event_sizes)
    assert_within_budget(rejected_sizes)
    assert MAX_PAGE_BYTES // 2 < preview.ByteSize() < MAX_PAGE_BYTES + 1_000
