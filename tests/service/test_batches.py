"""Batches of several files: opened, filled, completed, given up, taken back."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from profile_export.v1 import batch_pb2, dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller, json_lines, refusal_of

SWITCHED_OFF = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def source(caller: Caller) -> str:
    return await caller.dataset("record", {"id": "CRM"})


def people(*ids: int) -> bytes:
    return json_lines({"id": str(number), "name": f"name {number}"} for number in ids)


async def send(
    caller: Caller, dataset_id: str, file_name: str, data: bytes, max_bad_records: int = 0
) -> batch_pb2.Batch:
    sent = await caller.send(dataset_id, "b", data, file_name=file_name, max_bad_records=max_bad_records)
    return sent.batch


async def ids_in_order(caller: Caller, batch_id: str) -> list[str]:
    rows = sorted(await caller.rows(batch_id), key=lambda row: row["_row"])
    assert [row["_row"] for row in rows] == list(range(len(rows)))
    return [row["id"] for row in rows]


def files_below(data_dir: Path, dataset_id: str) -> list[Path]:
    """List what a dataset has on the disk."""
    return [path for path in (data_dir / "lake" / dataset_id).rglob("*") if path.is_file()]


async def create(caller: Caller, **values: str) -> ds.CreateBatchResponse:
    return await caller.datasets.CreateBatch(ds.CreateBatchRequest(**values), metadata=caller.metadata)


# --- Several files ---


async def test_files_count_together_and_in_the_order_of_their_names(caller: Caller, source: str) -> None:
    # given a batch whose files arrive in another order than that of their names
    opened = await caller.create_batch(source, "b")
    await send(caller, source, "2.jsonl", people(3, 4))
    waiting = await send(caller, source, "1.jsonl", people(1, 2))
    await send(caller, source, "3.jsonl", people(5))

    # when it is completed
    before = await caller.visible_batches(source)
    completed = await caller.complete("b")

    # then all rows count at once, and their numbers go on from file to file
    assert opened.state == waiting.state == batch_pb2.BATCH_STATE_LOADING
    assert [(upload.file_name, upload.complete) for upload in waiting.uploads] == [
        ("1.jsonl", True),
        ("2.jsonl", True),
    ]
    assert before == []
    assert completed.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert (completed.batch.rows, completed.batch.file_count, completed.replayed) == (5, 3, False)
    assert await ids_in_order(caller, "b") == ["1", "2", "3", "4", "5"]
    assert [file.name for file in await caller.files("b")] == [
        "00000-00000.parquet",
        "00001-00000.parquet",
        "00002-00000.parquet",
    ]


async def test_the_order_of_files_decides_nothing_where_a_value_teaches_no_type(caller: Caller) -> None:
    # given rows of which one says what a field is, and the others hold nothing there
    sent: dict[str, dict[str, Any]] = {
        "text": {"id": "text", "x": "t"},
        "list": {"id": "list", "x": []},
        "object": {"id": "object", "x": {"y": [None]}},
    }
    for number, order in enumerate((list(sent), list(reversed(sent)))):
        # when each comes as a file of one batch, in any order, and once more as a batch of its own
        dataset_id = await caller.dataset("record", {"id": "CRM"}, tags=SWITCHED_OFF)
        several = f"several-{number}"
        await caller.create_batch(dataset_id, several)
        for place, name in enumerate(order):
            await caller.send(dataset_id, several, json_lines([sent[name]]), file_name=f"{place}.jsonl")
        await caller.complete(several)
        for name in order:
            await caller.send(dataset_id, f"{name}-{number}", json_lines([sent[name]]))

        # then all are there, and nothing stands where nothing was
        batches = await caller.visible_batches(dataset_id)
        assert len(batches) == 4
        found = [row for batch in batches for row in await caller.rows(batch)]
        assert sorted((row["id"], row["x"]) for row in found if row["x"]) == [("text", "t")] * 2
        assert sorted(row["id"] for row in found) == sorted([*sent, *sent])


async def test_how_files_are_read_is_kept_until_the_batch_is_complete(caller: Caller, source: str) -> None:
    # given two files of a batch, of which the second makes the first be read again when it is completed
    asked: dict[str, Any] = {"null_values": ["NULL", "-"], "renames": {"nr": "id"}}
    first, second = b"nr,x\n1,NULL\n", b'{"nr":"-","x":[]}\n{"nr":"2","x":["NULL"]}\n'
    await caller.create_batch(source, "b")
    await caller.send(source, "b", second, file_name="2", max_bad_records=1, **asked)
    sent = await caller.send(source, "b", first, ds.UPLOAD_FORMAT_CSV, file_name="1", **asked)

    # when the batch is completed, and a file sent once more, in the same way and in another
    completed = await caller.complete("b")
    again = await caller.send(source, "b", first, ds.UPLOAD_FORMAT_CSV, file_name="1", **asked)
    refusal = await refusal_of(caller.send(source, "b", first, ds.UPLOAD_FORMAT_CSV, file_name="1"))

    # then it was read as asked, what was absent is counted, and other rows under its name are refused
    assert sent.batch.null_count == 3
    assert (completed.batch.rows, completed.batch.rejected_rows, completed.batch.null_count) == (2, 1, 3)
    assert await ids_in_order(caller, "b") == ["1", "2"]
    assert again.replayed
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "UPLOAD_DIFFERS")


async def test_completing_again_returns_the_same_batch(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))
    first = await caller.complete("b")

    again = await caller.complete("b")

    assert again.replayed
    assert again.batch == first.batch


async def test_two_calls_that_complete_at_once_complete_once(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "2", people(2))
    await send(caller, source, "1", people(1))

    answers = await asyncio.gather(caller.complete("b"), caller.complete("b"))

    assert sorted(answer.replayed for answer in answers) == [False, True]
    assert answers[0].batch == answers[1].batch
    assert await ids_in_order(caller, "b") == ["1", "2"]


async def test_the_last_record_of_a_batch_wins_whichever_file_it_came_in(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "2", json_lines([{"id": "1", "name": "last"}]))
    await send(caller, source, "1", json_lines([{"id": "1", "name": "first"}]))
    await caller.complete("b")

    job = await caller.export(await caller.dataset("union"))

    [row] = await caller.rows(job.batch_id)
    assert row["name"] == "last"


async def test_s13_an_empty_array_counts_if_another_file_of_the_batch_says_of_what(
    caller: Caller, source: str
) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", json_lines([{"id": "1", "tags": []}]))
    await send(caller, source, "2", json_lines([{"id": "2", "tags": ["a"]}]))

    await caller.complete("b")

    rows = {row["id"]: row["tags"] for row in await caller.rows("b")}
    assert rows == {"1": [], "2": ["a"]}


async def test_a_refused_file_leaves_the_others_and_may_come_again(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))

    refusal = await refusal_of(send(caller, source, "2", b'{"name": "nobody"}\n'))

    batch = await caller.batch("b")
    assert (refusal.code, refusal.reason) == (INVALID, "ROW_REJECTED")
    assert batch.state == batch_pb2.BATCH_STATE_LOADING
    assert [(one.file_name, one.code, one.row_number) for one in batch.errors] == [
        ("2", "PRIMARY_IDENTITY_MISSING", 1)
    ]
    assert [(row.file_name, row.row) for row in (await caller.rejected("b")).rows] == [
        ("2", '{"name": "nobody"}')
    ]
    await send(caller, source, "2", people(2))
    completed = (await caller.complete("b")).batch
    assert (completed.rows, list(completed.errors), completed.rejected_rows) == (2, [], 0)


async def test_a_batch_does_without_a_file_that_was_refused(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))
    await refusal_of(send(caller, source, "2", b"no json\n"))

    completed = await caller.complete("b")

    assert completed.batch.rows == 1


async def test_a_batch_with_an_unfinished_file_cannot_be_completed(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))
    messages = ds.UploadBatchRequest(
        start=ds.UploadStart(
            dataset_id=source, batch_id="b", file_name="2", format=ds.UPLOAD_FORMAT_JSON_LINES
        )
    )

    async def begun() -> AsyncIterator[ds.UploadBatchRequest]:
        yield messages

    await refusal_of(caller.datasets.UploadBatch(begun(), metadata=caller.metadata))
    refusal = await refusal_of(caller.complete("b"))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "UPLOAD_INCOMPLETE")
    assert refusal.metadata["file_name"] == "2"
    assert await caller.visible_batches(source) == []


async def test_a_batch_without_a_file_cannot_be_completed(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")

    refusal = await refusal_of(caller.complete("b"))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "UPLOAD_INCOMPLETE")


async def test_files_that_contradict_each_other_are_told_at_the_later_one(
    caller: Caller, source: str
) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", json_lines([{"id": "1", "age": 40}]))

    refusal = await refusal_of(send(caller, source, "2", json_lines([{"id": "2", "age": "40"}])))

    assert (refusal.reason, refusal.metadata["row_reason"]) == ("ROW_REJECTED", "FIELD_TYPE_CONFLICT")
    assert refusal.metadata["path"] == "age"


async def test_a_batch_that_contradicts_another_dataset_stays_loading(caller: Caller, source: str) -> None:
    other = await caller.dataset("record", {"id": "CRM"})
    await caller.create_batch(source, "b")
    await send(caller, source, "1", json_lines([{"id": "1", "age": 40}]))
    await caller.upload(other, "o", [{"id": "1", "age": "40"}])

    refusal = await refusal_of(caller.complete("b"))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert (refusal.metadata["path"], refusal.metadata["other_dataset_id"]) == ("age", other)
    assert (await caller.batch("b")).state == batch_pb2.BATCH_STATE_LOADING
    assert await caller.visible_batches(source) == []


async def test_repeating_a_complete_file_is_told_and_other_bytes_are_refused(
    caller: Caller, source: str
) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))

    again = await caller.send(source, "b", people(1), file_name="1")
    refusal = await refusal_of(send(caller, source, "1", people(2)))
    await caller.complete("b")
    afterwards = await caller.send(source, "b", people(1), file_name="1")

    assert again.replayed
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "UPLOAD_DIFFERS")
    assert afterwards.replayed
    assert afterwards.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED


async def test_a_completed_batch_takes_no_further_file(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))
    await caller.complete("b")

    refusal = await refusal_of(send(caller, source, "2", people(2)))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "BATCH_EXISTS")


# --- CreateBatch ---


async def test_creating_a_batch_again_finds_it_by_its_id_while_it_is_loading(
    caller: Caller, source: str
) -> None:
    first = await create(caller, dataset_id=source, batch_id="b")
    again = await create(caller, dataset_id=source, batch_id="b")
    await send(caller, source, "1", people(1))
    await caller.complete("b")

    refusal = await refusal_of(create(caller, dataset_id=source, batch_id="b"))

    assert (first.replayed, again.replayed) == (False, True)
    assert again.batch == first.batch
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "BATCH_EXISTS")


async def test_creating_a_batch_again_finds_it_by_its_request_id_for_good(
    caller: Caller, source: str
) -> None:
    first = await create(caller, dataset_id=source, request_id="r")
    await caller.send(source, first.batch.id, people(1), file_name="1")
    await caller.complete(first.batch.id)

    again = await create(caller, dataset_id=source, request_id="r")
    other = await caller.dataset("record", {"id": "CRM"})
    refusal = await refusal_of(create(caller, dataset_id=other, request_id="r"))

    assert again.replayed
    assert again.batch.id == first.batch.id
    assert again.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


@pytest.mark.parametrize(
    ("values", "code", "reason"),
    [
        ({"batch_id": "../x"}, INVALID, "FIELD_INVALID"),
        ({"request_id": "x" * 129}, INVALID, "FIELD_TOO_LONG"),
        ({"dataset_id": "0" * 24}, grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND"),
    ],
)
async def test_a_wrong_batch_is_refused(
    caller: Caller, source: str, values: dict[str, str], code: grpc.StatusCode, reason: str
) -> None:
    refusal = await refusal_of(create(caller, **({"dataset_id": source} | values)))

    assert (refusal.code, refusal.reason) == (code, reason)


async def test_a_union_dataset_has_no_batch_of_uploads(caller: Caller) -> None:
    union = await caller.dataset("union")

    refusal = await refusal_of(create(caller, dataset_id=union))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "SOURCE_READ_ONLY")


# --- Given up ---


async def test_a_batch_that_was_given_up_leaves_nothing(caller: Caller, source: str, data_dir: Path) -> None:
    await caller.create_batch(source, "b")
    await send(caller, source, "1", people(1))

    aborted = await caller.abort("b", "a mistake")
    again = await caller.abort("b")

    assert (aborted.state, aborted.state_reason) == (batch_pb2.BATCH_STATE_ABORTED, "a mistake")
    assert again == aborted
    assert files_below(data_dir, source) == []
    for call in (send(caller, source, "1", people(1)), caller.complete("b")):
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) in {
            (PRECONDITION, "BATCH_ABORTED"),
            (PRECONDITION, "BATCH_NOT_LOADING"),
        }


async def test_a_batch_that_is_given_up_while_a_file_arrives_refuses_the_file(
    caller: Caller, source: str
) -> None:
    await caller.create_batch(source, "b")
    call = caller.datasets.UploadBatch(metadata=caller.metadata)
    data = people(1)
    start = ds.UploadStart(dataset_id=source, batch_id="b", file_name="1", format=ds.UPLOAD_FORMAT_JSON_LINES)
    await call.write(ds.UploadBatchRequest(start=start))
    await call.write(ds.UploadBatchRequest(data=data))
    while not (batch := await caller.batch("b")).uploads or batch.uploads[0].received_bytes < len(data):
        pass

    await caller.abort("b")
    refusal = await refusal_of(_finish(call, data))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "BATCH_ABORTED")
    assert (await caller.batch("b")).state == batch_pb2.BATCH_STATE_ABORTED


async def _finish(call: Any, data: bytes) -> object:
    finish = ds.UploadFinish(byte_count=len(data), sha256=hashlib.sha256(data).hexdigest())
    await call.write(ds.UploadBatchRequest(finish=finish))
    await call.done_writing()
    return await call


async def test_a_batch_that_counts_cannot_be_given_up(caller: Caller, source: str) -> None:
    await caller.upload(source, "b", [{"id": "1"}])

    refusal = await refusal_of(caller.abort("b"))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "BATCH_NOT_LOADING")
    assert refusal.metadata["state"] == "SUCCEEDED"


# --- Taken back ---


async def test_a_batch_that_was_taken_back_is_hidden_at_once(caller: Caller, source: str) -> None:
    await caller.upload(source, "kept", [{"id": "1", "name": "Ann"}])
    await caller.upload(source, "b", [{"id": "1", "name": "Bob"}, {"id": "2"}])

    reverted = await caller.revert("b", "wrong file")
    again = await caller.revert("b")

    job = await caller.export(await caller.dataset("union"))
    assert (reverted.state, reverted.state_reason) == (batch_pb2.BATCH_STATE_REVERTED, "wrong file")
    assert again == reverted
    assert await caller.visible_batches(source) == ["kept"]
    assert [(row["id"], row["name"]) for row in await caller.rows(job.batch_id)] == [("1", "Ann")]
    for call in (caller.files("b"), caller.download("b", "00000.parquet")):
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (PRECONDITION, "BATCH_NOT_SUCCEEDED")


async def test_a_batch_that_does_not_count_cannot_be_taken_back(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")

    refusal = await refusal_of(caller.revert("b"))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "BATCH_NOT_SUCCEEDED")
    assert refusal.metadata["state"] == "LOADING"


async def test_the_batch_of_an_export_can_be_taken_back_but_not_given_up(caller: Caller, source: str) -> None:
    await caller.upload(source, "b", [{"id": "1"}])
    union = await caller.dataset("union")
    job = await caller.export(union)

    refusal = await refusal_of(caller.abort(job.batch_id))
    await caller.revert(job.batch_id)

    assert (refusal.code, refusal.reason) == (PRECONDITION, "BATCH_OF_JOB")
    assert await caller.visible_batches(union) == []


@pytest.mark.parametrize("method", ["complete", "abort", "revert", "rejected"])
async def test_a_batch_that_is_not_there_is_not_found(caller: Caller, method: str) -> None:
    refusal = await refusal_of(getattr(caller, method)("nowhere"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")


# --- Rejected rows ---


async def test_bad_rows_within_the_budget_are_kept_aside_and_listed(caller: Caller, source: str) -> None:
    good = {"id": "1"}
    lines = [json.dumps(good), "no json", json.dumps({"name": "nobody"}), "[]", json.dumps({"id": "2"})]
    data = "\n".join(lines).encode() + b"\n"

    batch = (await caller.send(source, "b", data, max_bad_records=3)).batch

    first = await caller.rejected("b", page_size=2)
    second = await caller.rejected("b", page_size=2, page_token=first.next_page_token)
    assert (batch.state, batch.rows, batch.rejected_rows) == (batch_pb2.BATCH_STATE_SUCCEEDED, 2, 3)
    assert await ids_in_order(caller, "b") == ["1", "2"]
    assert [(row.row_number, row.reason, row.row) for row in (*first.rows, *second.rows)] == [
        (2, "JSON_INVALID", "no json"),
        (3, "PRIMARY_IDENTITY_MISSING", '{"name": "nobody"}'),
        (4, "NOT_AN_OBJECT", "[]"),
    ]
    assert (len(first.rows), second.next_page_token) == (2, "")
    assert [error.row_number for error in batch.errors] == [2, 3, 4]


async def test_one_bad_row_more_than_the_budget_refuses_the_file_and_all_of_them_are_listed(
    caller: Caller, source: str
) -> None:
    data = b'{"id": "1"}\n' + b"bad\n" * 3

    refusal = await refusal_of(caller.send(source, "b", data, max_bad_records=2))

    batch = await caller.batch("b")
    assert (refusal.code, refusal.reason) == (INVALID, "ROW_REJECTED")
    assert (refusal.metadata["row_number"], refusal.metadata["row_reason"]) == ("2", "JSON_INVALID")
    assert batch.state == batch_pb2.BATCH_STATE_FAILED
    assert [row.row_number for row in (await caller.rejected("b")).rows] == [2, 3, 4]
    assert await caller.visible_batches(source) == []


async def test_rejected_rows_of_several_files_are_listed_by_file(caller: Caller, source: str) -> None:
    await caller.create_batch(source, "b")
    for name in ("2", "1"):
        await send(caller, source, name, people(int(name)) + b"bad\nworse\n", max_bad_records=2)
    await caller.complete("b")

    rows = []
    token = ""
    while True:
        page = await caller.rejected("b", page_size=3, page_token=token)
        rows += [(row.file_name, row.row_number) for row in page.rows]
        token = page.next_page_token
        if not token:
            break

    assert rows == [("1", 2), ("1", 3), ("2", 2), ("2", 3)]


async def test_large_rejected_rows_come_in_pages_that_fit_into_a_message(caller: Caller, source: str) -> None:
    row, name = "x" * 90_000, "y" * 1_024
    data = f"{row}\n".encode() * 60 + json_lines([{"id": "1", name: 1}, {"id": "2", name: "z"}])

    batch = (await caller.send(source, "b", data, max_bad_records=61)).batch

    numbers, pages = [], 0
    token = ""
    while True:
        page = await caller.rejected("b", page_token=token)
        numbers += [one.row_number for one in page.rows]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert (batch.rows, batch.rejected_rows) == (1, 61)
    assert numbers == [*range(1, 61), 62]
    assert pages > 1
    assert len(batch.errors[-1].message) < 2_000
