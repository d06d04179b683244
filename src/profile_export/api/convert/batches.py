"""Uploads, batches, files, rows and receipts as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Callable

from profile_export.api.convert.jobs import export_spec, job_metrics, segment_filter
from profile_export.api.convert.profiles import merge_policy
from profile_export.api.convert.values import required, timestamp
from profile_export.application.batches import ShownBatch
from profile_export.domain.catalog.batches import (
    MOST_ERRORS,
    DataFile,
    RejectedRow,
    UploadStart,
    UploadState,
)
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.receipt import StoredReceipt
from profile_export.domain.export.request import BoundRequest
from profile_export.v1 import batch_pb2, dataset_service_pb2, receipt_pb2

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
    )
