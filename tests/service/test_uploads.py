from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.v1 import batch_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1.dataset_pb2 import TagValues
from tests.service.harness import (
    Caller,
    Refusal,
    json_lines,
    refusal_from,
    refusal_of,
    replay,
    upload_messages,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ROWS = [{"id": str(number), "name": f"name {number}"} for number in range(2_000)]
DATA = json_lines(ROWS)


@pytest.fixture
async def source(caller: Caller) -> str:
    return await caller.dataset("record", {"id": "CRM"})


async def nothing_is_visible(caller: Caller, dataset_id: str, batch_id: str) -> None:
    listed = await caller.datasets.ListBatches(
        ds.ListBatchesRequest(dataset_id=dataset_id), metadata=caller.metadata
    )
    files = await refusal_of(
        caller.datasets.ListBatchFiles(ds.ListBatchFilesRequest(batch_id=batch_id), metadata=caller.metadata)
    )
    assert not listed.batches
    assert files.code in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}


async def batch_of(caller: Caller, batch_id: str) -> batch_pb2.Batch:
    return (
        await caller.datasets.GetBatch(ds.GetBatchRequest(batch_id=batch_id), metadata=caller.metadata)
    ).batch


async def refused(caller: Caller, dataset_id: str, data: bytes) -> Refusal:
    """Upload something that must be refused, and check that nothing of it shows."""
    refusal = await refusal_of(caller.send(dataset_id, "bad", data))
    await nothing_is_visible(caller, dataset_id, "bad")
    batch = await batch_of(caller, "bad")
    assert batch.state == batch_pb2.BATCH_STATE_FAILED
    assert batch.errors[0].message
    return refusal


async def test_rows_come_back_as_they_were_sent(caller: Caller, source: str) -> None:
    batch = await caller.upload(source, "b", ROWS)

    rows = await caller.rows("b")
    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert (batch.rows, batch.file_count) == (2_000, 1)
    assert sorted(((row["id"], row["name"]) for row in rows), key=lambda row: int(row[0])) == [
        (row["id"], row["name"]) for row in ROWS
    ]
    assert [(row["_key_high"], row["_key_low"]) for row in rows] == sorted(
        (row["_key_high"], row["_key_low"]) for row in rows
    )


async def test_a_parquet_file_is_taken_with_its_types(caller: Caller, source: str) -> None:
    table = pa.table(
        {"id": ["1", "2"], "visits": pa.array([3, None], pa.int32()), "home": [{"city": "Oslo"}, None]}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)

    await caller.send(source, "p", buffer.getvalue(), ds.UPLOAD_FORMAT_PARQUET)

    rows = {row["id"]: row for row in await caller.rows("p")}
    assert rows["1"]["visits"] == 3
    assert rows["1"]["home"] == {"city": "Oslo"}
    assert rows["2"]["visits"] is None


async def test_repeating_a_finished_upload_changes_nothing(caller: Caller, source: str) -> None:
    first = await caller.send(source, "b", DATA)

    again = await caller.send(source, "b", DATA)

    assert not first.replayed
    assert again.replayed
    assert again.batch == first.batch
    assert len(await caller.rows("b")) == 2_000


async def test_repeating_a_finished_upload_with_other_bytes_is_refused(caller: Caller, source: str) -> None:
    await caller.send(source, "b", DATA)

    refusal = await refusal_of(caller.send(source, "b", DATA + b"{}\n"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "UPLOAD_DIFFERS")
    assert len(await caller.rows("b")) == 2_000


async def test_a_batch_id_of_another_dataset_is_refused(caller: Caller, source: str) -> None:
    other = await caller.dataset("record", {"id": "CRM"})
    await caller.send(source, "b", DATA)

    refusal = await refusal_of(caller.send(other, "b", DATA))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "BATCH_EXISTS")


