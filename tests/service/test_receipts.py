"""GetReceipt and the file that it names, against what lies there and what else the service says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
import pyarrow.parquet as pq

from profile_export.v1 import batch_pb2, job_pb2, receipt_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_PDG
from tests.service.harness import Caller, refusal_of

TIME = "2026-01-01T00:00:00Z"


async def get_receipt(caller: Caller, batch_id: str) -> ds.GetReceiptResponse:
    request = ds.GetReceiptRequest(batch_id=batch_id)
    return await caller.datasets.GetReceipt(request, metadata=caller.metadata)


async def receipt_of(caller: Caller, batch_id: str) -> receipt_pb2.Receipt:
    return (await get_receipt(caller, batch_id)).receipt


async def batches_in_place(caller: Caller) -> list[batch_pb2.Batch]:
    return list(
        (await caller.datasets.ListBatches(ds.ListBatchesRequest(), metadata=caller.metadata)).batches
    )


async def next_job_has_ended(caller: Caller) -> None:
    """Wait until the worker has done all about the jobs before: the next one starts only after that."""
    await caller.export(await caller.dataset("union"))


def place_of(location: str) -> Path:
    return Path(unquote(urlsplit(location).path))


def member(number: int, *segments: str) -> dict[str, Any]:
    entries = {segment: {"status": "realized", "lastQualificationTime": TIME} for segment in segments}
    return {"id": str(number), "segmentMembership": {"ups": entries}}


async def test_a_receipt_has_every_file_as_it_lies_there(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "rows", [{"id": str(number)} for number in range(20)])
    job = await caller.export(await caller.dataset("union"))

    receipt = await receipt_of(caller, job.batch_id)

    assert list(receipt.files) == list(await caller.files(job.batch_id))
    assert sum(file.rows for file in receipt.files) == 20
    for file in receipt.files:
        data = place_of(file.location).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert pq.ParquetFile(place_of(file.location)).metadata.num_rows == file.rows


async def test_a_receipt_repeats_the_job_and_names_what_it_read(caller: Caller) -> None:
    # given records, events, and what is no source
    source, events = (
        await caller.dataset("record", {"id": "CRM"}),
        await caller.dataset("event", {"id": "CRM"}),
    )
    off = await caller.dataset(
        "record", {"id": "CRM"}, tags={"unifiedProfile": {"values": ["enabled:false"]}}
    )
    await caller.upload(events, "visits", [{"_id": "e", "timestamp": TIME, "id": "3"}])
    await caller.upload(off, "off", [{"id": "9"}])
    await caller.upload(source, "rows", [{"id": "1"}, {"id": "2"}])
    await caller.upload(source, "wrong", [{"id": "4"}])
    await caller.revert("wrong")
    union = await caller.dataset("union")

    # when they are exported, and later more comes
    listed = [batch for batch in await batches_in_place(caller) if batch.dataset_id in {source, events}]
    job = await caller.export(union, policy=await caller.policy(IDENTITY_GRAPH_PDG), fields=["id"])
    await caller.upload(source, "later", [{"id": "5"}])

    # then the receipt is of the job and of the snapshot, with who was left out
    receipt = await receipt_of(caller, job.batch_id)
    batch = await caller.batch(job.batch_id)
    assert (receipt.batch_id, receipt.dataset_id, receipt.job_id) == (job.batch_id, union, job.id)
    assert (receipt.attempt, receipt.commit_time) == (1, batch.ingest_time)
    assert (receipt.spec, receipt.metrics, receipt.notes) == (job.spec, job.metrics, job.notes)
    assert receipt.merge_policy.id == job.spec.merge_policy.id
    assert receipt.merge_policy.identity_graph == IDENTITY_GRAPH_PDG
    assert not receipt.HasField("segment")
    assert list(receipt.input_batches) == [
        receipt_pb2.InputBatch(
            dataset_id=one.dataset_id,
            batch_id=one.id,
            number=one.number,
            ingest_time=one.ingest_time,
            rows=one.rows,
        )
        for one in listed
    ]
    assert [one.batch_id for one in receipt.input_batches] == ["visits", "rows"]
    assert (receipt.metrics.profiles_exported, receipt.metrics.left_out.events_only) == (2, 1)


async def test_the_document_lies_beside_the_files_and_is_no_file_of_the_batch(
    caller: Caller, data_dir: Path
) -> None:
    source, union = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "rows", [{"id": "1"}])
    job = await caller.export(union)
    await next_job_has_ended(caller)

    answer = await get_receipt(caller, job.batch_id)

    place = place_of(answer.location)
    assert place.read_bytes() == answer.document
    told = json.loads(answer.document)
    found = [place.parent / file["path"] for file in told["files"]]
    assert found == [place_of(file.location) for file in answer.receipt.files]
    assert {path for path in (data_dir / "lake" / union).resolve().rglob("*") if path.is_file()} == {
        place,
        *found,
    }
    request = ds.ReadBatchFileRequest(batch_id=job.batch_id, file_name="receipt.json")
    refusal = await refusal_of(caller.datasets.ReadBatchFile(request, metadata=caller.metadata).read())
    assert refusal.reason == "FILE_NOT_FOUND"


async def test_an_export_of_nothing_has_a_receipt_too(caller: Caller) -> None:
    job = await caller.export(await caller.dataset("union"))
    await next_job_has_ended(caller)

    answer = await get_receipt(caller, job.batch_id)

    assert (list(answer.receipt.files), list(answer.receipt.input_batches)) == ([], [])
    assert place_of(answer.location).read_bytes() == answer.document


async def test_each_segment_has_the_receipt_of_its_own_batch(caller: Caller) -> None:
    # given members of one, two and no segment, and a segment that nobody knows
    source, union = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("union")
    policy = await caller.policy(IDENTITY_GRAPH_PDG)
    await caller.upload(source, "rows", [member(1, "gold"), member(2, "gold", "red"), member(3)])

    # when each gets a batch
    wanted = [job_pb2.SegmentFilter(segment_id=one) for one in ("gold", "red", "unheard of")]
    job = await caller.export(
        union, policy=policy, filter=job_pb2.ExportFilter(segments=wanted), segment_per_batch=True
    )

    # then each batch has its segment, its files, and what was left out of the job
    receipts = [await receipt_of(caller, one.batch_id) for one in job.batches]
    assert [receipt.segment for receipt in receipts] == list(job.spec.filter.segments)
    assert [sum(file.rows for file in receipt.files) for receipt in receipts] == [2, 1, 0]
    assert [list(receipt.files) for receipt in receipts] == [
        list(await caller.files(one.batch_id)) for one in job.batches
    ]
    for receipt in receipts:
        assert receipt.metrics == job.metrics
        assert (receipt.metrics.left_out.not_in_segments, receipt.metrics.rows_written) == (1, 3)
        assert list(receipt.notes) == list(job.notes)
        assert "'unheard of'" in receipt.notes[0]


async def test_an_upload_and_a_batch_that_was_taken_back_have_none(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "rows", [{"id": "1"}])
    job = await caller.export(await caller.dataset("union"))
    await caller.revert(job.batch_id)

    uploaded = await refusal_of(get_receipt(caller, "rows"))
    reverted = await refusal_of(get_receipt(caller, job.batch_id))
    unknown = await refusal_of(get_receipt(caller, "nothing"))

    assert (uploaded.code, uploaded.reason) == (grpc.StatusCode.NOT_FOUND, "RECEIPT_NOT_FOUND")
    assert (reverted.code, reverted.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "BATCH_NOT_SUCCEEDED",
    )
    assert reverted.metadata["state"] == "REVERTED"
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")
