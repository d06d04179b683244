"""Export requests that cannot be: status, reason and field of each, and that no job comes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.service.harness import Caller, refusal_of

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNBUILT = grpc.StatusCode.UNIMPLEMENTED
DESTINATION, POLICY = "spec.destination.dataset_id", {"id": "timestampOrdered-none-mp"}
SEGMENTS, QUALIFIED = "spec.filter.segments", "spec.filter.segment_qualification_time"
NEW_YEAR, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"
UNKNOWN = "ffffffffffffffffffffffff"


@dataclass(frozen=True)
class Refused:
    """What a request must be refused with. `metadata` is part of what its ErrorInfo says."""

    code: grpc.StatusCode
    reason: str
    field: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


def invalid(reason: str, field: str, **metadata: str) -> Refused:
    return Refused(INVALID, reason, field, tuple(metadata.items()))


def segments(*ids: str, **others: Any) -> dict[str, Any]:
    return {"segments": [{"segment_id": segment_id} for segment_id in ids], **others}


def of_status(*statuses: str | int) -> dict[str, Any]:
    return {"filter": {"segments": [{"segment_id": "gold", "statuses": statuses}]}}


# In the place of `out` comes the id of a union dataset, of `crm` and `web` those of a record and an event dataset.
CASES: dict[str, tuple[dict[str, Any], Refused]] = {
    "no destination": (
        {"destination": {}},
        invalid("FIELD_REQUIRED", DESTINATION),
    ),
    "an unknown dataset": (
        {"destination": {"dataset_id": UNKNOWN}},
        Refused(NOT_FOUND, "DATASET_NOT_FOUND", metadata=(("id", UNKNOWN),)),
    ),
    "records instead of a union": (
        {"destination": {"dataset_id": "crm"}},
        invalid("DESTINATION_NOT_UNION", DESTINATION),
    ),
    "events instead of a union": (
        {"destination": {"dataset_id": "web"}},
        invalid("DESTINATION_NOT_UNION", DESTINATION),
    ),
    "an unknown policy": (
        {"merge_policy": {"id": "mine"}},
        Refused(NOT_FOUND, "MERGE_POLICY_NOT_FOUND", metadata=(("id", "mine"),)),
    ),
    "an unknown version of a policy": (
        {"merge_policy": {**POLICY, "version": 2}},
        Refused(NOT_FOUND, "MERGE_POLICY_NOT_FOUND"),
    ),
    "a policy without an id": (
        {"merge_policy": {}},
        invalid("FIELD_REQUIRED", "spec.merge_policy.id"),
    ),
    "another class": (
        {"schema_name": "_xdm.context.experienceevent"},
        invalid("SCHEMA_NAME_MISMATCH", "spec.schema_name"),
    ),
    "events from later than to": (
        {"event_list": {"filter": {"from_ingest_time": LATER, "to_ingest_time": NEW_YEAR}}},
        invalid("TIME_WINDOW_INVALID", "spec.event_list.filter.from_ingest_time"),
    ),
    "qualified from later than to": (
        {"filter": segments("gold", segment_qualification_time={"start_time": LATER, "end_time": NEW_YEAR})},
        invalid("TIME_WINDOW_INVALID", f"{QUALIFIED}.start_time"),
    ),
    "a status that is not said": (
        of_status("MEMBERSHIP_STATUS_UNSPECIFIED"),
        invalid("FIELD_INVALID", f"{SEGMENTS}[0].statuses[0]"),
    ),
    "an unknown status": (
        of_status("MEMBERSHIP_STATUS_REALIZED", 99),
        invalid("FIELD_INVALID", f"{SEGMENTS}[0].statuses[1]"),
    ),
    "a batch per segment without segments": (
        {"destination": {"dataset_id": "out", "segment_per_batch": True}},
        invalid("SEGMENTS_REQUIRED", "spec.destination.segment_per_batch"),
    ),
    "a qualification time without segments": (
        {"filter": {"segment_qualification_time": {"start_time": NEW_YEAR}}},
        invalid("SEGMENTS_REQUIRED", QUALIFIED),
    ),
    "an empty qualification time": (
        {"filter": segments("gold", segment_qualification_time={})},
        invalid("FIELD_REQUIRED", QUALIFIED),
    ),
    "several segments without a policy": (
        {"filter": segments("gold", "vip")},
        invalid("MERGE_POLICY_REQUIRED", "spec.merge_policy"),
    ),
    "a segment twice": (
        {"merge_policy": POLICY, "filter": segments("gold", "vip", "gold")},
        invalid("FIELD_INVALID", f"{SEGMENTS}[2]"),
    ),
    "a segment twice, its namespace in another case": (
        {
            "merge_policy": POLICY,
            "filter": {"segments": [{"segment_id": "gold"}, {"segment_id": "gold", "namespace": "UPS"}]},
        },
        invalid("FIELD_INVALID", f"{SEGMENTS}[1]"),
    ),
    "a segment without an id": (
        {"filter": {"segments": [{"namespace": "ups"}]}},
        invalid("FIELD_REQUIRED", f"{SEGMENTS}[0].segment_id"),
    ),
    "events among the fields": (
        {"fields": ["id", "timeSeriesEvents.eventType"]},
        invalid("FIELD_INVALID", "spec.fields[1]"),
    ),
    "an unknown path": (
        {"fields": ["id", "person.nmae"]},
        invalid("UNKNOWN_FIELD", "spec.fields[1]", path="person.nmae", nearest="person.name"),
    ),
    "two paths in one": (
        {"fields": ["id,person.name"]},
        invalid("UNKNOWN_FIELD", "spec.fields[0]", path="id,person.name"),
    ),
    "an empty path": (
        {"fields": [""]},
        invalid("UNKNOWN_FIELD", "spec.fields[0]"),
    ),
    "an unknown path of events": (
        {"event_list": {"fields": ["_id", "person.name"]}},
        invalid("UNKNOWN_FIELD", "spec.event_list.fields[1]", path="person.name"),
    ),
    "an unknown member behind a map": (
        {"fields": ["segmentMembership.ups.gold.state"]},
        invalid("UNKNOWN_FIELD", "spec.fields[0]", nearest="segmentMembership.ups.gold.status"),
    ),
    "an unknown engine": (
        {"engine": "polars"},
        invalid("ENGINE_UNKNOWN", "spec.engine"),
    ),
    "no run time at all": (
        {"max_run_time": "0s"},
        invalid("FIELD_INVALID", "spec.max_run_time"),
    ),
    "a run time that ends before it begins": (
        {"max_run_time": "-0.5s"},
        invalid("FIELD_INVALID", "spec.max_run_time"),
    ),
    "a run time of more than a year": (
        {"max_run_time": "31622401s"},
        invalid("FIELD_INVALID", "spec.max_run_time"),
    ),
    "segments to evaluate": (
        {"evaluate_segments": True},
        Refused(UNBUILT, "NOT_BUILT", metadata=(("field", "spec.evaluate_segments"),)),
    ),
}


async def spec_of(caller: Caller, members: dict[str, Any]) -> job_pb2.ExportSpec:
    """Make datasets of every kind, and a spec that names them by their ids."""
    identities = {"id": "CRM"}
    made = {
        "out": await caller.dataset("union"),
        "crm": await caller.dataset("record", identities),
        "web": await caller.dataset("event", identities),
    }
    await caller.upload(made["crm"], "people", [{"id": "1", "person": {"name": "Ann"}}])
    spec = ParseDict({"destination": {"dataset_id": "out"}} | members, job_pb2.ExportSpec())
    named = spec.destination.dataset_id
    spec.destination.dataset_id = made.get(named, named)
    return spec


def create(caller: Caller, spec: job_pb2.ExportSpec) -> Any:
    return caller.exports.CreateJob(es.CreateJobRequest(spec=spec), metadata=caller.metadata)


@pytest.mark.parametrize(("members", "expected"), CASES.values(), ids=CASES)
async def test_a_request_that_cannot_be_is_refused_and_makes_no_job(
    caller: Caller, members: dict[str, Any], expected: Refused
) -> None:
    spec = await spec_of(caller, members)

    refusal = await refusal_of(create(caller, spec))

    assert (refusal.code, refusal.reason) == (expected.code, expected.reason)
    assert refusal.fields == ([expected.field] if expected.field else [])
    assert refusal.metadata.items() >= set(expected.metadata)
    listed = await caller.exports.ListJobs(es.ListJobsRequest(), metadata=caller.metadata)
    assert list(listed.jobs) == []


@pytest.mark.parametrize(
    "field",
    [
        "spec.filter.from_ingest_time",
        "spec.filter.segment_qualification_time.start_time",
        "spec.filter.segment_qualification_time.end_time",
        "spec.event_list.filter.from_ingest_time",
        "spec.event_list.filter.to_ingest_time",
    ],
)
async def test_a_time_that_no_calendar_has_is_refused_wherever_it_stands(caller: Caller, field: str) -> None:
    spec = await spec_of(caller, {"filter": segments("gold")})
    *messages, name = field.removeprefix("spec.").split(".")
    holder: Any = spec
    for message in messages:
        holder = getattr(holder, message)
    getattr(holder, name).seconds = 10**15

    refusal = await refusal_of(create(caller, spec))

    assert (refusal.code, refusal.reason, refusal.fields) == (INVALID, "FIELD_INVALID", [field])


async def test_a_run_time_that_no_clock_has_is_refused(caller: Caller) -> None:
    spec = await spec_of(caller, {})
    spec.max_run_time.seconds = 10**15

    refusal = await refusal_of(create(caller, spec))

    assert (refusal.code, refusal.fields) == (INVALID, ["spec.max_run_time"])


async def test_a_request_without_any_member_needs_a_destination_first(caller: Caller) -> None:
    refusal = await refusal_of(create(caller, job_pb2.ExportSpec()))

    assert (refusal.code, refusal.fields) == (INVALID, [DESTINATION])


async def test_equal_ends_of_both_windows_are_no_error(caller: Caller) -> None:
    at_once = {"start_time": NEW_YEAR, "end_time": NEW_YEAR}
    spec = await spec_of(
        caller,
        {
            "filter": segments("gold", segment_qualification_time=at_once),
            "event_list": {"filter": {"from_ingest_time": NEW_YEAR, "to_ingest_time": NEW_YEAR}},
        },
    )

    job = await caller.finished((await create(caller, spec)).job.id)

    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.metrics.left_out.not_in_segments == 1
