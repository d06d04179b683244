"""Messages to domain and back: datasets, batches, files and merge policies. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.domain import schema
from profile_export.domain.catalog import (
    BUILT_IN_SCHEMAS,
    Batch,
    DataFile,
    Dataset,
    DatasetKind,
    IdentityField,
    SchemaRef,
    check_identity_fields,
)
from profile_export.domain.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from profile_export.domain.paging import PageRequest
from profile_export.domain.policy import BUILT_IN_POLICY, IdentityGraph, MergePolicy
from profile_export.ingest.sessions import UploadStart
from profile_export.store.catalog import NewDataset
from profile_export.v1 import (
    batch_pb2,
    dataset_pb2,
    dataset_service_pb2,
    merge_policy_pb2,
    profile_service_pb2,
)

MAX_NAME = 255
MAX_REQUEST_ID = 128
_FORMATS = {
    dataset_service_pb2.UPLOAD_FORMAT_JSON_LINES: "json_lines",
    dataset_service_pb2.UPLOAD_FORMAT_PARQUET: "parquet",
}
_NOT_BUILT_FORMATS = {
    dataset_service_pb2.UPLOAD_FORMAT_JSON_ARRAY,
    dataset_service_pb2.UPLOAD_FORMAT_CSV,
}
_SCALARS = {
    schema.ScalarKind.TEXT: dataset_pb2.SCALAR_TYPE_STRING,
    schema.ScalarKind.BOOLEAN: dataset_pb2.SCALAR_TYPE_BOOLEAN,
    schema.ScalarKind.LONG: dataset_pb2.SCALAR_TYPE_LONG,
    schema.ScalarKind.DOUBLE: dataset_pb2.SCALAR_TYPE_DOUBLE,
    schema.ScalarKind.DATE: dataset_pb2.SCALAR_TYPE_DATE,
    schema.ScalarKind.TIMESTAMP: dataset_pb2.SCALAR_TYPE_TIMESTAMP,
}
_GRAPHS = {
    merge_policy_pb2.IDENTITY_GRAPH_NONE: IdentityGraph.NONE,
    merge_policy_pb2.IDENTITY_GRAPH_PDG: IdentityGraph.PDG,
}


def required(value: str, field: str, longest: int = MAX_NAME) -> str:
    """Return a text that has to be there.

    Raises:
        InvalidArgumentError: It is empty or too long.
    """
    if not value:
        raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
    return optional(value, field, longest)


def optional(value: str, field: str, longest: int = MAX_REQUEST_ID) -> str:
    """Return a text that may be empty.

    Raises:
        InvalidArgumentError: It is too long.
    """
    if len(value) > longest:
        raise InvalidArgumentError.of_field(field, f"must have at most {longest} characters.")
    return value


def refuse_unbuilt(message: Message, *fields: str, prefix: str = "") -> None:
    """Refuse fields that nothing would act upon.

    Raises:
        UnimplementedError: One of them is set; it is named, behind `prefix`.
    """
    listed = {descriptor.name for descriptor, _ in message.ListFields()}
    for field in fields:
        if field in listed:
            raise UnimplementedError.of_field(f"{prefix}{field}")


def page_request(request: Any, *arguments: str) -> PageRequest:
    """Read the paging fields of a list request; `arguments` are its other ones.

    Raises:
        InvalidArgumentError: As `PageRequest.of`.
        UnimplementedError: It has a filter or an order.
    """
    refuse_unbuilt(request, "filter", "order_by")
    return PageRequest.of(request.page_size, request.page_token, *arguments)


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Write an instant; None stays absent."""
    if instant is None:
        return None
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def instant(message: Message, field: str, prefix: str = "") -> datetime | None:
    """Read a Timestamp field; None if it is absent.

    Raises:
        InvalidArgumentError: It is no valid time.
    """
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgumentError.of_field(
            f"{prefix}{field}", "is not a time of the years 1 to 9999."
        ) from None


def new_dataset(request: dataset_service_pb2.CreateDatasetRequest) -> NewDataset:
    """Read and check a request to make a dataset.

    Raises:
        InvalidArgumentError: A field is wrong.
        NotFoundError: There is no such schema.
        UnimplementedError: It asks for what is not built yet.
    """
    refuse_unbuilt(request, "declared_fields", "iceberg")
    schema_id = required(request.schema_ref.id, "schema_ref.id")
    if schema_id not in BUILT_IN_SCHEMAS:
        raise NotFoundError.of("schema", schema_id)
    identity_fields = tuple(
        IdentityField(tuple(field.path.split(".")), field.namespace, field.primary)
        for field in request.identity_fields
    )
    check_identity_fields(BUILT_IN_SCHEMAS[schema_id].kind, identity_fields)
    return NewDataset(
        name=required(request.name, "name"),
        description=request.description,
        schema=SchemaRef(schema_id, request.schema_ref.content_type),
        tags={name: tuple(values.values) for name, values in sorted(request.tags.items())},
        identity_fields=identity_fields,
    )