async def batch_if_any(caller: Caller, batch_id: str) -> batch_pb2.Batch | None:
    try:
        return await batch_of(caller, batch_id)
    except grpc.aio.AioRpcError as error:
        if refusal_from(error).reason != "BATCH_NOT_FOUND":
            raise
        return None


async def interrupt(
    caller: Caller, messages: Sequence[ds.UploadBatchRequest], batch_id: str, received: int
) -> None:
    """Send some messages, wait until the server has them, and hang up."""
    call = caller.datasets.UploadBatch(metadata=caller.metadata)
    for message in messages:
        await call.write(message)
    while not (batch := await batch_if_any(caller, batch_id)) or batch.uploads[0].received_bytes != received:
        pass
    call.cancel()


async def send_when_free(caller: Caller, messages: Sequence[ds.UploadBatchRequest]) -> ds.UploadBatchResponse:
    """Send an upload, again as long as the server says that a former one is still under way."""
    while True:
        try:
            return await caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata)
        except grpc.aio.AioRpcError as error:
            if refusal_from(error).reason != "UPLOAD_IN_PROGRESS":
                raise


async def test_an_interrupted_upload_resumes_where_it_stood_and_doubles_nothing(
    caller: Caller, source: str
) -> None:
    half = 30_000
    start = ds.UploadStart(dataset_id=source, batch_id="b", format=ds.UPLOAD_FORMAT_JSON_LINES)
    messages = [ds.UploadBatchRequest(start=start), ds.UploadBatchRequest(data=DATA[:half])]
    await interrupt(caller, messages, "b", half)

    resumed = await send_when_free(caller, upload_messages(source, "b", DATA, offset=half))

    assert resumed.batch.rows == 2_000
    assert len({row["id"] for row in await caller.rows("b")}) == 2_000


async def test_an_interrupted_upload_can_start_over(caller: Caller, source: str) -> None:
    start = ds.UploadStart(dataset_id=source, batch_id="b", format=ds.UPLOAD_FORMAT_JSON_LINES)
    await interrupt(
        caller, [ds.UploadBatchRequest(start=start), ds.UploadBatchRequest(data=DATA[:777])], "b", 777
    )

    again = await send_when_free(caller, upload_messages(source, "b", DATA))

    assert again.batch.rows == 2_000
    assert len(await caller.rows("b")) == 2_000


async def test_resuming_at_another_offset_says_how_far_it_got(caller: Caller, source: str) -> None:
    start = ds.UploadStart(dataset_id=source, batch_id="b", format=ds.UPLOAD_FORMAT_JSON_LINES)
    await interrupt(
        caller, [ds.UploadBatchRequest(start=start), ds.UploadBatchRequest(data=DATA[:777])], "b", 777
    )

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await send_when_free(caller, upload_messages(source, "b", DATA, offset=500))

    refusal = refusal_from(raised.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_MISMATCH")
    assert refusal.metadata["received_bytes"] == "777"
    await nothing_is_visible(caller, source, "b")


async def test_a_second_live_upload_of_the_same_batch_is_aborted_with_advice(
    caller: Caller, source: str
) -> None:
    start = ds.UploadBatchRequest(
        start=ds.UploadStart(dataset_id=source, batch_id="b", format=ds.UPLOAD_FORMAT_JSON_LINES)
    )
    live = caller.datasets.UploadBatch(metadata=caller.metadata)
    await live.write(start)
    await live.write(ds.UploadBatchRequest(data=DATA[:10]))
    while not await batch_if_any(caller, "b"):
        pass

    refusal = await refusal_of(caller.send(source, "b", DATA))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_IN_PROGRESS")
    assert refusal.retry_seconds
    live.cancel()


async def test_a_truncated_upload_leaves_nothing_and_may_be_sent_again(caller: Caller, source: str) -> None:
    messages = upload_messages(source, "b", DATA)
    del messages[1]

    refusal = await refusal_of(caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata))

    assert (refusal.code, refusal.reason) == (INVALID, "UPLOAD_TRUNCATED")
    await nothing_is_visible(caller, source, "b")
    assert (await caller.send(source, "b", DATA)).batch.rows == 2_000


