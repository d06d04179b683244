"""A client for asyncio: imports only the contract and grpc. Streams resume by themselves."""

from profile_export.client.connection import Client, Events, as_json
from profile_export.client.errors import ClientError, Violation
from profile_export.v1.batch_pb2 import Batch, BatchState, DataFile
from profile_export.v1.dataset_pb2 import Dataset, DatasetKind, IdentityField
from profile_export.v1.dataset_service_pb2 import UploadBatchResponse, UploadFormat
from profile_export.v1.export_service_pb2 import CreateJobResponse, WatchJobResponse
from profile_export.v1.job_pb2 import (
    ExportJob,
    JobMetrics,
    JobPhase,
    JobProgress,
    JobState,
    JobTransition,
)
from profile_export.v1.merge_policy_pb2 import IdentityGraph, MergePolicy

__all__ = [
    "Batch",
    "BatchState",
    "Client",
    "ClientError",
    "CreateJobResponse",
    "DataFile",
    "Dataset",
    "DatasetKind",
    "Events",
    "ExportJob",
    "IdentityField",
    "IdentityGraph",
    "JobMetrics",
    "JobPhase",
    "JobProgress",
    "JobState",
    "JobTransition",
    "MergePolicy",
    "UploadBatchResponse",
    "UploadFormat",
    "Violation",
    "WatchJobResponse",
    "as_json",
]
