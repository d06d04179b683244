from __future__ import annotations

from profile_export.v1.dataset_pb2 import TagValues
from tests.service.harness import Caller


async def test_a_dataset_tagged_so_patches_and_another_replaces(caller: Caller) -> None:
    tags = {"unifiedProfile": TagValues(values=["enabled:true", "isUpsert:true"])}
    crm = await caller.dataset("record", {"crmId": "CRM"}, tags=tags)
    shop = await caller.dataset("record", {"crmId": "CRM"})
    out = await caller.dataset("union")
    ann = {"crmId": "ann", "tags": ["a"]}
    await caller.upload(crm, "crm-1", [ann | {"name": "Ann", "city": "Oslo"}])
    await caller.upload(shop, "shop-1", [ann | {"phone": "1", "street": "Main"}])
    await caller.upload(crm, "crm-2", [ann | {"name": "Anna", "tags": []}])
    await caller.upload(shop, "shop-2", [{"crmId": "ann", "phone": "2"}])

    job = await caller.export(out, fields=["name", "city", "tags", "phone", "street"])

    (row,) = await caller.rows(job.batch_id)
    del row["_batch_id"], row["_profile_id"]
    assert row == {"name": "Anna", "city": "Oslo", "tags": [], "phone": "2", "street": None}
    assert job.metrics.fragments_read == 2