async def test_bytes_that_differ_from_their_hash_leave_nothing(caller: Caller, source: str) -> None:
    messages = upload_messages(source, "b", DATA)
    messages[1] = ds.UploadBatchRequest(data=DATA[:-2] + b"!\n")

    refusal = await refusal_of(caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata))

    assert (refusal.code, refusal.reason) == (INVALID, "HASH_MISMATCH")
    await nothing_is_visible(caller, source, "b")


async def test_a_stream_without_its_last_message_keeps_what_has_arrived(caller: Caller, source: str) -> None:
    messages = upload_messages(source, "b", DATA)[:-1]

    refusal = await refusal_of(caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata))

    assert (refusal.code, refusal.reason) == (INVALID, "UPLOAD_TRUNCATED")
    assert (await batch_of(caller, "b")).uploads[0].received_bytes == len(DATA)
    resumed = upload_messages(source, "b", DATA, offset=len(DATA))
    assert (await send_when_free(caller, resumed)).batch.rows == 2_000


@pytest.mark.parametrize(
    ("line", "reason", "path"),
    [
        ('{"id": "2", ', "JSON_INVALID", ""),
        ('["id"]', "NOT_AN_OBJECT", ""),
        ('{"name": "nobody"}', "PRIMARY_IDENTITY_MISSING", ""),
        ('{"id": "2", "big": 9007199254740993}', "NUMBER_NOT_EXACT", "big"),
        ('{"id": "2", "name": 7}', "FIELD_TYPE_CONFLICT", "name"),
        (
            '{"id": "2", "identityMap": {"A": [{"id": "x", "primary": true}, {"id": "y", "primary": true}]}}',
            "PRIMARY_IDENTITY_AMBIGUOUS",
            "",
        ),
    ],
)
async def test_a_bad_record_is_refused_with_its_row_and_reason(
    caller: Caller, source: str, line: str, reason: str, path: str
) -> None:
    refusal = await refused(caller, source, b'{"id": "1", "name": "one"}\n' + line.encode() + b"\n")

    assert (refusal.code, refusal.reason) == (INVALID, "ROW_REJECTED")
    told = [refusal.metadata[name] for name in ("row_number", "row_reason", "path")]
    assert told == ["2", reason, path]


@pytest.mark.parametrize("missing", ["_id", "timestamp"])
async def test_an_event_without_id_or_timestamp_is_refused(caller: Caller, missing: str) -> None:
    events = await caller.dataset("event", {"who": "CRM"})
    event = {"_id": "e", "timestamp": "2026-01-01T00:00:00Z", "who": "1"}
    del event[missing]

    refusal = await refused(caller, events, json_lines([event]))

    assert refusal.metadata["row_number"] == "1"
    assert refusal.metadata["path"] == missing


async def test_a_type_that_conflicts_with_the_dataset_is_refused_with_path_and_both_types(
    caller: Caller, source: str
) -> None:
    await caller.upload(source, "first", [{"id": "1", "home": {"zip": "0150"}}])

    refusal = await refusal_of(caller.send(source, "second", json_lines([{"id": "2", "home": {"zip": 150}}])))

    assert refusal.code in {INVALID, grpc.StatusCode.FAILED_PRECONDITION}
    for word in ("home.zip", "string", "double"):
        assert word in refusal.message
    assert [row["id"] for row in await caller.rows("first")] == ["1"]


async def test_a_type_that_conflicts_with_another_dataset_is_refused_naming_both(
    caller: Caller, source: str
) -> None:
    other = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(other, "first", [{"id": "1", "age": "40"}])

    refusal = await refusal_of(caller.send(source, "second", json_lines([{"id": "2", "age": 40}])))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert {refusal.metadata["dataset_id"], refusal.metadata["other_dataset_id"]} == {source, other}
    assert refusal.metadata["path"] == "age"
    await nothing_is_visible(caller, source, "second")


