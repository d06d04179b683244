"""A batch per segment: all of them visible at the same moment, or none."""

from __future__ import annotations

from typing import Any

import pytest_asyncio

from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller

POLICY = "timestampOrdered-none-mp"


def person(number: int, *segments: str) -> dict[str, Any]:
    entry = {"status": "realized", "lastQualificationTime": "2026-03-01T00:00:00Z"}
    return {"crmId": f"C{number}", "segmentMembership": {"ups": dict.fromkeys(segments, entry)}}


@pytest_asyncio.fixture(loop_scope="session")
async def destination(caller: Caller) -> str:
    crm = await caller.dataset("record", {"crmId": "CRM"})
    people = [person(1, "gold"), person(2, "gold", "vip"), person(3, "vip"), person(4, "other"), person(5)]
    await caller.upload(crm, "people", people)
    return await caller.dataset("union")


def per_segment(*segments: str) -> dict[str, Any]:
    named = [job_pb2.SegmentFilter(segment_id=segment) for segment in segments]
    return {
        "policy": POLICY,
        "filter": job_pb2.ExportFilter(segments=named),
        "segment_per_batch": True,
        "fields": ["crmId"],
    }


async def batch_of(caller: Caller, batch_id: str) -> batch_pb2.Batch:
    request = ds.GetBatchRequest(batch_id=batch_id)
    return (await caller.datasets.GetBatch(request, metadata=caller.metadata)).batch


async def test_a_profile_is_in_the_batch_of_each_segment_it_is_in(caller: Caller, destination: str) -> None:
    job = await caller.export(destination, **per_segment("vip", "gold", "nobody"))

    assert job.batch_id == ""
    assert [(one.segment_id, one.namespace, len(one.statuses)) for one in job.batches] == [
        ("vip", "ups", 2),
        ("gold", "ups", 2),
        ("nobody", "ups", 2),
    ]
    found = {
        one.segment_id: sorted(row["crmId"] for row in await caller.rows(one.batch_id)) for one in job.batches
    }
    assert found == {"vip": ["C2", "C3"], "gold": ["C1", "C2"], "nobody": []}
    batch_ids = {row["_batch_id"] for one in job.batches for row in await caller.rows(one.batch_id)}
    assert batch_ids == {one.batch_id for one in job.batches[:2]}
    assert (
        job.metrics.profiles_exported,
        job.metrics.rows_written,
        job.metrics.left_out.not_in_segments,
    ) == (3, 4, 2)
    assert list(job.notes) == ["No profile has an entry for the segment 'nobody' of the namespace 'ups'."]
    batches = [await batch_of(caller, one.batch_id) for one in job.batches]
    assert [(batch.state, batch.rows, batch.job_id) for batch in batches] == [
        (batch_pb2.BATCH_STATE_SUCCEEDED, rows, job.id) for rows in (2, 2, 0)
    ]


async def test_one_segments_batch_can_be_taken_back_alone(caller: Caller, destination: str) -> None:
    job = await caller.export(destination, **per_segment("vip", "gold"))
    vip, gold = (one.batch_id for one in job.batches)

    await caller.revert(vip)

    assert await caller.visible_batches(destination) == [gold]
    assert len(await caller.rows(gold)) == 2


async def test_a_replayed_create_keeps_its_batches(caller: Caller, destination: str) -> None:
    first = await caller.job(destination, request_id="once", **per_segment("vip", "gold"))

    again = await caller.job(destination, request_id="once", **per_segment("vip", "gold"))

    assert [one.batch_id for one in again.batches] == [one.batch_id for one in first.batches]
    await caller.finished(first.id)
