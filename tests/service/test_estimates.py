"""What a job would do: the figures of an estimate are those of the job that follows."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.service.harness import Caller, export_spec, refusal_of

EXACT, ESTIMATED = es.EXACTNESS_EXACT, es.EXACTNESS_ESTIMATED
IN_GOLD = job_pb2.SegmentFilter(segment_id="gold")


def person(number: int, **value: Any) -> dict[str, Any]:
    return {"crmId": f"C{number}", "name": f"Person {number}", **value}


def member(segment: str) -> dict[str, Any]:
    return {"ups": {segment: {"status": "realized", "lastQualificationTime": "2026-03-01T00:00:00Z"}}}


class Sources:
    """A tenant with ten people, four of them in a segment, one who did something, and one of whom that is all."""

    def __init__(self, caller: Caller, destination: str) -> None:
        self.caller, self.destination = caller, destination

    async def estimate(self, sample_rows: int = 0, **spec: Any) -> es.EstimateJobResponse:
        request = es.EstimateJobRequest(spec=export_spec(self.destination, **spec), sample_rows=sample_rows)
        return await self.caller.exports.EstimateJob(request, metadata=self.caller.metadata)


async def filled(caller: Caller) -> Sources:
    crm = await caller.dataset("record", {"crmId": "CRM"})
    web = await caller.dataset("event", {"crmId": "CRM"})
    gold = [person(number, segmentMembership=member("gold")) for number in range(4)]
    await caller.upload(crm, "people", [*gold, *(person(number) for number in range(4, 10))])
    visits = [
        {"crmId": crm_id, "_id": f"{crm_id}-{visit}", "timestamp": f"2026-03-0{visit + 1}T00:00:00Z"}
        for crm_id in ("C1", "nobody else knows")
        for visit in range(3)
    ]
    await caller.upload(web, "visits", visits)
    return Sources(caller, await caller.dataset("union"))


def figures(response: es.EstimateJobResponse) -> dict[str, int]:
    left_out = {one.reason: one.profiles.value for one in response.left_out if one.profiles.value}
    return {
        "profiles": response.profiles.value,
        "events": response.events.value,
        "rows": response.rows.value,
        **left_out,
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {"profiles": 10, "events": 0, "rows": 10, "events_only": 1}),
        (
            {"events": job_pb2.EventList(), "filter": job_pb2.ExportFilter(empty_profiles=True)},
            {"profiles": 11, "events": 6, "rows": 11},
        ),
        (
            {"filter": job_pb2.ExportFilter(segments=[IN_GOLD])},
            {"profiles": 4, "events": 0, "rows": 4, "events_only": 1, "not_in_segments": 6},
        ),
    ],
    ids=["everything", "events too", "a segment"],
)
async def test_an_estimate_of_few_rows_counts_them_all_and_is_what_the_job_does(
    caller: Caller, spec: dict[str, Any], expected: dict[str, int]
) -> None:
    sources = await filled(caller)

    estimate = await sources.estimate(**spec)
    job = await caller.export(sources.destination, **spec)

    assert figures(estimate) == expected
    exact = (estimate.profiles, estimate.events, estimate.rows, *(one.profiles for one in estimate.left_out))
    assert {(figure.exactness, figure.at_least, figure.at_most) for figure in exact} == {
        (EXACT, figure.value, figure.value) for figure in exact
    }
    assert expected["profiles"] == job.metrics.profiles_exported
    assert expected["rows"] == job.metrics.rows_written
    assert (estimate.files.value, estimate.files.exactness) == (job.metrics.files_written, ESTIMATED)
    assert 0.5 < estimate.bytes.value / job.metrics.bytes_written < 2
    assert estimate.spec == job.spec


async def test_with_a_batch_per_segment_rows_are_those_of_all_batches(caller: Caller) -> None:
    sources = await filled(caller)
    again = job_pb2.SegmentFilter(segment_id="nobody")

    estimate = await sources.estimate(
        filter=job_pb2.ExportFilter(segments=[IN_GOLD, again]),
        policy="timestampOrdered-none-mp",
        segment_per_batch=True,
    )

    assert (estimate.profiles.value, estimate.rows.value) == (4, 4)
    assert list(estimate.notes) == [
        "No profile has an entry for the segment 'nobody' of the namespace 'ups'."
    ]


async def test_an_estimate_leaves_no_trace(caller: Caller, data_dir: Path) -> None:
    sources = await filled(caller)

    await sources.estimate(sample_rows=5, filter=job_pb2.ExportFilter(segments=[IN_GOLD]))

    jobs = await caller.exports.ListJobs(es.ListJobsRequest(), metadata=caller.metadata)
    assert list(jobs.jobs) == []
    assert await caller.visible_batches(sources.destination) == []
    assert list((data_dir / "lake" / "estimates").iterdir()) == []
    assert not (data_dir / "lake" / sources.destination).exists()


async def test_sample_rows_are_rows_as_the_job_writes_them(caller: Caller) -> None:
    sources = await filled(caller)

    estimate = await sources.estimate(sample_rows=3, fields=["crmId", "name"])
    job = await caller.export(sources.destination, fields=["crmId", "name"])

    written = [{"crmId": row["crmId"], "name": row["name"]} for row in await caller.rows(job.batch_id)]
    sampled = [dict(row) for row in estimate.sample_rows]
    assert len(sampled) == 3
    assert all(row in written for row in sampled)


async def test_fields_that_no_source_has_are_listed_with_the_nearest_one(caller: Caller) -> None:
    sources = await filled(caller)

    estimate = await sources.estimate(
        sample_rows=1, fields=["nmae", "name", "crmid"], events=job_pb2.EventList(fields=["timestmap"])
    )

    assert [(one.path, one.nearest) for one in estimate.unknown_fields] == [
        ("nmae", "name"),
        ("crmid", "crmId"),
        ("timestmap", "timestamp"),
    ]
    assert [set(row) - {"timeSeriesEvents"} for row in estimate.sample_rows] == [{"name"}]
    assert list(estimate.spec.fields) == ["nmae", "name", "crmid"]


async def test_where_no_field_is_known_identities_alone_are_kept(caller: Caller) -> None:
    sources = await filled(caller)

    estimate = await sources.estimate(sample_rows=1, fields=["nmae"])

    assert [set(row) for row in estimate.sample_rows] == [{"identityMap"}]


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        ({"sample_rows": 101}, grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "sample_rows"),
        ({"sample_rows": -1}, grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "sample_rows"),
        ({"policy": "none such"}, grpc.StatusCode.NOT_FOUND, "MERGE_POLICY_NOT_FOUND", ""),
        (
            {"fields": ["timeSeriesEvents"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_INVALID",
            "spec.fields[0]",
        ),
        (
            {"segment_per_batch": True},
            grpc.StatusCode.INVALID_ARGUMENT,
            "SEGMENTS_REQUIRED",
            "spec.destination.segment_per_batch",
        ),
    ],
)
async def test_what_create_job_refuses_an_estimate_refuses_too(
    caller: Caller, change: dict[str, Any], code: grpc.StatusCode, reason: str, field: str
) -> None:
    sources = await filled(caller)

    refusal = await refusal_of(sources.estimate(**change))

    assert (refusal.code, refusal.reason) == (code, reason)
    assert refusal.fields == ([field] if field else [])


async def test_of_a_destination_that_is_not_there_nothing_is_estimated(caller: Caller) -> None:
    refusal = await refusal_of(Sources(caller, secrets.token_hex(12)).estimate())

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")


async def test_of_no_rows_nothing_would_come(caller: Caller) -> None:
    estimate = await Sources(caller, await caller.dataset("union")).estimate(sample_rows=10)

    assert figures(estimate) == {"profiles": 0, "events": 0, "rows": 0}
    assert (estimate.bytes.value, estimate.files.value) == (0, 0)
    assert list(estimate.sample_rows) == []
