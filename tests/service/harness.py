"""A caller of a real server: the generated stubs, and the few steps that most scenarios share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc.aio
import pyarrow as pa
import pyarrow.parquet as pq
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from profile_export.v1 import batch_pb2, dataset_pb2, job_pb2, merge_policy_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceStub
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceStub

XDM = "https://ns.adobe.com/xdm/context"
SCHEMAS = {"record": f"{XDM}/profile", "event": f"{XDM}/experienceevent", "union": f"{XDM}/profile__union"}
CHUNK = 1024 * 1024
Row = Mapping[str, Any]


@dataclass
class Refusal:
    """What a failed call carries."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    retry_seconds: float | None = None


async def refusal_of(call: Any) -> Refusal:
    """Await a call that must fail, and read its details: exactly one ErrorInfo."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return refusal_from(error)
    message = "the call should have been refused"
    raise AssertionError(message)


def refusal_from(error: grpc.aio.AioRpcError) -> Refusal:
    status = rpc_status.from_call(error)
    refusal = Refusal(error.code(), error.details() or "", "")
    infos = 0
    for detail in status.details if status else ():
        info, bad, retry, unmet = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.PreconditionFailure(),
        )
        if detail.Unpack(info):
            infos += 1
            refusal.reason, refusal.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            refusal.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(unmet):
            refusal.subjects = [violation.subject for violation in unmet.violations]
        elif detail.Unpack(retry):
            refusal.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    assert infos == 1, f"{infos} ErrorInfo in {error}"
    return refusal


class Caller:
    """One tenant's calls."""

    def __init__(self, channel: grpc.aio.Channel, org: str) -> None:
        self.metadata = (("x-gw-ims-org-id", org), ("x-sandbox-name", "prod"))
        self.datasets = DatasetServiceStub(channel)
        self.schemas = SchemaServiceStub(channel)
        self.profiles = ProfileServiceStub(channel)
        self.exports = ExportServiceStub(channel)

    async def dataset(self, kind: str, identities: Mapping[str, str] | None = None, **values: Any) -> str:
        """Make a dataset; `kind` may also be a schema's id.

        `identities` maps paths to namespaces, the first of them primary; `declared` paths to types.
        """
        request = ds.CreateDatasetRequest(
            name=values.pop("name", kind),
            schema_ref=dataset_pb2.SchemaRef(id=SCHEMAS.get(kind, kind)),
            identity_fields=identity_fields(identities or {}),
            declared_fields=declarations(values.pop("declared", {})),
            **values,
        )
        return (await self.datasets.CreateDataset(request, metadata=self.metadata)).dataset.id

    async def upload(self, dataset_id: str, batch_id: str, rows: Iterable[Row]) -> batch_pb2.Batch:
        """Upload rows as JSON lines."""
        return (await self.send(dataset_id, batch_id, json_lines(rows))).batch

    async def send(
        self,
        dataset_id: str,
        batch_id: str,
        data: bytes,
        upload_format: ds.UploadFormat.ValueType = ds.UPLOAD_FORMAT_JSON_LINES,
        **start: Any,
    ) -> ds.UploadBatchResponse:
        """Upload bytes."""
        messages = upload_messages(dataset_id, batch_id, data, upload_format, **start)
        return await self.datasets.UploadBatch(replay(messages), metadata=self.metadata)

    async def create_batch(self, dataset_id: str, batch_id: str) -> batch_pb2.Batch:
        """Open a batch for several files."""
        request = ds.CreateBatchRequest(dataset_id=dataset_id, batch_id=batch_id)
        return (await self.datasets.CreateBatch(request, metadata=self.metadata)).batch

    async def complete(self, batch_id: str) -> ds.CompleteBatchResponse:
        """Complete a batch of several files."""
        request = ds.CompleteBatchRequest(batch_id=batch_id)
        return await self.datasets.CompleteBatch(request, metadata=self.metadata)

    async def abort(self, batch_id: str, reason: str = "") -> batch_pb2.Batch:
        """Give a batch up."""
        request = ds.AbortBatchRequest(batch_id=batch_id, reason=reason)
        return (await self.datasets.AbortBatch(request, metadata=self.metadata)).batch

    async def revert(self, batch_id: str, reason: str = "") -> batch_pb2.Batch:
        """Take a batch back."""
        request = ds.RevertBatchRequest(batch_id=batch_id, reason=reason)
        return (await self.datasets.RevertBatch(request, metadata=self.metadata)).batch

    async def batch(self, batch_id: str) -> batch_pb2.Batch:
        """Look a batch up."""
        request = ds.GetBatchRequest(batch_id=batch_id)
        return (await self.datasets.GetBatch(request, metadata=self.metadata)).batch

    async def visible_batches(self, dataset_id: str) -> list[str]:
        """List the batches of a dataset that count, by id."""
        request = ds.ListBatchesRequest(dataset_id=dataset_id)
        listed = await self.datasets.ListBatches(request, metadata=self.metadata)
        return [batch.id for batch in listed.batches]

    async def rejected(self, batch_id: str, **page: Any) -> ds.ListRejectedRowsResponse:
        """List rejected rows."""
        request = ds.ListRejectedRowsRequest(batch_id=batch_id, **page)
        return await self.datasets.ListRejectedRows(request, metadata=self.metadata)

    async def get_dataset(self, dataset_id: str) -> dataset_pb2.Dataset:
        """Look a dataset up."""
        request = ds.GetDatasetRequest(dataset_id=dataset_id)
        return (await self.datasets.GetDataset(request, metadata=self.metadata)).dataset

    async def update(self, dataset_id: str, **changes: Any) -> dataset_pb2.Dataset:
        """Change a dataset."""
        request = ds.UpdateDatasetRequest(dataset_id=dataset_id, **changes)
        return (await self.datasets.UpdateDataset(request, metadata=self.metadata)).dataset

    async def delete(self, dataset_id: str) -> dataset_pb2.Dataset:
        """Delete a dataset."""
        request = ds.DeleteDatasetRequest(dataset_id=dataset_id)
        return (await self.datasets.DeleteDataset(request, metadata=self.metadata)).dataset

    async def undelete(self, dataset_id: str) -> dataset_pb2.Dataset:
        """Bring a deleted dataset back."""
        request = ds.UndeleteDatasetRequest(dataset_id=dataset_id)
        return (await self.datasets.UndeleteDataset(request, metadata=self.metadata)).dataset

    async def schema(
        self,
        document: Row,
        *referenced: Row,
        identities: Mapping[str, str] | None = None,
    ) -> ss.CreateSchemaResponse:
        """Register a document; `identities` as in `dataset`."""
        request = ss.CreateSchemaRequest(
            document=json.dumps(document),
            referenced_documents=[json.dumps(other) for other in referenced],
            identity_fields=identity_fields(identities or {}),
        )
        return await self.schemas.CreateSchema(request, metadata=self.metadata)

    async def policy(
        self,
        graph: merge_policy_pb2.IdentityGraph.ValueType,
        order: Sequence[str] = (),
        excluded: Sequence[Mapping[str, str]] = (),
    ) -> str:
        """Make a merge policy; with an `order` of datasets it is one of precedence."""
        types = merge_policy_pb2.AttributeMergeType
        rule = types.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
        if order:
            rule = types.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE
        request = ps.CreateMergePolicyRequest(
            name="policy",
            attribute_merge=merge_policy_pb2.AttributeMerge(type=rule, order=order),
            identity_graph=graph,
            excluded_identities=[merge_policy_pb2.ExcludedIdentity(**one) for one in excluded],
        )
        return (await self.profiles.CreateMergePolicy(request, metadata=self.metadata)).merge_policy.id

    async def profile(self, identity: str, policy: str = "", **values: Any) -> profile_pb2.Profile:
        """Look a profile up; the identity is written as `Email:ann@example.com`."""
        request = ps.GetProfileRequest(**_person(identity, policy), **values)
        return (await self.profiles.GetProfile(request, metadata=self.metadata)).profile

    async def events(self, identity: str, policy: str = "", **values: Any) -> ps.ListProfileEventsResponse:
        """List events of a profile."""
        request = ps.ListProfileEventsRequest(**_person(identity, policy), **values)
        return await self.profiles.ListProfileEvents(request, metadata=self.metadata)

    async def job(self, destination: str, request_id: str = "", **spec: Any) -> job_pb2.ExportJob:
        """Create a job."""
        return await self.create(export_spec(destination, **spec), request_id)

    async def create(self, spec: job_pb2.ExportSpec, request_id: str = "") -> job_pb2.ExportJob:
        """Create a job of a whole spec."""
        request = es.CreateJobRequest(spec=spec, request_id=request_id)
        return (await self.exports.CreateJob(request, metadata=self.metadata)).job

    def watch(
        self, job_id: int, after_revision: int | None = None, **options: Any
    ) -> AsyncIterator[es.WatchJobResponse]:
        """Open a watch."""
        request = es.WatchJobRequest(job_id=job_id, after_revision=after_revision, **options)
        return aiter(self.exports.WatchJob(request, metadata=self.metadata))

    async def finished(self, job_id: int) -> job_pb2.ExportJob:
        """Watch a job to its end."""
        last = [message async for message in self.watch(job_id)][-1]
        return last.job

    async def export(self, destination: str, **spec: Any) -> job_pb2.ExportJob:
        """Run a job to its end, which has to be a good one."""
        job = await self.finished((await self.job(destination, **spec)).id)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job
        return job

    async def files(self, batch_id: str) -> Sequence[batch_pb2.DataFile]:
        """List the files of a batch."""
        request = ds.ListBatchFilesRequest(batch_id=batch_id)
        return (await self.datasets.ListBatchFiles(request, metadata=self.metadata)).files

    async def rows(self, batch_id: str) -> list[dict[str, Any]]:
        """Read all rows of a batch in place."""
        tables = [pq.read_table(unquote(urlsplit(file.location).path)) for file in await self.files(batch_id)]
        return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []

    async def download(self, batch_id: str, file_name: str, **stretch: int) -> bytes:
        """Read a file through the service."""
        request = ds.ReadBatchFileRequest(batch_id=batch_id, file_name=file_name, **stretch)
        chunks = [
            message.data async for message in self.datasets.ReadBatchFile(request, metadata=self.metadata)
        ]
        assert all(len(chunk) <= CHUNK for chunk in chunks)
        return b"".join(chunks)


