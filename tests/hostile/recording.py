"""One good call of every method at least, and what was sent and answered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from profile_export.v1 import dataset_pb2, job_pb2, merge_policy_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from tests.hostile.oddities import message_of
from tests.service.harness import SCHEMAS, Caller, export_spec, json_lines

PDG = merge_policy_pb2.IDENTITY_GRAPH_PDG
SCHEMA_ID = "https://example.com/recorded"
DOCUMENT = {
    "$id": SCHEMA_ID,
    "type": "object",
    "meta:class": SCHEMAS["record"],
    "properties": {"crmId": {"type": "string"}, "city": {"type": "string", "pattern": "^[A-Z]"}},
}


@dataclass
class Recording:
    """Calls by the path of their method: each is the messages that were sent, as bytes."""

    calls: dict[str, list[list[bytes]]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """What stood in fields of requests and answers, by the field's name."""

    def harvest(self, message: Message) -> None:
        """Keep the values of a message's fields, at any depth."""
        for descriptor, value in message.ListFields():
            values = value if descriptor.is_repeated else [value]
            if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
                self._keep(descriptor.name, values)
            elif message_of(descriptor).GetOptions().map_entry:
                self._keep(descriptor.name, value)
            else:
                for member in values:
                    self.harvest(member)

    def _keep(self, name: str, values: Iterable[Any]) -> None:
        kept = self.values[name]
        kept += [value for value in values if value not in kept]


class RecordingChannel:
    """A channel that writes down what goes through it, of unary calls and of streams."""

    def __init__(self, channel: grpc.aio.Channel, recording: Recording) -> None:
        self._channel, self._recording = channel, recording

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        opened = getattr(self._channel, kind)
        calls, harvest = self._recording.calls, self._recording.harvest

        def method(
            path: str,
            request_serializer: Callable[[Message], bytes],
            response_deserializer: Callable[[bytes], Message],
            **others: Any,
        ) -> Any:
            sent: list[bytes] = []

            def write(message: Message) -> bytes:
                harvest(message)
                sent.append(request_serializer(message))
                return sent[-1]

            def read(raw: bytes) -> Message:
                answer = response_deserializer(raw)
                harvest(answer)
                return answer

            inner = opened(path, request_serializer=write, response_deserializer=read, **others)

            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal sent
                sent = []
                calls[path].append(sent)
                return inner(*arguments, **options)

            return call

        return method


async def record(channel: grpc.aio.Channel, org: str) -> Recording:
    """Call every method as a good caller does, as a tenant that has data of every kind afterwards."""
    recording = Recording()
    recorded: Any = RecordingChannel(channel, recording)
    caller = Caller(recorded, org)
    await _catalog(caller)
    await _batches(caller)
    await _exports(caller)
    await _beside(recorded)
    return recording


async def _catalog(caller: Caller) -> None:
    await caller.schema(DOCUMENT, identities={"crmId": "CRM"})
    await caller.dataset(SCHEMA_ID)
    get = ss.GetSchemaRequest(schema_id=SCHEMA_ID, version=1)
    await caller.schemas.GetSchema(get, metadata=caller.metadata)
    await caller.schemas.ListSchemas(ss.ListSchemasRequest(page_size=1), metadata=caller.metadata)
    for name in ("_xdm.context.profile", "_xdm.context.experienceevent"):
        await caller.schemas.GetUnionSchema(
            ss.GetUnionSchemaRequest(schema_name=name), metadata=caller.metadata
        )
    one = await caller.dataset(
        "record",
        {"crmId": "CRM", "email": "Email"},
        declared={
            "score": dataset_pb2.FieldType(decimal=dataset_pb2.DecimalType(precision=9, scale=2)),
            "tags": dataset_pb2.FieldType(
                array=dataset_pb2.ArrayType(item=dataset_pb2.FieldType(scalar=dataset_pb2.SCALAR_TYPE_LONG))
            ),
        },
        tags={"team": dataset_pb2.TagValues(values=["a", "b"])},
        description="for nothing",
        request_id="one",
    )
    tags = ds.DatasetTags(entries={"team": dataset_pb2.TagValues(values=["c"])})
    more = [
        dataset_pb2.FieldDeclaration(
            path="more", type=dataset_pb2.FieldType(scalar=dataset_pb2.SCALAR_TYPE_DATE)
        )
    ]
    await caller.update(one, name="another", tags=tags, add_declared_fields=more)
    await caller.get_dataset(one)
    for token in ("", (await _datasets(caller)).next_page_token):
        await _datasets(caller, token)
    await caller.delete(one)
    await caller.undelete(one)


async def _datasets(caller: Caller, token: str = "") -> ds.ListDatasetsResponse:
    request = ds.ListDatasetsRequest(page_size=1, page_token=token)
    return await caller.datasets.ListDatasets(request, metadata=caller.metadata)


