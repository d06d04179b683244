from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    export_service_pb2,
    profile_pb2,
    profile_service_pb2,
    schema_service_pb2,
)
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE
from tests.service.harness import Caller, export_spec, refusal_of, replay, upload_messages

ds, es, ps, ss = dataset_service_pb2, export_service_pb2, profile_service_pb2, schema_service_pb2
NOT_FOUND, UNIMPLEMENTED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED
KNOWN = profile_pb2.Identity(namespace="CRM", id="1")
Call = Callable[[Caller, "Owned"], Any]


@dataclass(frozen=True)
class Owned:
    """What the first tenant has."""

    source: str
    union: str
    batch: str
    job: int
    policy: str
    file_name: str
    schema: str


def unary(service: str, method: str, make: Callable[[Owned], Any]) -> Call:
    return lambda caller, owned: getattr(getattr(caller, service), method)(
        make(owned), metadata=caller.metadata
    )


async def first_message(stream: Any) -> Any:
    return await stream.read()


def streamed(service: str, method: str, make: Callable[[Owned], Any]) -> Call:
    return lambda caller, owned: first_message(unary(service, method, make)(caller, owned))


NAMES_A_RESOURCE: dict[str, Call] = {
    "GetDataset": unary("datasets", "GetDataset", lambda o: ds.GetDatasetRequest(dataset_id=o.source)),
    "UploadBatch": lambda caller, o: caller.datasets.UploadBatch(
        replay(upload_messages(o.source, "stolen", b"")), metadata=caller.metadata
    ),
    "GetBatch": unary("datasets", "GetBatch", lambda o: ds.GetBatchRequest(batch_id=o.batch)),
    "ListBatches": unary("datasets", "ListBatches", lambda o: ds.ListBatchesRequest(dataset_id=o.source)),
    "ListBatchFiles": unary(
        "datasets", "ListBatchFiles", lambda o: ds.ListBatchFilesRequest(batch_id=o.batch)
    ),
    "ReadBatchFile": streamed(
        "datasets",
        "ReadBatchFile",
        lambda o: ds.ReadBatchFileRequest(batch_id=o.batch, file_name=o.file_name),
    ),
    "UpdateDataset": unary(
        "datasets", "UpdateDataset", lambda o: ds.UpdateDatasetRequest(dataset_id=o.source, name="x")
    ),
    "UndeleteDataset": unary(
        "datasets", "UndeleteDataset", lambda o: ds.UndeleteDatasetRequest(dataset_id=o.source)
    ),
    "DeleteDataset": unary(
        "datasets", "DeleteDataset", lambda o: ds.DeleteDatasetRequest(dataset_id=o.source)
    ),
    "PreviewDataset": unary(
        "datasets", "PreviewDataset", lambda o: ds.PreviewDatasetRequest(dataset_id=o.source)
    ),
    "CreateBatch": unary("datasets", "CreateBatch", lambda o: ds.CreateBatchRequest(dataset_id=o.source)),
    "CompleteBatch": unary("datasets", "CompleteBatch", lambda o: ds.CompleteBatchRequest(batch_id=o.batch)),
    "AbortBatch": unary("datasets", "AbortBatch", lambda o: ds.AbortBatchRequest(batch_id=o.batch)),
    "RevertBatch": unary("datasets", "RevertBatch", lambda o: ds.RevertBatchRequest(batch_id=o.batch)),
    "GetReceipt": unary("datasets", "GetReceipt", lambda o: ds.GetReceiptRequest(batch_id=o.batch)),
    "ListRejectedRows": unary(
        "datasets", "ListRejectedRows", lambda o: ds.ListRejectedRowsRequest(batch_id=o.batch)
    ),
    "GetSchema": unary("schemas", "GetSchema", lambda o: ss.GetSchemaRequest(schema_id=o.schema)),
    "GetMergePolicy": unary(
        "profiles", "GetMergePolicy", lambda o: ps.GetMergePolicyRequest(merge_policy_id=o.policy)
    ),
    "UpdateMergePolicy": unary(
        "profiles",
        "UpdateMergePolicy",
        lambda o: ps.UpdateMergePolicyRequest(merge_policy_id=o.policy, is_default=True),
    ),
    "DeleteMergePolicy": unary(
        "profiles", "DeleteMergePolicy", lambda o: ps.DeleteMergePolicyRequest(merge_policy_id=o.policy)
    ),
    "GetProfile": unary("profiles", "GetProfile", lambda _: ps.GetProfileRequest(identity=KNOWN)),
    "ListProfileEvents": unary(
        "profiles", "ListProfileEvents", lambda _: ps.ListProfileEventsRequest(identity=KNOWN)
    ),
    "CreateJob": unary("exports", "CreateJob", lambda o: es.CreateJobRequest(spec=export_spec(o.union))),
    "EstimateJob": unary(
        "exports", "EstimateJob", lambda o: es.EstimateJobRequest(spec=export_spec(o.union))
    ),
    "GetJob": unary("exports", "GetJob", lambda o: es.GetJobRequest(job_id=o.job)),
    "CancelJob": unary("exports", "CancelJob", lambda o: es.CancelJobRequest(job_id=o.job)),
    "WatchJob": streamed("exports", "WatchJob", lambda o: es.WatchJobRequest(job_id=o.job)),
    "WatchJobs": streamed("exports", "WatchJobs", lambda o: es.WatchJobsRequest(dataset_id=o.union)),
}
NOT_BUILT: dict[str, Call] = {
    "DeleteProfile": unary("profiles", "DeleteProfile", lambda _: ps.DeleteProfileRequest()),
}
NAMES_NOTHING = {
    "CreateDataset",
    "ListDatasets",
    "CreateSchema",
    "ListSchemas",
    "GetUnionSchema",
    "CreateMergePolicy",
    "ListMergePolicies",
    "ListJobs",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def owned(channel: grpc.aio.Channel) -> Owned:
    caller = Caller(channel, "owner")
    source, union = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "mine", [{"id": "1"}])
    job = await caller.export(union)
    [file] = await caller.files("mine")
    schema = (
        await caller.schema({"$id": "https://example.com/own", "title": "Own", "type": "object"})
    ).schema.id
    policy = await caller.policy(IDENTITY_GRAPH_NONE)
    return Owned(source, union, "mine", job.id, policy, file.name, schema)


