"""The connection to a server: every call that the command line makes."""

import json
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.client.errors import checked
from profile_export.client.transfer import Progress, Transfer
from profile_export.client.watch import watch
from profile_export.v1 import dataset_service_pb2 as datasets
from profile_export.v1 import export_service_pb2 as exports
from profile_export.v1 import job_pb2 as jobs
from profile_export.v1 import merge_policy_pb2 as policies
from profile_export.v1 import profile_service_pb2 as profiles
from profile_export.v1.batch_pb2 import Batch, DataFile
from profile_export.v1.dataset_pb2 import Dataset, DatasetKind, IdentityField, SchemaRef, TagValues
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceStub

_PAGE = 1000
_TIMEOUT_SECONDS = 60.0
_LOOPBACK = re.compile(r"(127(\.\d+){3}|localhost|\[::1\]):\d+")
# Calls that change nothing, or that a request_id makes safe to repeat.
_REPEATABLE = {
    "DatasetService": (
        "CreateDataset",
        "GetDataset",
        "ListDatasets",
        "GetBatch",
        "ListBatches",
        "ListBatchFiles",
    ),
    "ExportService": ("CreateJob", "GetJob", "ListJobs", "CancelJob"),
    "ProfileService": ("ListMergePolicies",),
}
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_METHODS = [
    {"service": f"profile_export.v1.{service}", "method": name}
    for service, names in _REPEATABLE.items()
    for name in names
]
_SERVICE_CONFIG = json.dumps({"methodConfig": [{"name": _METHODS, "retryPolicy": _RETRY}]})
_SCHEMAS = {
    DatasetKind.DATASET_KIND_RECORD: "https://ns.adobe.com/xdm/context/profile",
    DatasetKind.DATASET_KIND_EVENT: "https://ns.adobe.com/xdm/context/experienceevent",
    DatasetKind.DATASET_KIND_UNION: "https://ns.adobe.com/xdm/context/profile__union",
}

_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Answer_co = TypeVar("_Answer_co", covariant=True)


class _Method(Protocol[_Request_contra, _Answer_co]):
    def __call__(
        self, request: _Request_contra, /, *, timeout: float, metadata: Any
    ) -> Awaitable[_Answer_co]: ...


class _Pages(Protocol):
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


_PagesT = TypeVar("_PagesT", bound=_Pages)
_PageT = TypeVar("_PageT", bound=_Page)


@dataclass(frozen=True)
class Events:
    """Which experience events an export takes along. Empty fields: all. The times are ingest times."""

    fields: tuple[str, ...] = ()
    from_time: datetime | None = None
    to_time: datetime | None = None


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as plain data, named as in the protos, fields at their defaults included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