async def _batches(caller: Caller) -> None:
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    web = await caller.dataset("event", {"email": "Email"})
    people = [
        {
            "crmId": f"C{number}",
            "email": f"{number}@example.com",
            "person": {"name": {"firstName": "Ann"}, "ages": [1, 2]},
            "segmentMembership": {"ups": {"gold": {"status": "realized"}}},
        }
        for number in range(5)
    ]
    await caller.upload(crm, "people", people)
    visits = [
        {"email": "1@example.com", "_id": f"e{number}", "timestamp": "2026-03-01T00:00:00Z"}
        for number in range(3)
    ]
    await caller.upload(web, "visits", visits)
    await caller.send(crm, "table", b"crmId,email\nC9,9@example.com\n", ds.UPLOAD_FORMAT_CSV)
    bad = json_lines([{"crmId": "C7"}, {"crmId": 7.5}, {"no": "identity"}])
    await caller.send(crm, "bad", bad, max_bad_records=5)
    await caller.rejected("bad", page_size=1)
    await caller.create_batch(crm, "several")
    for name in ("a.json", "b.json"):
        array = json.dumps([{"crmId": name}]).encode()
        await caller.send(crm, "several", array, ds.UPLOAD_FORMAT_JSON_ARRAY, file_name=name)
    await caller.complete("several")
    await caller.create_batch(crm, "open")
    await caller.create_batch(crm, "given-up")
    await caller.abort("given-up", "for nothing")
    await caller.upload(crm, "taken-back", [{"crmId": "gone"}])
    await caller.revert("taken-back", "for nothing")
    await caller.batch("people")
    listed = await caller.datasets.ListBatches(
        ds.ListBatchesRequest(dataset_id=crm, page_size=1), metadata=caller.metadata
    )
    again = ds.ListBatchesRequest(dataset_id=crm, page_size=1, page_token=listed.next_page_token)
    await caller.datasets.ListBatches(again, metadata=caller.metadata)
    preview = ds.PreviewDatasetRequest(dataset_id=crm, row_count=2)
    await caller.datasets.PreviewDataset(preview, metadata=caller.metadata)


async def _exports(caller: Caller) -> None:
    policy = await caller.policy(PDG)
    for request in (
        ps.GetMergePolicyRequest(merge_policy_id=policy, version=1),
        ps.UpdateMergePolicyRequest(
            merge_policy_id=policy,
            name="linked",
            is_default=True,
            excluded_identities=merge_policy_pb2.ExcludedIdentities(
                identities=[merge_policy_pb2.ExcludedIdentity(namespace="Email", id="NULL")]
            ),
        ),
        ps.ListMergePoliciesRequest(page_size=1),
    ):
        name = type(request).__name__.removesuffix("Request")
        await getattr(caller.profiles, name)(request, metadata=caller.metadata)
    gone = await caller.policy(PDG)
    await caller.profiles.DeleteMergePolicy(
        ps.DeleteMergePolicyRequest(merge_policy_id=gone), metadata=caller.metadata
    )
    await caller.profile("CRM:C1", policy, fields=["person.name.firstName"])
    await caller.events("Email:1@example.com", policy, page_size=1, filter='id = "e1"', order_by="event_time")
    await _refused(
        caller.profiles.DeleteProfile(
            ps.DeleteProfileRequest(identity=profile_pb2.Identity(namespace="CRM", id="C1")),
            metadata=caller.metadata,
        )
    )
    union = await caller.dataset("union")
    spec = export_spec(
        union,
        policy=policy,
        fields=["crmId", "person.name", "segmentMembership"],
        filter=job_pb2.ExportFilter(segments=[job_pb2.SegmentFilter(segment_id="gold")]),
        events=job_pb2.EventList(fields=["timestamp"]),
    )
    await caller.exports.EstimateJob(
        es.EstimateJobRequest(spec=spec, sample_rows=2), metadata=caller.metadata
    )
    job = await caller.finished((await caller.create(spec, "first")).id)
    await caller.exports.GetJob(es.GetJobRequest(job_id=job.id), metadata=caller.metadata)
    await caller.exports.ListJobs(
        es.ListJobsRequest(page_size=1, filter="state = SUCCEEDED", order_by="update_time desc"),
        metadata=caller.metadata,
    )
    await _refused(caller.exports.CancelJob(es.CancelJobRequest(job_id=job.id), metadata=caller.metadata))
    feed = caller.exports.WatchJobs(
        es.WatchJobsRequest(states=[job_pb2.JOB_STATE_SUCCEEDED], dataset_id=union), metadata=caller.metadata
    )
    await feed.read()
    feed.cancel()
    (file,) = await caller.files(job.batch_id)
    await caller.download(job.batch_id, file.name, offset=4, length=100)
    await caller.datasets.GetReceipt(ds.GetReceiptRequest(batch_id=job.batch_id), metadata=caller.metadata)


async def _beside(channel: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service="profile_export.v1.ExportService")
    await health.Check(asked)
    await health.List(health_pb2.HealthListRequest())
    watch = health.Watch(asked)
    await watch.read()
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def questions() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="profile_export.v1.Batch")

    async for _ in reflection.ServerReflectionInfo(questions()):
        pass


async def _refused(call: Any) -> None:
    """Wait for a call that is well-formed, and refused for what it is about."""
    try:
        await call
    except grpc.aio.AioRpcError:
        return
    message = "it was to be refused"
    raise AssertionError(message)
