"""Datasets, schemas, fields and their types, batches, files, rows and receipts as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from profile_export.api.convert.jobs import export_spec, job_metrics, segment_filter
from profile_export.api.convert.profiles import merge_policy
from profile_export.api.convert.values import (
    MOST_LEVELS,
    duration,
    given,
    length_of_time,
    refuse_no_change,
    required,
    timestamp,
)
from profile_export.application.batches import ShownBatch
from profile_export.application.datasets import ShownDataset
from profile_export.domain.catalog.batches import (
    MOST_ERRORS,
    DataFile,
    MirrorStatus,
    Reading,
    RejectedRow,
    Upload,
    UploadStart,
    UploadState,
)
from profile_export.domain.catalog.datasets import (
    Dataset,
    DatasetChange,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    NewDataset,
    Schema,
    SchemaRef,
    check_batch_retention,
)
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.receipt import StoredReceipt
from profile_export.domain.export.request import BoundRequest
from profile_export.domain.schemas import types
from profile_export.domain.schemas.types import ObjectType
from profile_export.v1 import batch_pb2, dataset_pb2, dataset_service_pb2, receipt_pb2, schema_pb2

DEFAULT_CONTENT_TYPE = "application/vnd.adobe.xed+json;version=1"
_KINDS = {kind: dataset_pb2.DatasetKind.Value(f"DATASET_KIND_{kind.name}") for kind in DatasetKind}
DEFAULT_FILE_NAME = "1"
_FORMATS = {
    wire: name.removeprefix("UPLOAD_FORMAT_").lower()
    for name, wire in dataset_service_pb2.UploadFormat.items()
    if wire
}
_SCALARS = {
    types.ScalarKind.TEXT: dataset_pb2.SCALAR_TYPE_STRING,
    types.ScalarKind.BOOLEAN: dataset_pb2.SCALAR_TYPE_BOOLEAN,
    types.ScalarKind.LONG: dataset_pb2.SCALAR_TYPE_LONG,
    types.ScalarKind.DOUBLE: dataset_pb2.SCALAR_TYPE_DOUBLE,
    types.ScalarKind.DATE: dataset_pb2.SCALAR_TYPE_DATE,
    types.ScalarKind.TIMESTAMP: dataset_pb2.SCALAR_TYPE_TIMESTAMP,
}
_SCALAR_KINDS = {wire: kind for kind, wire in _SCALARS.items()}


def write_fields(
    value: types.ObjectType, into: RepeatedCompositeFieldContainer[dataset_pb2.Field], level: int = 0
) -> None:
    """Write named fields, sorted by name, into a field of a message; types below `MOST_LEVELS` are left unset.

    In place, since a message that is given to another is copied with all that is in it, at each level again.
    """
    for name in sorted(value.fields):
        added = into.add()
        added.name = name
        _write_type(value.fields[name], added.type, level)


def identity_fields(message: Iterable[dataset_pb2.IdentityField]) -> tuple[IdentityField, ...]:
    """Read identity fields."""
    return tuple(
        IdentityField(tuple(field.path.split(".")), field.namespace, field.primary) for field in message
    )


def identity_field(value: IdentityField) -> dataset_pb2.IdentityField:
    """Write an identity field."""
    return dataset_pb2.IdentityField(
        path=".".join(value.path), namespace=value.namespace, primary=value.primary
    )


def declarations(message: Sequence[dataset_pb2.FieldDeclaration], where: str) -> tuple[FieldDeclaration, ...]:
    """Read declared fields; `where` is the field of the request that holds them.

    Raises:
        InvalidArgumentError: A type is none.
    """
    return tuple(
        FieldDeclaration(tuple(one.path.split(".")), _read_type(one.type, f"{where}[{index}].type"))
        for index, one in enumerate(message)
    )


def write_declarations(
    values: Iterable[FieldDeclaration], into: RepeatedCompositeFieldContainer[dataset_pb2.FieldDeclaration]
) -> None:
    """Write declared fields into a field of a message."""
    for value in values:
        added = into.add()
        added.path = ".".join(value.path)
        _write_type(value.type, added.type, 0)


def _write_type(value: types.FieldType, into: dataset_pb2.FieldType, level: int) -> None:
    # Told apart from every type by having no kind; the field must be there all the same.
    into.SetInParent()
    if level > MOST_LEVELS:
        return
    match value:
        case types.Scalar(kind):
            into.scalar = _SCALARS[kind]
        case types.ObjectType():
            into.object.SetInParent()
            write_fields(value, into.object.fields, level + 1)
        case types.ArrayType(item):
            _write_type(item, into.array.item, level + 1)
        case types.MapType(member):
            _write_type(member, into.map.value, level + 1)
        case types.DecimalType(precision, scale):
            into.decimal.precision, into.decimal.scale = precision, scale


def _read_type(message: dataset_pb2.FieldType, where: str) -> types.FieldType:
    match message.WhichOneof("kind"):
        case "scalar" if message.scalar in _SCALAR_KINDS:
            return types.Scalar(_SCALAR_KINDS[message.scalar])
        case "decimal":
            return _read_decimal(message.decimal, f"{where}.decimal")
        case "object":
            members: dict[str, types.FieldType] = {}
            for member in message.object.fields:
                if member.name in members:
                    raise InvalidArgumentError.of_field(where, f"names the field '{member.name}' twice.")
                members[member.name] = _read_type(member.type, f"{where}.object.{member.name}")
            return types.ObjectType(members)
        case "array":
            return types.ArrayType(_read_type(message.array.item, f"{where}.array.item"))
        case "map":
            return types.MapType(_read_type(message.map.value, f"{where}.map.value"))
    raise InvalidArgumentError.of_field(where, "is required: say what the field holds.", "FIELD_REQUIRED")


def _read_decimal(message: dataset_pb2.DecimalType, where: str) -> types.DecimalType:
    if not 1 <= message.precision <= types.MAX_DECIMAL_DIGITS or not 0 <= message.scale <= message.precision:
        raise InvalidArgumentError.of_field(
            where,
            f"needs a precision of 1 to {types.MAX_DECIMAL_DIGITS}, and a scale of 0 to the precision.",
        )
    return types.DecimalType(message.precision, message.scale)


def new_dataset(request: dataset_service_pb2.CreateDatasetRequest) -> NewDataset:
    """Read and check a request to make a dataset.

    Raises:
        InvalidArgumentError: A field is wrong.
    """
    return NewDataset(
        name=required(request.name, "name"),
        description=request.description,
        schema=SchemaRef(required(request.schema_ref.id, "schema_ref.id"), request.schema_ref.content_type),
        tags=_tags(request.tags),
        identity_fields=identity_fields(request.identity_fields),
        declared_fields=declarations(request.declared_fields, "declared_fields"),
        iceberg=given(request.iceberg, "enabled"),
        batch_retention=_batch_retention(request) or None,
    )


def dataset_change(request: dataset_service_pb2.UpdateDatasetRequest) -> DatasetChange:
    """Read and check a request to change a dataset.

    Raises:
        InvalidArgumentError: A field is wrong, or nothing is to change.
    """
    change = DatasetChange(
        name=required(request.name, "name") if request.HasField("name") else None,
        description=given(request, "description"),
        tags=_tags(request.tags.entries) if request.HasField("tags") else None,
        declared_fields=declarations(request.add_declared_fields, "add_declared_fields"),
        iceberg=given(request.iceberg, "enabled"),
        batch_retention=_batch_retention(request),
    )
    refuse_no_change(change)
    return change


def _tags(message: Mapping[str, dataset_pb2.TagValues]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values.values) for name, values in sorted(message.items())}


def _batch_retention(
    request: dataset_service_pb2.CreateDatasetRequest | dataset_service_pb2.UpdateDatasetRequest,
) -> timedelta | None:
    """Read how long batches are to be kept, zero for ever; None if the caller does not say.

    Raises:
        InvalidArgumentError: As `check_batch_retention`.
    """
    kept_for = length_of_time(request, "batch_retention")
    if kept_for is not None:
        check_batch_retention(kept_for, "batch_retention")
    return kept_for


def dataset(shown: ShownDataset) -> dataset_pb2.Dataset:
    """Write a dataset, what counts of it, and how far its mirror is."""
    value, mirror = shown.dataset, shown.mirror
    message = dataset_pb2.Dataset(
        id=value.id,
        name=value.name,
        description=value.description,
        schema_ref=dataset_pb2.SchemaRef(
            id=value.schema.id, content_type=value.schema.content_type or DEFAULT_CONTENT_TYPE
        ),
        kind=_KINDS[value.kind],
        tags={name: dataset_pb2.TagValues(values=values) for name, values in value.tags.items()},
        identity_fields=[identity_field(field) for field in value.identity_fields],
        mirror=_mirror_status(mirror) if mirror else None,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        batch_retention=duration(value.batch_retention),
        delete_time=timestamp(value.delete_time),
        purge_time=timestamp(value.purge_time),
        rows=shown.content.rows,
        bytes=shown.content.bytes,
        last_ingest_time=timestamp(shown.content.last_ingest_time),
        etag=value.etag,
    )
    write_declarations(value.declared_fields, message.declared_fields)
    write_fields(value.fields, message.fields)
    return message


def _mirror_status(value: MirrorStatus) -> dataset_pb2.MirrorStatus:
    return dataset_pb2.MirrorStatus(
        enabled=value.enabled,
        table=value.table,
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
        identity_fields=[identity_field(field) for field in value.identity_fields],
        create_time=timestamp(value.create_time),
    )
    if not listed:
        write_fields(value.fields, message.fields)
    return message


def union_schema(name: str, fields: ObjectType, sources: Sequence[Dataset]) -> schema_pb2.UnionSchema:
    """Write the union schema of a class and what it was merged from."""
    message = schema_pb2.UnionSchema(schema_name=name, dataset_ids=sorted(dataset.id for dataset in sources))
    write_fields(fields, message.fields)
    return message


def upload_start(message: dataset_service_pb2.UploadStart) -> UploadStart:
    """Read and check the first message of an upload.

    Raises:
        InvalidArgumentError: A field is wrong.
    """
    if message.format not in _FORMATS:
        raise InvalidArgumentError.of_field("start.format", "is required.", "FIELD_REQUIRED")
    return UploadStart(
        dataset_id=required(message.dataset_id, "start.dataset_id"),
        batch_id=required(message.batch_id, "start.batch_id"),
        file_name=message.file_name or DEFAULT_FILE_NAME,
        format=_FORMATS[message.format],
        offset=message.offset,
        max_bad_records=message.max_bad_records,
        reading=Reading(tuple(message.null_values), tuple(sorted(message.renames.items()))),
    )


def batch(shown: ShownBatch) -> batch_pb2.Batch:
    """Write a batch, with how many bytes have arrived of its files that are not complete."""
    value = shown.batch
    uploads = [
        batch_pb2.BatchUpload(
            file_name=upload.file_name,
            received_bytes=shown.received.get(upload.file_name, upload.byte_count or 0),
            complete=upload.state is UploadState.COMPLETE,
        )
        for upload in value.uploads
    ]
    errors = [
        batch_pb2.BatchError(
            code=error.code,
            message=error.message,
            file_name=upload.file_name,
            row_number=error.row,
            path=error.path,
        )
        for upload in value.uploads
        for error in upload.errors
    ]
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
        rejected_rows=value.rejected_rows,
        null_count=value.null_count,
        notes=[note for upload in value.uploads for note in _noted(upload, len(value.uploads))][:MOST_ERRORS],
        job_id=value.job_id,
        uploads=uploads,
        errors=errors[:MOST_ERRORS],
        state_reason=value.state_reason,
        expire_time=timestamp(value.expire_time),
        replaced_by_job_id=value.replaced_by,
    )


def _noted(upload: Upload, files: int) -> list[str]:
    """Return the notes of a file, which name it where its batch has others."""
    return [f"{upload.file_name}: {note}" if files > 1 else note for note in upload.notes]


def rejected_row(file_name: str, value: RejectedRow) -> batch_pb2.RejectedRow:
    """Write a rejected row of an uploaded file."""
    return batch_pb2.RejectedRow(
        file_name=file_name,
        row_number=value.row,
        reason=value.code,
        message=value.message,
        path=value.path,
        row=value.text,
    )


def data_file(value: DataFile, location: str) -> batch_pb2.DataFile:
    """Write a data file; `location` is its address for readers in place."""
    return batch_pb2.DataFile(
        name=value.name, rows=value.rows, bytes=value.bytes, sha256=value.sha256, location=location
    )


def receipt(stored: StoredReceipt, location: Callable[[str], str]) -> receipt_pb2.Receipt:
    """Write a receipt; `location` gives the address of a path in the lake for readers in place."""
    value = stored.receipt
    files = [
        DataFile(file.name, f"{stored.folder}/{file.path}", file.rows, file.bytes, file.sha256)
        for file in value.files
    ]
    begin, end = value.phases[0].start_time, value.phases[-1].end_time or value.commit_time
    return receipt_pb2.Receipt(
        batch_id=value.batch_id,
        dataset_id=value.dataset_id,
        job_id=value.job_id,
        attempt=value.attempt,
        commit_time=timestamp(value.commit_time),
        spec=export_spec(BoundRequest(value.request, value.policy, value.request.engine)),
        merge_policy=merge_policy(value.policy),
        segment=segment_filter(value.segment) if value.segment else None,
        input_batches=[
            receipt_pb2.InputBatch(
                dataset_id=batch.dataset_id,
                batch_id=batch.batch_id,
                number=batch.number,
                ingest_time=timestamp(batch.ingest_time),
                rows=batch.rows,
            )
            for batch in value.input_batches
        ],
        files=[data_file(file, location(file.path)) for file in files],
        metrics=job_metrics(value.metrics, value.phases, begin, end),
        notes=value.notes,
        replaced_batch_ids=value.replaced_batches,
    )
