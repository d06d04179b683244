"""How much a request may hold: THE table, by message and field. `api/admission.py` checks it before anything else.

The comment of each field in the protos says the same number; a test compares them, and finds fields without a limit.
What a value has to be like beyond its size is for the converters and the domain to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profile_export.domain.schemas.xdm_places import MAX_ID

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limit:
    """How much one field may hold; None where its type sets no bound or needs none.

    Attributes:
        length: The most characters of a text: of each text of a repeated field, of each key of a map.
        items: The most items of a repeated field, or entries of a map.
        size: The most bytes of a text or of bytes, instead of `length`.
    """

    length: int | None = None
    items: int | None = None
    size: int | None = None


NAME = Limit(255)
ID = Limit(128)
ETAG = Limit(128)
BATCH_ID = Limit(64)
REQUEST_ID = Limit(128)
SCHEMA_ID = Limit(MAX_ID)
FIELD_PATH = Limit(1_024)
FIELD_PATHS = Limit(1_024, items=5_000)
REASON = Limit(1_000)
DESCRIPTION = Limit(10_000)
FILTER = Limit(10_000)
TAGS = Limit(255, items=100)
IDENTITY_FIELDS = Limit(items=100)
EXCLUDED_IDENTITIES = Limit(items=1_000)
DECLARED_FIELDS = Limit(items=5_000)
# They hold the key of an item, which may be the id of a schema or of an event.
PAGE_TOKEN = Limit(10_000)
EVENT_PAGE_TOKEN = Limit(200_000)
DOCUMENT = Limit(size=MIB)

_LIST = {"page_token": PAGE_TOKEN, "filter": FILTER, "order_by": NAME}

LIMITS: Mapping[str, Mapping[str, Limit]] = {
    # Parts of requests
    "SchemaRef": {"id": SCHEMA_ID, "content_type": NAME},
    "TagValues": {"values": Limit(256, items=100)},
    "DatasetTags": {"entries": TAGS},
    "IdentityField": {"path": FIELD_PATH, "namespace": NAME},
    "FieldDeclaration": {"path": FIELD_PATH},
    "ObjectType": {"fields": DECLARED_FIELDS},
    "Field": {"name": FIELD_PATH},
    "Identity": {"namespace": NAME, "id": Limit(100_000)},
    "MergePolicyRef": {"id": ID},
    "AttributeMerge": {"order": Limit(128, items=1_000)},
    "ExcludedIdentity": {"namespace": NAME, "id": Limit(100_000)},
    "ExcludedIdentities": {"identities": EXCLUDED_IDENTITIES},
    "ExportSpec": {"fields": FIELD_PATHS, "schema_name": NAME, "engine": NAME},
    "ExportFilter": {"segments": Limit(items=500)},
    "SegmentFilter": {"segment_id": NAME, "namespace": NAME, "statuses": Limit(items=10)},
    "EventList": {"fields": FIELD_PATHS},
    "ExportDestination": {"dataset_id": ID},
    "UploadStart": {
        "dataset_id": ID,
        "batch_id": BATCH_ID,
        "file_name": Limit(128),
        "null_values": Limit(100, items=100),
        "renames": Limit(1_024, items=1_000),
    },
    "UploadFinish": {"sha256": Limit(64)},
    # DatasetService
    "CreateDatasetRequest": {
        "name": NAME,
        "tags": TAGS,
        "identity_fields": IDENTITY_FIELDS,
        "declared_fields": DECLARED_FIELDS,
        "description": DESCRIPTION,
        "request_id": REQUEST_ID,
    },
    "GetDatasetRequest": {"dataset_id": ID},
    "ListDatasetsRequest": _LIST,
    "UpdateDatasetRequest": {
        "dataset_id": ID,
        "name": NAME,
        "description": DESCRIPTION,
        "add_declared_fields": DECLARED_FIELDS,
        "etag": ETAG,
    },
    "DeleteDatasetRequest": {"dataset_id": ID, "etag": ETAG},
    "UndeleteDatasetRequest": {"dataset_id": ID},
    "PreviewDatasetRequest": {"dataset_id": ID},
    "CreateBatchRequest": {"dataset_id": ID, "batch_id": BATCH_ID, "request_id": REQUEST_ID},
    "UploadBatchRequest": {"data": Limit(size=4 * MIB)},
    "CompleteBatchRequest": {"batch_id": BATCH_ID},
    "AbortBatchRequest": {"batch_id": BATCH_ID, "reason": REASON},
    "RevertBatchRequest": {"batch_id": BATCH_ID, "reason": REASON},
    "GetBatchRequest": {"batch_id": BATCH_ID},
    "ListBatchesRequest": {"dataset_id": ID, **_LIST},
    "ListRejectedRowsRequest": {"batch_id": BATCH_ID, **_LIST},
    "ListBatchFilesRequest": {"batch_id": BATCH_ID, **_LIST},
    "ReadBatchFileRequest": {"batch_id": BATCH_ID, "file_name": Limit(1_024)},
    "GetReceiptRequest": {"batch_id": BATCH_ID},
    # SchemaService
    "CreateSchemaRequest": {
        "document": DOCUMENT,
        "referenced_documents": Limit(items=500, size=MIB),
        "identity_fields": IDENTITY_FIELDS,
    },
    "GetSchemaRequest": {"schema_id": SCHEMA_ID},
    "ListSchemasRequest": _LIST,
    "GetUnionSchemaRequest": {"schema_name": NAME},
    # ProfileService
    "CreateMergePolicyRequest": {
        "name": NAME,
        "schema_name": NAME,
        "excluded_identities": EXCLUDED_IDENTITIES,
    },
    "GetMergePolicyRequest": {"merge_policy_id": ID},
    "ListMergePoliciesRequest": _LIST,
    "UpdateMergePolicyRequest": {"merge_policy_id": ID, "name": NAME, "etag": ETAG},
    "DeleteMergePolicyRequest": {"merge_policy_id": ID, "etag": ETAG},
    "GetProfileRequest": {"fields": FIELD_PATHS},
    "ListProfileEventsRequest": {"fields": FIELD_PATHS, **_LIST, "page_token": EVENT_PAGE_TOKEN},
    "DeleteProfileRequest": {},
    # ExportService
    "CreateJobRequest": {"request_id": REQUEST_ID},
    "EstimateJobRequest": {},
    "GetJobRequest": {},
    "ListJobsRequest": _LIST,
    "CancelJobRequest": {"reason": REASON},
    "WatchJobRequest": {},
    "WatchJobsRequest": {"states": Limit(items=10), "dataset_id": ID},
}

MOST_MESSAGE_BYTES: Mapping[str, int] = {
    "CreateDatasetRequest": 512 * KIB,
    "UpdateDatasetRequest": 512 * KIB,
    "CreateMergePolicyRequest": 256 * KIB,
    "UpdateMergePolicyRequest": 256 * KIB,
    "GetProfileRequest": MIB,
    "ListProfileEventsRequest": MIB,
    "DeleteProfileRequest": MIB,
    "CreateJobRequest": 256 * KIB,
    "EstimateJobRequest": 256 * KIB,
    "CreateSchemaRequest": 3 * MIB + 256 * KIB,
    "UploadBatchRequest": 4 * MIB,
}
"""How many bytes a request's message may have, where it is more than `MESSAGE_BYTES`.

It bounds what is stored of one request whatever its fields add up to, and the time that decoding holds up the loop.
"""
MESSAGE_BYTES = 64 * KIB
FOREIGN_MESSAGE_BYTES = 256 * KIB
"""How many bytes a message to health or reflection may have, whose methods are not in the contract."""

MOST_TOP_FIELDS: Mapping[str, int] = {"CreateSchemaRequest": 1_000, "UploadBatchRequest": 16}
"""How many fields, each item of a repeated one counted, stand in the largest messages: told before they are decoded.

A million empty items in four megabytes take half a second to decode.
"""
MOST_PARTS = 12_000
"""How many messages a request may consist of, at all depths."""
MOST_TYPES_DEEP = 32
"""How many types of fields may be nested in one another in a request."""