def dataset(value: Dataset) -> dataset_pb2.Dataset:
    """Write a dataset."""
    kinds = {
        DatasetKind.RECORD: dataset_pb2.DATASET_KIND_RECORD,
        DatasetKind.EVENT: dataset_pb2.DATASET_KIND_EVENT,
        DatasetKind.UNION: dataset_pb2.DATASET_KIND_UNION,
    }
    return dataset_pb2.Dataset(
        id=value.id,
        name=value.name,
        description=value.description,
        schema_ref=dataset_pb2.SchemaRef(id=value.schema.id, content_type=value.schema.content_type),
        kind=kinds[value.kind],
        tags={name: dataset_pb2.TagValues(values=values) for name, values in value.tags.items()},
        identity_fields=[
            dataset_pb2.IdentityField(
                path=".".join(field.path), namespace=field.namespace, primary=field.primary
            )
            for field in value.identity_fields
        ],
        fields=_fields(value.fields),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def _fields(value: schema.ObjectType) -> list[dataset_pb2.Field]:
    return [dataset_pb2.Field(name=name, type=_field_type(member)) for name, member in value.fields.items()]


def _field_type(value: schema.FieldType) -> dataset_pb2.FieldType:
    match value:
        case schema.ObjectType():
            return dataset_pb2.FieldType(object=dataset_pb2.ObjectType(fields=_fields(value)))
        case schema.ArrayType(item):
            return dataset_pb2.FieldType(array=dataset_pb2.ArrayType(item=_field_type(item)))
        case schema.MapType(member):
            return dataset_pb2.FieldType(map=dataset_pb2.MapType(value=_field_type(member)))
        case schema.DecimalType(precision, scale):
            return dataset_pb2.FieldType(decimal=dataset_pb2.DecimalType(precision=precision, scale=scale))
        case schema.Scalar(kind):
            return dataset_pb2.FieldType(scalar=_SCALARS[kind])


def upload_start(message: dataset_service_pb2.UploadStart) -> UploadStart:
    """Read and check the first message of an upload.

    Raises:
        InvalidArgumentError: A field is wrong.
        UnimplementedError: It asks for what is not built yet.
    """
    refuse_unbuilt(message, "max_bad_records", prefix="start.")
    if message.format in _NOT_BUILT_FORMATS:
        name = dataset_service_pb2.UploadFormat.Name(message.format)
        raise UnimplementedError.of_field(f"start.format: {name}")
    if message.format not in _FORMATS:
        raise InvalidArgumentError.of_field("start.format", "is required.", "FIELD_REQUIRED")
    if message.offset < 0:
        raise InvalidArgumentError.of_field("start.offset", "must not be negative.")
    return UploadStart(
        dataset_id=required(message.dataset_id, "start.dataset_id"),
        batch_id=required(message.batch_id, "start.batch_id"),
        format=_FORMATS[message.format],
        file_name=message.file_name or "1",
        offset=message.offset,
    )


def batch(value: Batch, received_bytes: int = 0) -> batch_pb2.Batch:
    """Write a batch; `received_bytes` is how much of an unfinished upload has arrived."""
    upload = batch_pb2.BatchUpload(
        file_name=value.file_name,
        received_bytes=received_bytes if value.byte_count is None else value.byte_count,
        complete=value.byte_count is not None,
    )
    return batch_pb2.Batch(
        id=value.id,
        dataset_id=value.dataset_id,
        state=batch_pb2.BatchState.Value(f"BATCH_STATE_{value.state.name}"),
        number=value.number or 0,
        ingest_time=timestamp(value.ingest_time),
        create_time=timestamp(value.create_time),
        end_time=timestamp(value.end_time),
        rows=value.rows,
        bytes=value.bytes,
        file_count=value.file_count,
        job_id=value.job_id,
        uploads=[] if value.job_id is not None else [upload],
        errors=[
            batch_pb2.BatchError(
                code="ROW_REJECTED" if error.row else "FILE_INVALID",
                message=error.reason,
                file_name=value.file_name,
                row_number=error.row,
            )
            for error in value.errors
        ],
    )


def data_file(value: DataFile, location: str) -> batch_pb2.DataFile:
    """Write a data file; `location` is its address for readers in place."""
    return batch_pb2.DataFile(
        name=value.name, rows=value.rows, bytes=value.bytes, sha256=value.sha256, location=location
    )


def new_policy(request: profile_service_pb2.CreateMergePolicyRequest, policy_id: str) -> MergePolicy:
    """Read and check a request to make a merge policy.

    Raises:
        InvalidArgumentError: A field is wrong.
        UnimplementedError: It asks for what is not built yet.
    """
    refuse_unbuilt(request, "is_default")
    merge = request.attribute_merge
    if merge.type == merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE:
        raise UnimplementedError.of_field("attribute_merge.type: dataSetPrecedence")
    if merge.type != merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED:
        raise InvalidArgumentError.of_field("attribute_merge.type", "is required.", "FIELD_REQUIRED")
    if merge.order:
        raise InvalidArgumentError.of_field(
            "attribute_merge.order", "ranks datasets under dataSetPrecedence only.", "ORDER_INVALID"
        )
    if request.identity_graph not in _GRAPHS:
        raise InvalidArgumentError.of_field("identity_graph", "is required.", "FIELD_REQUIRED")
    if request.schema_name not in {"", BUILT_IN_POLICY.schema_name}:
        raise InvalidArgumentError.of_field("schema_name", f"must be '{BUILT_IN_POLICY.schema_name}'.")
    graph = _GRAPHS[request.identity_graph]
    return MergePolicy(id=policy_id, version=1, name=required(request.name, "name"), graph=graph)


def merge_policy(value: MergePolicy) -> merge_policy_pb2.MergePolicy:
    """Write a merge policy."""
    return merge_policy_pb2.MergePolicy(
        id=value.id,
        version=value.version,
        name=value.name,
        schema_name=value.schema_name,
        attribute_merge=merge_policy_pb2.AttributeMerge(
            type=merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
        ),
        identity_graph=next(wire for wire, graph in _GRAPHS.items() if graph is value.graph),
        is_default=value is BUILT_IN_POLICY,
        built_in=value.id == BUILT_IN_POLICY.id,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.create_time),
    )