class Client:
    """A connection to a server, used as `async with Client("127.0.0.1:50051") as client`.

    Errors of calls are raised as ClientError. Calls that are safe to repeat are repeated while the server is
    away for a moment; uploads, downloads and watches go on where they were.

    Args:
        address: Where the server listens, HOST:PORT.
        org: The organisation of the tenant. Empty: the server's default.
        sandbox: The sandbox of the tenant. Empty: the server's default.
        patience: How long a transfer or a watch looks for a server that was lost.
    """

    def __init__(
        self, address: str, *, org: str = "", sandbox: str = "", patience: timedelta = timedelta(minutes=1)
    ) -> None:
        self._address = address
        self._patience = patience
        headers = {"x-gw-ims-org-id": org, "x-sandbox-name": sandbox}
        self._metadata = tuple((name, value) for name, value in headers.items() if value)

    async def __aenter__(self) -> Self:
        options: list[tuple[str, Any]] = [("grpc.service_config", _SERVICE_CONFIG)]
        if _LOOPBACK.fullmatch(self._address):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.aio.insecure_channel(self._address, options=options)
        self._datasets = DatasetServiceStub(self._channel)
        self._exports = ExportServiceStub(self._channel)
        self._profiles = ProfileServiceStub(self._channel)
        self._transfer = Transfer(self._datasets, self._metadata, self._patience)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def create_dataset(
        self,
        name: str,
        kind: DatasetKind.ValueType,
        *,
        identities: Sequence[IdentityField] = (),
        tags: dict[str, list[str]] | None = None,
        request_id: str = "",
    ) -> Dataset:
        """Make a dataset of a built-in schema; with the same request_id and content it is the same one."""
        request = datasets.CreateDatasetRequest(
            name=name,
            schema_ref=SchemaRef(id=_SCHEMAS[kind]),
            tags={key: TagValues(values=values) for key, values in (tags or {}).items()},
            identity_fields=identities,
            request_id=request_id or str(uuid.uuid4()),
        )
        return (await self._call(self._datasets.CreateDataset, request)).dataset

    async def list_datasets(self) -> list[Dataset]:
        """List the datasets of the tenant, oldest first."""
        pages = self._pages(self._datasets.ListDatasets, datasets.ListDatasetsRequest(page_size=_PAGE))
        return [dataset async for page in pages for dataset in page.datasets]

    async def get_batch(self, batch_id: str) -> Batch:
        """Look a batch up, in any state."""
        return (await self._call(self._datasets.GetBatch, datasets.GetBatchRequest(batch_id=batch_id))).batch

    async def list_batches(self, dataset_id: str) -> list[Batch]:
        """List the visible batches of a dataset, oldest first."""
        request = datasets.ListBatchesRequest(dataset_id=dataset_id, page_size=_PAGE)
        pages = self._pages(self._datasets.ListBatches, request)
        return [batch async for page in pages for batch in page.batches]

    async def list_files(self, batch_id: str) -> list[DataFile]:
        """List the data files of a visible batch, by name."""
        request = datasets.ListBatchFilesRequest(batch_id=batch_id, page_size=_PAGE)
        pages = self._pages(self._datasets.ListBatchFiles, request)
        return [file async for page in pages for file in page.files]

    async def upload(
        self,
        dataset_id: str,
        path: Path,
        upload_format: datasets.UploadFormat.ValueType,
        *,
        batch_id: str = "",
        progress: Progress = lambda _: None,
    ) -> datasets.UploadBatchResponse:
        """Send a file as one batch; it counts, whole, when this returns.

        Repeated with the same file it changes nothing: without a batch_id, one is derived from dataset and
        content. What an interrupted upload has sent already is not sent again.
        """
        return await self._transfer.upload(dataset_id, path, upload_format, batch_id, progress)

    async def download(
        self, batch_id: str, file: DataFile, folder: Path, *, progress: Progress = lambda _: None
    ) -> Path:
        """Fetch one data file into a folder, under its name, and return where it is.

        The bytes go to a neighbour named `….part`, are checked against the SHA-256 and then renamed: a file under
        its name is whole. Repeated, a file that is there already stays, and a part goes on where it ended.
        """
        return await self._transfer.download(batch_id, file, folder, progress)

    async def create_policy(self, name: str, graph: policies.IdentityGraph.ValueType) -> policies.MergePolicy:
        """Make a merge policy in which the record ingested later wins."""
        rule = policies.AttributeMerge(
            type=policies.AttributeMergeType.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
        )
        request = profiles.CreateMergePolicyRequest(name=name, attribute_merge=rule, identity_graph=graph)
        return (await self._call(self._profiles.CreateMergePolicy, request)).merge_policy

    async def list_policies(self) -> list[policies.MergePolicy]:
        """List the merge policies of the tenant and the built-in one."""
        request = profiles.ListMergePoliciesRequest(page_size=_PAGE)
        pages = self._pages(self._profiles.ListMergePolicies, request)
        return [policy async for page in pages for policy in page.merge_policies]

    async def create_job(
        self,
        dataset_id: str,
        *,
        fields: Sequence[str] = (),
        policy_id: str = "",
        events: Events | None = None,
        request_id: str = "",
    ) -> exports.CreateJobResponse:
        """Ask for an export into a union dataset; with the same request_id and content it is the same job."""
        spec = jobs.ExportSpec(fields=fields, destination=jobs.ExportDestination(dataset_id=dataset_id))
        if policy_id:
            spec.merge_policy.CopyFrom(policies.MergePolicyRef(id=policy_id))
        if events is not None:
            spec.event_list.CopyFrom(_event_list(events))
        request = exports.CreateJobRequest(spec=spec, request_id=request_id or str(uuid.uuid4()))
        return await self._call(self._exports.CreateJob, request)

    async def get_job(self, job_id: int) -> jobs.ExportJob:
        """Look a job up."""
        return (await self._call(self._exports.GetJob, exports.GetJobRequest(job_id=job_id))).job

    async def list_jobs(self, limit: int = _PAGE) -> list[jobs.ExportJob]:
        """List the newest jobs of the tenant, newest first."""
        listed: list[jobs.ExportJob] = []
        async for page in self._pages(
            self._exports.ListJobs, exports.ListJobsRequest(page_size=min(limit, _PAGE))
        ):
            listed.extend(page.jobs)
            if len(listed) >= limit:
                break
        return listed[:limit]

    async def cancel_job(self, job_id: int, reason: str = "") -> jobs.ExportJob:
        """Ask a job to stop; return it as it stands then."""
        request = exports.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self._call(self._exports.CancelJob, request)).job

    def watch_job(
        self, job_id: int, after_revision: int | None = None, *, progress_interval: timedelta | None = None
    ) -> AsyncGenerator[exports.WatchJobResponse]:
        """Follow a job until its final state has been given.

        A server that was lost is looked for again, and the watch goes on after the last revision received: no
        transition is missed, none comes twice.

        Args:
            job_id: The job.
            after_revision: The revision that is known already. None: the job as it is, then what follows.
            progress_interval: Shortest time between two progress messages. None: the server's choice.

        Returns:
            The messages as in the contract, heartbeats included.
        """
        request = exports.WatchJobRequest(job_id=job_id, after_revision=after_revision)
        if progress_interval is not None:
            request.min_progress_interval.FromTimedelta(progress_interval)
        return watch(self._exports, self._metadata, self._patience, request)

    async def _call(
        self, method: _Method[_Request_contra, _Answer_co], request: _Request_contra
    ) -> _Answer_co:
        return await checked(method(request, timeout=_TIMEOUT_SECONDS, metadata=self._metadata))

    async def _pages(self, method: _Method[_PagesT, _PageT], request: _PagesT) -> AsyncIterator[_PageT]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _event_list(events: Events) -> jobs.EventList:
    event_list = jobs.EventList(fields=events.fields)
    if events.from_time:
        event_list.filter.from_ingest_time.CopyFrom(_stamp(events.from_time))
    if events.to_time:
        event_list.filter.to_ingest_time.CopyFrom(_stamp(events.to_time))
    return event_list


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