def _person(identity: str, policy: str) -> dict[str, Any]:
    namespace, _, identity_id = identity.partition(":")
    return {
        "identity": profile_pb2.Identity(namespace=namespace, id=identity_id),
        "merge_policy": merge_policy_pb2.MergePolicyRef(id=policy) if policy else None,
    }


def identity_fields(identities: Mapping[str, str]) -> list[dataset_pb2.IdentityField]:
    """Write identity fields: paths to namespaces, the first of them primary."""
    return [
        dataset_pb2.IdentityField(path=path, namespace=namespace, primary=index == 0)
        for index, (path, namespace) in enumerate(identities.items())
    ]


def declarations(
    types: Mapping[str, dataset_pb2.FieldType | dataset_pb2.ScalarType.ValueType],
) -> list[dataset_pb2.FieldDeclaration]:
    """Write declared fields: paths to types."""
    return [
        dataset_pb2.FieldDeclaration(
            path=path,
            type=kind if isinstance(kind, dataset_pb2.FieldType) else dataset_pb2.FieldType(scalar=kind),
        )
        for path, kind in types.items()
    ]


def types_of(fields: Iterable[dataset_pb2.Field]) -> dict[str, Any]:
    """Read fields as words: an object as a dict, an array as a list of one, a map as a dict with the name `*`."""
    return {field.name: _word(field.type) for field in fields}


