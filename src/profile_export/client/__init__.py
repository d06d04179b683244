"""A client for asyncio: imports only the contract and grpc. Streams resume by themselves."""

from profile_export.client.batches import UploadFile, UploadPhase, UploadProgress
from profile_export.client.calls import PAGE, ClientError, Violation, as_json
from profile_export.client.connection import Client
from profile_export.client.jobs import FINAL_STATES, Events, Profiles, Segment, export_spec
from profile_export.client.profiles import EventQuery
from profile_export.v1.batch_pb2 import Batch, BatchState, BatchUpload, DataFile, RejectedRow
from profile_export.v1.dataset_pb2 import (
    Dataset,
    DatasetKind,
    DecimalType,
    Field,
    FieldDeclaration,
    FieldType,
    IdentityField,
    MirrorStatus,
    ScalarType,
)
from profile_export.v1.dataset_service_pb2 import (
    CompleteBatchResponse,
    GetReceiptResponse,
    UploadBatchResponse,
    UploadFormat,
)
from profile_export.v1.export_service_pb2 import (
    CreateJobResponse,
    EstimateJobResponse,
    Exactness,
    Figure,
    JobChange,
    WatchJobResponse,
    WatchJobsResponse,
)
from profile_export.v1.job_pb2 import (
    ExportJob,
    ExportSpec,
    JobMetrics,
    JobPhase,
    JobProgress,
    JobState,
    JobTransition,
    MembershipStatus,
)
from profile_export.v1.merge_policy_pb2 import AttributeMergeType, IdentityGraph, MergePolicy
from profile_export.v1.profile_pb2 import Identity, Profile, ProfileEvent
from profile_export.v1.receipt_pb2 import InputBatch, Receipt
from profile_export.v1.schema_pb2 import Schema, UnionSchema
from profile_export.v1.schema_service_pb2 import CreateSchemaResponse

__all__ = [
    "FINAL_STATES",
    "PAGE",
    "AttributeMergeType",
    "Batch",
    "BatchState",
    "BatchUpload",
    "Client",
    "ClientError",
    "CompleteBatchResponse",
    "CreateJobResponse",
    "CreateSchemaResponse",
    "DataFile",
    "Dataset",
    "DatasetKind",
    "DecimalType",
    "EstimateJobResponse",
    "EventQuery",
    "Events",
    "Exactness",
    "ExportJob",
    "ExportSpec",
    "Field",
    "FieldDeclaration",
    "FieldType",
    "Figure",
    "GetReceiptResponse",
    "Identity",
    "IdentityField",
    "IdentityGraph",
    "InputBatch",
    "JobChange",
    "JobMetrics",
    "JobPhase",
    "JobProgress",
    "JobState",
    "JobTransition",
    "MembershipStatus",
    "MergePolicy",
    "MirrorStatus",
    "Profile",
    "ProfileEvent",
    "Profiles",
    "Receipt",
    "RejectedRow",
    "ScalarType",
    "Schema",
    "Segment",
    "UnionSchema",
    "UploadBatchResponse",
    "UploadFile",
    "UploadFormat",
    "UploadPhase",
    "UploadProgress",
    "Violation",
    "WatchJobResponse",
    "WatchJobsResponse",
    "as_json",
    "export_spec",
]