def test_the_walk_covers_every_rpc_of_the_contract() -> None:
    methods = {
        method.name
        for file in (ds, es, ps, ss)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert {*NAMES_A_RESOURCE, *NOT_BUILT, *NAMES_NOTHING} == methods


@pytest.mark.parametrize("method", NAMES_A_RESOURCE)
async def test_another_tenants_resource_is_not_found(method: str, owned: Owned, stranger: Caller) -> None:
    refusal = await refusal_of(NAMES_A_RESOURCE[method](stranger, owned))

    assert refusal.code is NOT_FOUND
    assert refusal.reason.endswith("_NOT_FOUND")


@pytest.mark.parametrize("method", NOT_BUILT)
async def test_what_is_not_built_yet_says_so_by_name(method: str, owned: Owned, stranger: Caller) -> None:
    refusal = await refusal_of(NOT_BUILT[method](stranger, owned))

    assert (refusal.code, refusal.reason) == (UNIMPLEMENTED, "NOT_BUILT")
    assert method in refusal.message


async def test_a_policy_of_another_tenant_cannot_be_used(owned: Owned, stranger: Caller) -> None:
    union = await stranger.dataset("union")

    refusal = await refusal_of(stranger.job(union, policy=owned.policy))

    assert (refusal.code, refusal.reason) == (NOT_FOUND, "MERGE_POLICY_NOT_FOUND")


async def test_lists_show_another_tenant_nothing_but_what_is_built_in(owned: Owned, stranger: Caller) -> None:
    datasets = await stranger.datasets.ListDatasets(ds.ListDatasetsRequest(), metadata=stranger.metadata)
    batches = await stranger.datasets.ListBatches(ds.ListBatchesRequest(), metadata=stranger.metadata)
    jobs = await stranger.exports.ListJobs(es.ListJobsRequest(), metadata=stranger.metadata)
    policies = await stranger.profiles.ListMergePolicies(
        ps.ListMergePoliciesRequest(), metadata=stranger.metadata
    )

    assert (len(datasets.datasets), len(batches.batches), len(jobs.jobs)) == (0, 0, 0)
    schemas = await stranger.schemas.ListSchemas(ss.ListSchemasRequest(), metadata=stranger.metadata)
    assert [policy.id for policy in policies.merge_policies] == ["timestampOrdered-none-mp"]
    assert all(schema.built_in for schema in schemas.schemas)


async def test_the_same_batch_id_and_request_id_are_free_for_another_tenant(
    owned: Owned, stranger: Caller
) -> None:
    source = await stranger.dataset("record", {"id": "CRM"}, request_id="r")

    batch = await stranger.upload(source, "mine", [{"id": "2"}])

    assert batch.rows == 1


async def test_a_dataset_is_listed_to_its_own_tenant_page_by_page(caller: Caller) -> None:
    made = [await caller.dataset("record", name=f"set {index}") for index in range(5)]

    listed, token = list[str](), ""
    while True:
        request = ds.ListDatasetsRequest(page_size=2, page_token=token)
        page = await caller.datasets.ListDatasets(request, metadata=caller.metadata)
        listed += [dataset.id for dataset in page.datasets]
        token = page.next_page_token
        if not token:
            break

    assert listed == made
    assert page.datasets[0].kind == dataset_pb2.DATASET_KIND_RECORD