async def test_a_dataset_that_takes_no_part_may_contradict_the_others(caller: Caller, source: str) -> None:
    apart = await caller.dataset(
        "record", {"id": "CRM"}, tags={"unifiedProfile": TagValues(values=["enabled:false"])}
    )
    await caller.upload(source, "first", [{"id": "1", "age": "40"}])

    batch = await caller.upload(apart, "second", [{"id": "2", "age": 40}])

    assert batch.rows == 1


async def test_uploads_to_a_union_dataset_are_refused(caller: Caller) -> None:
    union = await caller.dataset("union")

    refusal = await refusal_of(caller.send(union, "b", DATA))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_READ_ONLY")


async def test_eight_uploads_at_once_all_succeed(caller: Caller, source: str) -> None:
    parts = [[{"id": f"{part}-{row}"} for row in range(50)] for part in range(8)]

    batches = await asyncio.gather(
        *(caller.upload(source, f"b{part}", rows) for part, rows in enumerate(parts))
    )

    assert sorted(batch.number for batch in batches) == list(range(1, 9))
    listed = await caller.datasets.ListBatches(
        ds.ListBatchesRequest(dataset_id=source), metadata=caller.metadata
    )
    assert [batch.number for batch in listed.batches] == list(range(1, 9))


async def test_a_download_is_the_file_to_the_byte_from_any_offset(caller: Caller, source: str) -> None:
    await caller.upload(source, "b", ROWS)
    [file] = await caller.files("b")

    whole = await caller.download("b", file.name)
    stretch = await caller.download("b", file.name, offset=100, length=50)

    assert (len(whole), hashlib.sha256(whole).hexdigest()) == (file.bytes, file.sha256)
    assert stretch == whole[100:150]


async def test_reading_beyond_the_end_of_a_file_is_refused(caller: Caller, source: str) -> None:
    await caller.upload(source, "b", ROWS)
    [file] = await caller.files("b")

    refusal = await refusal_of(caller.download("b", file.name, offset=file.bytes + 1))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"batch_id": "../x"}, INVALID, "start.batch_id"),
        ({"batch_id": ""}, INVALID, "start.batch_id"),
        ({"format": 0}, INVALID, "start.format"),
        ({"format": 99}, INVALID, "start.format"),
        ({"max_bad_records": -1}, INVALID, "start.max_bad_records"),
        ({"offset": -1}, INVALID, "start.offset"),
        ({"file_name": "a/b"}, INVALID, "start.file_name"),
    ],
)
async def test_a_wrong_start_is_refused_by_field(
    caller: Caller, source: str, changes: dict[str, object], code: grpc.StatusCode, field: str
) -> None:
    [start, *rest] = upload_messages(source, "b", DATA)
    for name, value in changes.items():
        setattr(start.start, name, value)

    refusal = await refusal_of(caller.datasets.UploadBatch(replay([start, *rest]), metadata=caller.metadata))

    assert refusal.code is code
    assert field in refusal.message


async def test_an_upload_leaves_no_stream_open_however_it_ends(caller: Caller, source: str) -> None:
    left_open: list[str] = []
    hooks = sys.get_asyncgen_hooks()

    def note(generator: Any) -> None:
        left_open.append(generator.__qualname__)
        if hooks.finalizer:
            hooks.finalizer(generator)

    sys.set_asyncgen_hooks(finalizer=note)
    try:
        await caller.send(source, "b", DATA)
        for batch_id, messages in (
            ("out of order", upload_messages(source, "b", DATA)[1:]),
            ("cut", upload_messages(source, "cut", DATA)[:-1]),
            ("twice", [upload_messages(source, "twice", DATA)[0]] * 2),
            ("nowhere", upload_messages("no-such-dataset", "nowhere", DATA)),
        ):
            refusal = await refusal_of(
                caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata)
            )
            assert refusal.reason, batch_id
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)

    assert [name for name in left_open if "message_receiver" in name] == []
