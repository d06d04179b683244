"""The connection to a server: every call that the command line makes."""

import json
import re
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import grpc.aio

from profile_export.client.batches import BatchCalls
from profile_export.client.datasets import DatasetCalls, SchemaCalls
from profile_export.client.jobs import JobCalls
from profile_export.client.profiles import PolicyCalls, ProfileCalls
from profile_export.v1.dataset_service_pb2_grpc import DatasetServiceStub
from profile_export.v1.export_service_pb2_grpc import ExportServiceStub
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceStub
from profile_export.v1.schema_service_pb2_grpc import SchemaServiceStub

_LOOPBACK = re.compile(r"(127(\.\d+){3}|localhost|\[::1\]):\d+")
# Calls that change nothing, that leave the second time what they left the first time, or that an id of the caller's
# makes safe to repeat. Deleting is not: after an answer that was lost, its repetition would say NOT_FOUND.
_REPEATABLE = {
    "DatasetService": (
        "CreateDataset",
        "GetDataset",
        "ListDatasets",
        "UpdateDataset",
        "PreviewDataset",
        "CreateBatch",
        "CompleteBatch",
        "AbortBatch",
        "RevertBatch",
        "GetBatch",
        "ListBatches",
        "ListRejectedRows",
        "ListBatchFiles",
    ),
    "ExportService": ("CreateJob", "GetJob", "ListJobs", "CancelJob"),
    "ProfileService": (
        "GetMergePolicy",
        "ListMergePolicies",
        "UpdateMergePolicy",
        "GetProfile",
        "ListProfileEvents",
    ),
    "SchemaService": ("CreateSchema", "GetSchema", "ListSchemas", "GetUnionSchema"),
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


class Client(DatasetCalls, BatchCalls, SchemaCalls, PolicyCalls, ProfileCalls, JobCalls):
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
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", _SERVICE_CONFIG),
            # A receipt names every batch that was read, which may be more than the default of 4 MiB holds.
            ("grpc.max_receive_message_length", -1),
            # By default the wait for a server that was lost grows to two minutes, longer than anyone's patience.
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        if _LOOPBACK.fullmatch(self._address):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.aio.insecure_channel(self._address, options=options)
        self._datasets = DatasetServiceStub(self._channel)
        self._exports = ExportServiceStub(self._channel)
        self._profiles = ProfileServiceStub(self._channel)
        self._schemas = SchemaServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
