"""The request payloads of the guide this service began with, in gRPC's words: one type of data or the other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.v1 import job_pb2
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_PDG
from tests.service.harness import Caller

PERSON = {"crmId": "C1", "personalEmail": {"address": "ada@example.com"}, "city": "Oslo"}
VISIT = {
    "_id": "v1",
    "timestamp": "2018-01-01T00:00:00Z",
    "identityMap": {"Email": [{"id": "ada@example.com", "primary": True}]},
    "environment": {"browserDetails": {"name": "Lynx", "version": "2"}, "ipV4": "192.0.2.1"},
}
FIRST_OF_2019 = Timestamp(seconds=int(datetime(2019, 1, 1, tzinfo=UTC).timestamp()))


async def exported(caller: Caller, **spec: Any) -> list[dict[str, Any]]:
    crm = await caller.dataset("record", {"crmId": "CRM", "personalEmail.address": "Email"})
    web = await caller.dataset("event")
    await caller.upload(crm, "people", [PERSON])
    await caller.upload(web, "visits", [VISIT])
    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    job = await caller.export(
        await caller.dataset("union"), policy=policy, schema_name="_xdm.context.profile", **spec
    )

    rows = await caller.rows(job.batch_id)
    return [{name: value for name, value in row.items() if name[0] != "_"} for row in rows]


async def test_profiles_only_has_no_events(caller: Caller) -> None:
    rows = await exported(caller, fields=["identities.id", "personalEmail.address"])

    assert rows == [
        {
            "identityMap": [("CRM", [{"id": "C1"}]), ("Email", [{"id": "ada@example.com"}])],
            "personalEmail": {"address": "ada@example.com"},
        }
    ]


async def test_events_only_has_identities_and_no_attribute(caller: Caller) -> None:
    paths = ["environment.browserDetails.name", "environment.browserDetails.version"]
    window = job_pb2.EventFilter(from_ingest_time=FIRST_OF_2019)

    rows = await exported(
        caller, fields=["identityMap"], events=job_pb2.EventList(fields=paths, filter=window)
    )

    [row] = rows
    assert row.keys() == {"identityMap", "timeSeriesEvents"}
    assert row["timeSeriesEvents"] == [{"environment": {"browserDetails": {"name": "Lynx", "version": "2"}}}]
