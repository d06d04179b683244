from __future__ import annotations

from profile_export.v1 import job_pb2
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_PDG
from tests.service.harness import Caller


async def test_three_sources_become_one_row_per_person(caller: Caller) -> None:
    crm = await caller.dataset("record", {"crmId": "CRMID", "personalEmail.address": "Email"})
    shop = await caller.dataset("record", {"email": "Email"})
    visits = await caller.dataset("event")
    out = await caller.dataset("union")
    await caller.upload(crm, "crm-1", [{"crmId": 7, "personalEmail": {"address": "a@x.org"}, "city": "Oslo"}])
    await caller.upload(shop, "shop-1", [{"email": "a@x.org", "city": "Bergen"}, {"email": "b@x.org"}])
    event = {
        "_id": "e1",
        "timestamp": "2026-01-01T00:00:00Z",
        "identityMap": {"email": [{"id": "a@x.org", "primary": True}]},
    }
    await caller.upload(visits, "visits-1", [event])

    job = await caller.export(out, policy=await caller.policy(IDENTITY_GRAPH_PDG), events=job_pb2.EventList())

    rows = await caller.rows(job.batch_id)
    assert len(rows) == 2
    merged = next(row for row in rows if row["crmId"] == "7")
    assert merged["city"] == "Bergen"
    assert [event["_id"] for event in merged["timeSeriesEvents"]] == ["e1"]
    assert dict(merged["identityMap"]).keys() == {"CRMID", "Email"}
