"""Adobe's published example of merge policies: who Daniel Wright is under each of them, as exported rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest_asyncio

from profile_export.v1 import job_pb2
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE, IDENTITY_GRAPH_PDG
from tests.service.harness import Caller

LOYALTY_ID, CRM_ID = "5625458", "112ca06ed53d3db37e4cea49cc45b71e"
LOYALTY = {"loyaltyId": LOYALTY_ID, "crmId": CRM_ID, "firstName": "Daniel", "city": "New York City"}
CRM = {"crmId": CRM_ID, "firstName": "Danny", "city": "Portland", "phone": "+1 555", "email": "d@example.com"}
PURCHASE = {"_id": "purchase", "timestamp": "2020-09-01T00:00:00Z", "loyaltyId": LOYALTY_ID}
FIELDS = ("firstName", "city", "phone", "email", "timeSeriesEvents")


@dataclass
class Luma:
    """The datasets of the example, the loyalty record ingested before that of the CRM."""

    caller: Caller
    loyalty: str
    crm: str
    out: str

    async def rows(self, policy: str) -> tuple[list[dict[str, Any]], job_pb2.LeftOut]:
        """Export under a policy; return what each row says of the person, without nulls, and who was left out."""
        job = await self.caller.export(
            self.out,
            policy=policy,
            fields=["firstName", "city", "phone", "email"],
            events=job_pb2.EventList(fields=["_id"]),
        )
        rows = await self.caller.rows(job.batch_id)
        told = [{name: row[name] for name in FIELDS if row[name] is not None} for row in rows]
        return told, job.metrics.left_out


@pytest_asyncio.fixture(loop_scope="session")
async def luma(caller: Caller) -> Luma:
    loyalty = await caller.dataset("record", {"loyaltyId": "loyaltyId", "crmId": "crmId"})
    crm = await caller.dataset("record", {"crmId": "crmId"})
    offline = await caller.dataset("event", {"loyaltyId": "loyaltyId"})
    await caller.upload(loyalty, "loyalty", [LOYALTY])
    await caller.upload(crm, "crm", [CRM])
    await caller.upload(offline, "purchases", [PURCHASE])
    return Luma(caller, loyalty, crm, await caller.dataset("union"))


async def test_by_time_he_is_danny_as_the_crm_said_last(luma: Luma) -> None:
    rows, left_out = await luma.rows(await luma.caller.policy(IDENTITY_GRAPH_PDG))

    assert rows == [
        {
            "firstName": "Danny",
            "city": "Portland",
            "phone": "+1 555",
            "email": "d@example.com",
            "timeSeriesEvents": [{"_id": "purchase"}],
        }
    ]
    assert left_out == job_pb2.LeftOut()


async def test_where_loyalty_comes_first_he_is_daniel_with_the_phone_of_the_crm(luma: Luma) -> None:
    policy = await luma.caller.policy(IDENTITY_GRAPH_PDG, [luma.loyalty, luma.crm])

    rows, _ = await luma.rows(policy)

    assert rows == [
        {
            "firstName": "Daniel",
            "city": "New York City",
            "phone": "+1 555",
            "email": "d@example.com",
            "timeSeriesEvents": [{"_id": "purchase"}],
        }
    ]


async def test_of_loyalty_alone_and_without_a_graph_nobody_is_found_by_the_crm_id(luma: Luma) -> None:
    policy = await luma.caller.policy(IDENTITY_GRAPH_NONE, [luma.loyalty])

    rows, left_out = await luma.rows(policy)

    # then the profile of the CRM id is not among the rows but among those that were left out
    assert len(rows) == 1
    assert left_out == job_pb2.LeftOut(not_listed=1)


async def test_of_loyalty_alone_he_is_daniel_without_phone_and_email_but_with_his_events(luma: Luma) -> None:
    policy = await luma.caller.policy(IDENTITY_GRAPH_NONE, [luma.loyalty])

    rows, _ = await luma.rows(policy)

    assert rows == [
        {"firstName": "Daniel", "city": "New York City", "timeSeriesEvents": [{"_id": "purchase"}]}
    ]