def _word(kind: dataset_pb2.FieldType) -> Any:
    match kind.WhichOneof("kind"):
        case "object":
            return types_of(kind.object.fields)
        case "array":
            return [_word(kind.array.item)]
        case "map":
            return {"*": _word(kind.map.value)}
        case "decimal":
            return f"decimal({kind.decimal.precision},{kind.decimal.scale})"
    return dataset_pb2.ScalarType.Name(kind.scalar).removeprefix("SCALAR_TYPE_").lower()


def export_spec(destination: str, **values: Any) -> job_pb2.ExportSpec:
    """Write what to export; `policy` is a policy's id, `events` switches events on.

    `policy_version` belongs to the policy, `segment_per_batch` and `mode` to the destination.
    """
    policy, version = values.pop("policy", ""), values.pop("policy_version", None)
    per_segment = values.pop("segment_per_batch", False)
    events, mode = values.pop("events", None), values.pop("mode", job_pb2.WRITE_MODE_UNSPECIFIED)
    return job_pb2.ExportSpec(
        destination=job_pb2.ExportDestination(
            dataset_id=destination, segment_per_batch=per_segment, mode=mode
        ),
        merge_policy=merge_policy_pb2.MergePolicyRef(id=policy, version=version) if policy else None,
        event_list=events,
        **values,
    )


def json_lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def upload_messages(
    dataset_id: str,
    batch_id: str,
    data: bytes,
    upload_format: ds.UploadFormat.ValueType = ds.UPLOAD_FORMAT_JSON_LINES,
    offset: int = 0,
    **others: Any,
) -> list[ds.UploadBatchRequest]:
    """Cut an upload into its messages; with an offset only the rest of `data` is sent."""
    start = ds.UploadStart(
        dataset_id=dataset_id, batch_id=batch_id, format=upload_format, offset=offset, **others
    )
    finish = ds.UploadFinish(byte_count=len(data), sha256=hashlib.sha256(data).hexdigest())
    return [
        ds.UploadBatchRequest(start=start),
        *(ds.UploadBatchRequest(data=data[at : at + CHUNK]) for at in range(offset, len(data), CHUNK)),
        ds.UploadBatchRequest(finish=finish),
    ]


async def replay(messages: Iterable[ds.UploadBatchRequest]) -> AsyncIterator[ds.UploadBatchRequest]:
    """Send messages one by one."""
    for message in messages:
        yield message


def shared_folder() -> Path:
    """Return the folder with the real data sets; it may be missing."""
    return Path(__file__).parents[3] / "shared"
