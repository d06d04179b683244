"""Receipts as messages. Pure."""

from __future__ import annotations

from collections.abc import Callable

from profile_export.api.convert import timestamp
from profile_export.api.convert_batches import data_file
from profile_export.api.convert_jobs import export_spec, job_metrics, segment_filter
from profile_export.api.convert_policies import merge_policy
from profile_export.domain.batch import DataFile
from profile_export.domain.request import BoundRequest
from profile_export.store.receipts import StoredReceipt
from profile_export.v1 import receipt_pb2


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
        spec=export_spec(BoundRequest(value.request, value.policy)),
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
