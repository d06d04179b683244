"""One tenant's burst of calls keeps no call of another tenant behind all of it."""

from __future__ import annotations

import asyncio

from profile_export.api.interceptors import MOST_AT_ONCE
from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import SCHEMAS, Caller

SCHEMA = dataset_pb2.SchemaRef(id=SCHEMAS["record"])


async def test_a_burst_of_calls_keeps_no_call_of_another_tenant_behind_all_of_it(
    caller: Caller, stranger: Caller
) -> None:
    async def calls_of(tenant: Caller, name: str) -> str:
        request = ds.CreateDatasetRequest(name=name, schema_ref=SCHEMA)
        return (await tenant.datasets.CreateDataset(request, metadata=tenant.metadata)).dataset.name

    burst = [asyncio.create_task(calls_of(caller, f"burst {number}")) for number in range(120)]
    await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
    await calls_of(stranger, "one")
    answered = sum(call.done() for call in burst)
    await asyncio.gather(*burst)

    # Those that had a place stood before it in the queue, and as many may have got one until it was answered.
    assert answered <= 4 * MOST_AT_ONCE
