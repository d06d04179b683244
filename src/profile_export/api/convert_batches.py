"""Uploads, batches, files and rows as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from profile_export.api.convert import required, timestamp
from profile_export.domain.batch import MOST_ERRORS, Batch, DataFile, RejectedRow, UploadStart, UploadState
from profile_export.domain.errors import InvalidArgumentError
from profile_export.v1 import batch_pb2, dataset_service_pb2

DEFAULT_FILE_NAME = "1"
_FORMATS = {
    dataset_service_pb2.UPLOAD_FORMAT_JSON_LINES: "json_lines",
    dataset_service_pb2.UPLOAD_FORMAT_JSON_ARRAY: "json_array",
    dataset_service_pb2.UPLOAD_FORMAT_CSV: "csv",
    dataset_service_pb2.UPLOAD_FORMAT_PARQUET: "parquet",
}


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
    )


def batch(value: Batch, received: Mapping[str, int]) -> batch_pb2.Batch:
    """Write a batch; `received` says how many bytes have arrived of its files that are not complete."""
    uploads = [
        batch_pb2.BatchUpload(
            file_name=upload.file_name,
            received_bytes=received.get(upload.file_name, upload.byte_count or 0),
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
        job_id=value.job_id,
        uploads=uploads,
        errors=errors[:MOST_ERRORS],
        state_reason=value.state_reason,
        expire_time=timestamp(value.expire_time),
    )


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
