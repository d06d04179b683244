"""Requests that are valid protobuf and odd: each field of each method with what no client sends, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    export_service_pb2,
    job_pb2,
    merge_policy_pb2,
    profile_pb2,
    profile_service_pb2,
    schema_service_pb2,
)
from tests.service.conftest import settings_for
from tests.service.harness import SCHEMAS, Caller, identity_fields, refusal_from

ds, es, ps, ss = dataset_service_pb2, export_service_pb2, profile_service_pb2, schema_service_pb2
METHODS = {
    method.name: method
    for module in (ds, es, ps, ss)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
TEXTS = (
    "",
    "a\0b",
    "..",
    "../../../etc/passwd",
    "'; DROP TABLE jobs; --",
    "\u202e\ufeff\ufffe",
    "é" * 60,
    "9" * 64,
    "-9223372036854775809",
    '{"a":',
    "[" * 60,
    "a.b..c",
    "identities.id.x.y",
    "state = ((((FAILED",
    'create_time > "9999-99-99"',
    "create_time desc desc",
)
INTS = {64: (-(2**63), -1, 0, 1, 2**31, 2**63 - 1), 32: (-(2**31), -1, 0, 1, 2**31 - 1)}
# Seconds and nanoseconds, of instants and of lengths of time.
TIMES = (
    (0, 0),
    (-62_135_596_800, 0),
    (-62_135_596_801, 0),
    (253_402_300_799, 999_999_999),
    (253_402_300_800, 0),
    (2**63 - 1, 2**31 - 1),
    (-(2**63), -(2**31)),
    (1, -1),
    (-1, 1),
    (0, 1_000_000_000),
    (315_576_000_000, 0),
)


def values_of(field: FieldDescriptor) -> Sequence[Any]:
    """What is odd in a field that is no message."""
    match field.type:
        case field.TYPE_STRING:
            return TEXTS
        case field.TYPE_BYTES:
            return (b"", b"\xff\0")
        case field.TYPE_BOOL:
            return (False, True)
        case field.TYPE_ENUM:
            return (0, 1, 99, -1, 2**31 - 1, -(2**31))
        case field.TYPE_INT64:
            return INTS[64]
    return INTS[32]


def odd_ones(request: Message, deepest: int = 9) -> Iterator[None]:
    """Give each field of a message, one after the other, each odd value; the message is as before at the end."""
    fields: list[Any] = list(request.DESCRIPTOR.fields)
    for field in fields:
        before = type(request)()
        before.CopyFrom(request)
        yield from _odd_field(request, field, deepest)
        request.CopyFrom(before)


def _put(entries: Any, text: str, entry: Any) -> None:
    if entry.fields_by_name["value"].message_type:
        entries[text].values.append(text)
    else:
        entries[text] = text


def _odd_field(holder: Any, field: FieldDescriptor, deepest: int) -> Iterator[None]:
    inner = field.message_type
    if inner and inner.GetOptions().map_entry:
        for text in TEXTS:
            entries = getattr(holder, field.name)
            entries.clear()
            _put(entries, text, inner)
            yield
    elif inner and inner.full_name in {"google.protobuf.Timestamp", "google.protobuf.Duration"}:
        for seconds, nanos in TIMES:
            value = getattr(holder, field.name)
            value.seconds, value.nanos = seconds, nanos
            yield
    elif inner and deepest:
        if field.is_repeated and not len(getattr(holder, field.name)):
            getattr(holder, field.name).add()
            yield
        part = getattr(holder, field.name)
        part = part[0] if field.is_repeated else part
        part.SetInParent()
        yield
        # A type may hold types without end.
        yield from odd_ones(part, min(deepest - 1, 3) if inner.name == "FieldType" else deepest - 1)
    elif not inner:
        for value in values_of(field):
            if field.is_repeated:
                del getattr(holder, field.name)[:]
                getattr(holder, field.name).extend([value, value])
            else:
                setattr(holder, field.name, value)
            yield


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)],
)
async def caller(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Caller]:
    """A caller of a server on which no job runs, so that what is asked of one stays as it was made."""
    async with AsyncExitStack() as open_ones:
        options: dict[str, Any] = {"workers": "0"}
        if request.param == "postgresql":
            database = request.getfixturevalue("postgres").database(with_tables=True)
            options["database_url"] = await open_ones.enter_async_context(database)
        server = Application(load({**settings_for(tmp_path_factory.mktemp("odd")), **options}, {}))
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        yield Caller(await open_ones.enter_async_context(channel), "org")
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def requests(caller: Caller) -> dict[str, Message]:
    """A request of every method that is answered, of things that are there."""
    source = await caller.dataset("record", {"id": "CRM"})
    web = await caller.dataset("event", {"id": "CRM"})
    out = await caller.dataset("union")
    await caller.upload(source, "people", [{"id": "1", "name": "Ann"}])
    await caller.upload(web, "visits", [{"id": "1", "_id": "e", "timestamp": "2026-01-01T00:00:00Z"}])
    await caller.create_batch(source, "open")
    policy = await caller.policy(merge_policy_pb2.IDENTITY_GRAPH_PDG)
    job = (await caller.job(out)).id
    known = profile_pb2.Identity(namespace="CRM", id="1")
    named = merge_policy_pb2.MergePolicyRef(id=policy)
    spec = job_pb2.ExportSpec(
        destination=job_pb2.ExportDestination(dataset_id=out),
        fields=["name"],
        merge_policy=named,
        filter=job_pb2.ExportFilter(segments=[job_pb2.SegmentFilter(segment_id="gold")]),
        event_list=job_pb2.EventList(fields=["_id"]),
    )
    declared = dataset_pb2.FieldDeclaration(
        path="since", type=dataset_pb2.FieldType(scalar=dataset_pb2.SCALAR_TYPE_DATE)
    )
    merge = merge_policy_pb2.AttributeMerge(type=merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED)
    return {
        "CreateDataset": ds.CreateDatasetRequest(
            name="d",
            schema_ref=dataset_pb2.SchemaRef(id=SCHEMAS["record"]),
            identity_fields=identity_fields({"id": "CRM"}),
            declared_fields=[declared],
        ),
        "GetDataset": ds.GetDatasetRequest(dataset_id=source),
        "ListDatasets": ds.ListDatasetsRequest(),
        "UpdateDataset": ds.UpdateDatasetRequest(dataset_id=out, description="x"),
        "UndeleteDataset": ds.UndeleteDatasetRequest(dataset_id="0" * 24),
        "DeleteDataset": ds.DeleteDatasetRequest(dataset_id="0" * 24),
        "PreviewDataset": ds.PreviewDatasetRequest(dataset_id=source),
        "CreateBatch": ds.CreateBatchRequest(dataset_id=source, batch_id="open"),
        "UploadBatch": ds.UploadBatchRequest(
            start=ds.UploadStart(
                dataset_id=source, batch_id="people", format=ds.UPLOAD_FORMAT_JSON_LINES, file_name="1"
            )
        ),
        "CompleteBatch": ds.CompleteBatchRequest(batch_id="people"),
        "AbortBatch": ds.AbortBatchRequest(batch_id="people"),
        "RevertBatch": ds.RevertBatchRequest(batch_id="none"),
        "GetBatch": ds.GetBatchRequest(batch_id="people"),
        "ListBatches": ds.ListBatchesRequest(dataset_id=source),
        "ListRejectedRows": ds.ListRejectedRowsRequest(batch_id="people"),
        "ListBatchFiles": ds.ListBatchFilesRequest(batch_id="people"),
        "ReadBatchFile": ds.ReadBatchFileRequest(batch_id="people", file_name="x"),
        "GetReceipt": ds.GetReceiptRequest(batch_id="people"),
        "CreateSchema": ss.CreateSchemaRequest(
            document='{"$id": "https://x.org/s", "type": "object"}',
            identity_fields=identity_fields({"id": "CRM"}),
        ),
        "GetSchema": ss.GetSchemaRequest(schema_id=SCHEMAS["record"]),
        "ListSchemas": ss.ListSchemasRequest(),
        "GetUnionSchema": ss.GetUnionSchemaRequest(schema_name="_xdm.context.profile"),
        "CreateMergePolicy": ps.CreateMergePolicyRequest(
            name="p", attribute_merge=merge, identity_graph=merge_policy_pb2.IDENTITY_GRAPH_NONE
        ),
        "GetMergePolicy": ps.GetMergePolicyRequest(merge_policy_id=policy),
        "ListMergePolicies": ps.ListMergePoliciesRequest(),
        "UpdateMergePolicy": ps.UpdateMergePolicyRequest(merge_policy_id=policy, name="q"),
        "DeleteMergePolicy": ps.DeleteMergePolicyRequest(merge_policy_id="none"),
        "GetProfile": ps.GetProfileRequest(identity=known, fields=["name"]),
        "ListProfileEvents": ps.ListProfileEventsRequest(identity=known, fields=["_id"]),
        "DeleteProfile": ps.DeleteProfileRequest(identity=known),
        "CreateJob": es.CreateJobRequest(spec=spec),
        "EstimateJob": es.EstimateJobRequest(spec=job_pb2.ExportSpec(destination=spec.destination)),
        "GetJob": es.GetJobRequest(job_id=job),
        "ListJobs": es.ListJobsRequest(),
        "CancelJob": es.CancelJobRequest(job_id=2**40),
        "WatchJob": es.WatchJobRequest(job_id=job, after_revision=1),
        "WatchJobs": es.WatchJobsRequest(after_revision=1),
    }


def test_every_method_has_a_request(requests: dict[str, Message]) -> None:
    assert requests.keys() == METHODS.keys()


async def code_of(caller: Caller, method: MethodDescriptor, request: Message) -> tuple[grpc.StatusCode, str]:
    """Send a request; return the code, OK for a first message of a stream as well, and what else was said."""
    stub: Any = {
        "DatasetService": caller.datasets,
        "ExportService": caller.exports,
        "ProfileService": caller.profiles,
        "SchemaService": caller.schemas,
    }[method.containing_service.name]
    call = getattr(stub, method.name)
    try:
        if method.client_streaming:
            await call(iter([request]), metadata=caller.metadata)
        elif method.server_streaming:
            stream = call(request, metadata=caller.metadata)
            try:
                async with asyncio.timeout(0.2):  # a watch may have nothing to say
                    await stream.read()
            except TimeoutError:
                pass
            finally:
                stream.cancel()
        else:
            await call(request, metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_from(error)
        return refusal.code, f"{refusal.reason}: {refusal.message}"
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED, ""
    return grpc.StatusCode.OK, ""


OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
async def test_no_odd_value_is_an_internal_error(
    caller: Caller, requests: dict[str, Message], name: str
) -> None:
    method, turns = METHODS[name], asyncio.Semaphore(16)

    async def said_to(odd: Message) -> str:
        async with turns:
            code, said = await code_of(caller, method, odd)
        is_ours = code in OURS or any(
            word in said for word in ("Traceback", "sqlalchemy", "sqlite", "asyncpg")
        )
        return f"{odd}: {code} {said}" if is_ours else ""

    broken = await asyncio.gather(*map(said_to, variants(requests[name])))

    assert [one for one in broken if one] == []


def variants(request: Message) -> list[Message]:
    """All odd forms of a request."""
    found = []
    changing = type(request)()
    changing.CopyFrom(request)
    for _ in odd_ones(changing):
        found.append(type(request)())
        found[-1].CopyFrom(changing)
    if isinstance(
        request, es.EstimateJobRequest
    ):  # a spec is read as for CreateJob, and takes an engine to estimate
        return [one for one in found if isinstance(one, es.EstimateJobRequest) and one.spec == request.spec]
    return found
