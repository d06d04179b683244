"""Datasets and schemas as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from profile_export.api import convert_fields
from profile_export.api.convert import duration, length_of_time, required, timestamp
from profile_export.domain.catalog import Dataset, DatasetKind, Schema, SchemaRef
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.mirror import MirrorStatus, mirror_table
from profile_export.domain.retention import check_batch_retention
from profile_export.domain.schema import ObjectType
from profile_export.store.judging import DatasetChange, NewDataset
from profile_export.v1 import dataset_pb2, dataset_service_pb2, schema_pb2

DEFAULT_CONTENT_TYPE = "application/vnd.adobe.xed+json;version=1"
_KINDS = {
    DatasetKind.RECORD: dataset_pb2.DATASET_KIND_RECORD,
    DatasetKind.EVENT: dataset_pb2.DATASET_KIND_EVENT,
    DatasetKind.UNION: dataset_pb2.DATASET_KIND_UNION,
}


def new_dataset(request: dataset_service_pb2.CreateDatasetRequest) -> NewDataset:
    """Read and check a request to make a dataset.

    Raises:
        InvalidArgumentError: A field is wrong.
    """
    return NewDataset(
        name=required(request.name, "name"),
        description=request.description,
        schema=SchemaRef(required(request.schema_ref.id, "schema_ref.id"), request.schema_ref.content_type),
        tags={name: tuple(values.values) for name, values in sorted(request.tags.items())},
        identity_fields=convert_fields.identity_fields(request.identity_fields),
        declared_fields=convert_fields.declarations(request.declared_fields, "declared_fields"),
        iceberg=_mirrored(request.iceberg),
        batch_retention=_batch_retention(request) or None,
    )


def dataset_change(request: dataset_service_pb2.UpdateDatasetRequest) -> DatasetChange:
    """Read and check a request to change a dataset.

    Raises:
        InvalidArgumentError: A field is wrong, or nothing is to change.
    """
    change = DatasetChange(
        name=required(request.name, "name") if request.HasField("name") else None,
        description=request.description if request.HasField("description") else None,
        tags=(
            {name: tuple(values.values) for name, values in sorted(request.tags.entries.items())}
            if request.HasField("tags")
            else None
        ),
        declared_fields=convert_fields.declarations(request.add_declared_fields, "add_declared_fields"),
        iceberg=_mirrored(request.iceberg),
        batch_retention=_batch_retention(request),
    )
    if change == DatasetChange():
        raise InvalidArgumentError.of_field(
            "name", "or another field is required: nothing is to change.", "FIELD_REQUIRED"
        )
    return change


def _mirrored(settings: dataset_pb2.IcebergSettings) -> bool | None:
    """Read whether a dataset is to be mirrored; None if the caller does not say."""
    return settings.enabled if settings.HasField("enabled") else None


def _batch_retention(
    request: dataset_service_pb2.CreateDatasetRequest | dataset_service_pb2.UpdateDatasetRequest,
) -> timedelta | None:
    """Read how long batches are to be kept, zero for ever; None if the caller does not say.

    Raises:
        InvalidArgumentError: As `check_batch_retention`.
    """
    if not request.HasField("batch_retention"):
        return None
    kept_for = length_of_time(request.batch_retention, "batch_retention")
    check_batch_retention(kept_for, "batch_retention")
    return kept_for


def dataset(value: Dataset, mirror: MirrorStatus | None) -> dataset_pb2.Dataset:
    """Write a dataset; `mirror` is None if it is not mirrored and never was."""
    message = dataset_pb2.Dataset(
        id=value.id,
        name=value.name,
        description=value.description,
        schema_ref=dataset_pb2.SchemaRef(
            id=value.schema.id, content_type=value.schema.content_type or DEFAULT_CONTENT_TYPE
        ),
        kind=_KINDS[value.kind],
        tags={name: dataset_pb2.TagValues(values=values) for name, values in value.tags.items()},
        identity_fields=[convert_fields.identity_field(field) for field in value.identity_fields],
        mirror=_mirror_status(value.id, mirror) if mirror else None,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        batch_retention=duration(value.batch_retention),
    )
    convert_fields.write_declarations(value.declared_fields, message.declared_fields)
    convert_fields.write_fields(value.fields, message.fields)
    return message


def _mirror_status(dataset_id: str, value: MirrorStatus) -> dataset_pb2.MirrorStatus:
    return dataset_pb2.MirrorStatus(
        enabled=value.enabled,
        table=mirror_table(dataset_id),
        metadata_location=value.metadata_location,
        mirrored_batches=value.mirrored_batches,
        pending_changes=value.pending_changes,
        last_batch_id=value.last_batch_id,
        mirror_time=timestamp(value.mirror_time),
        error_message=value.error_message,
    )


def schema(value: Schema, *, listed: bool = False) -> schema_pb2.Schema:
    """Write a schema; without document and fields in a list."""
    message = schema_pb2.Schema(
        id=value.id,
        title=value.title,
        kind=dataset_pb2.DATASET_KIND_UNSPECIFIED if value.kind is None else _KINDS[value.kind],
        class_id=value.class_id,
        version=value.version,
        built_in=value.create_time is None,
        document="" if listed else value.document,
        identity_fields=[convert_fields.identity_field(field) for field in value.identity_fields],
        create_time=timestamp(value.create_time),
    )
    if not listed:
        convert_fields.write_fields(value.fields, message.fields)
    return message


def union_schema(name: str, fields: ObjectType, sources: Sequence[Dataset]) -> schema_pb2.UnionSchema:
    """Write the union schema of a class and what it was merged from."""
    message = schema_pb2.UnionSchema(schema_name=name, dataset_ids=sorted(dataset.id for dataset in sources))
    convert_fields.write_fields(fields, message.fields)
    return message
