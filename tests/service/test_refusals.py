"""What an upload is refused for: status, reason, row and field path, and that nothing of it is visible."""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.v1 import batch_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller, refusal_of

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
LINES, ARRAY = ds.UPLOAD_FORMAT_JSON_LINES, ds.UPLOAD_FORMAT_JSON_ARRAY
CSV, PARQUET = ds.UPLOAD_FORMAT_CSV, ds.UPLOAD_FORMAT_PARQUET
EVENT = {"_id": "e", "timestamp": "2026-01-01T00:00:00Z", "id": "1"}
MARKED = [{"id": "a", "primary": True}, {"id": "b", "primary": True}]


def line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def without(name: str) -> bytes:
    return line(**{key: value for key, value in EVENT.items() if key != name})


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


class Row(NamedTuple):
    """A first row that must be rejected: why, at which path, in which kind of dataset."""

    reason: str
    path: str
    data: bytes
    kind: str = "record"
    upload_format: ds.UploadFormat.ValueType = LINES


ROWS = [
    Row("JSON_INVALID", "", b"{no json}\n"),
    Row("JSON_INVALID", "", b'{"id": "1", "id": "2"}\n'),
    Row("NOT_AN_OBJECT", "", b"[1]\n"),
    Row("PRIMARY_IDENTITY_MISSING", "", line(name="nobody")),
    Row("PRIMARY_IDENTITY_AMBIGUOUS", "", line(identityMap={"CRM": MARKED})),
    Row("IDENTITY_INVALID", "id", line(id=1.5)),
    Row("IDENTITY_INVALID", "identityMap.CRM[]", line(id="1", identityMap={"CRM": [{}]})),
    Row("EVENT_ID_MISSING", "_id", without("_id"), "event"),
    Row("TIMESTAMP_MISSING", "timestamp", without("timestamp"), "event"),
    Row("VALUE_INVALID", "timestamp", line(**{**EVENT, "timestamp": "yesterday"}), "event"),
    Row("VALUE_INVALID", "_row", line(id="1", _row=7)),
    Row("NUMBER_NOT_EXACT", "n", line(id="1", n=9007199254740993)),
    Row("FIELD_TYPE_CONFLICT", "a.b[]", line(id="1", a={"b": [1, "x"]})),
    Row("RECORD_TOO_LARGE", "", line(id="1", text="x" * 100_000)),
    Row("RECORD_TOO_LARGE", "", line(**EVENT, text="x" * 10_000), "event"),
    Row("RECORD_TOO_LARGE", "", parquet(id=["1"], text=["x" * 100_000]), "record", PARQUET),
    Row("NOT_AN_OBJECT", "", b'[7, {"id": "1"}]', "record", ARRAY),
    Row("PRIMARY_IDENTITY_MISSING", "", b"id,name\n,nobody\n", "record", CSV),
    Row("IDENTITY_INVALID", "id", parquet(id=["", "2"]), "record", PARQUET),
    Row("EVENT_ID_MISSING", "_id", parquet(id=["1"], timestamp=["2026-01-01T00:00:00Z"]), "event", PARQUET),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.reason}-{row.kind}-{row.upload_format}")
async def test_a_bad_row_is_told_by_reason_and_path_and_nothing_is_visible(caller: Caller, row: Row) -> None:
    source = await caller.dataset(row.kind, {"id": "CRM"})

    refusal = await refusal_of(caller.send(source, "b", row.data, row.upload_format))

    listed = (await caller.rejected("b")).rows
    assert (refusal.code, refusal.reason) == (INVALID, "ROW_REJECTED")
    assert refusal.metadata["row_reason"] == row.reason
    assert (refusal.metadata["path"], refusal.metadata["row_number"]) == (row.path, "1")
    assert (listed[0].row_number, listed[0].reason, listed[0].path) == (1, row.reason, row.path)
    assert listed[0].message in refusal.message or len(listed[0].message) > 500
    await nothing_is_visible(caller, source)


@pytest.mark.parametrize(
    ("data", "upload_format"),
    [
        (b"PAR1 is how it begins", PARQUET),
        (b"", CSV),
        (b"id,id\n1,2\n", CSV),
        (b"a,a.b\n1,2\n", CSV),
        (b'{"id": "1"}', ARRAY),
        (b'[{"id": "1"}, {"id"', ARRAY),
        (b'[{"id": "1"}] and more', ARRAY),
    ],
)
async def test_a_file_that_is_not_what_its_format_says_is_refused_whole_whatever_the_budget(
    caller: Caller, data: bytes, upload_format: ds.UploadFormat.ValueType
) -> None:
    source = await caller.dataset("record", {"id": "CRM"})

    refusal = await refusal_of(caller.send(source, "b", data, upload_format, max_bad_records=100))

    batch = await caller.batch("b")
    assert (refusal.code, refusal.reason) == (INVALID, "FILE_INVALID")
    assert [error.code for error in batch.errors] == ["FILE_INVALID"]
    await nothing_is_visible(caller, source)


async def test_a_parquet_column_that_contradicts_the_dataset_is_refused_with_its_path(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "first", [{"id": "1", "home": {"city": "Oslo"}}])

    data = parquet(id=["2"], home=[{"city": 7}])
    refusal = await refusal_of(caller.send(source, "b", data, PARQUET, max_bad_records=9))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert refusal.metadata["path"] == "home.city"
    assert "long" in refusal.message
    assert "string" in refusal.message
    assert await caller.visible_batches(source) == ["first"]


async def nothing_is_visible(caller: Caller, dataset_id: str) -> None:
    batch = await caller.batch("b")
    files = await refusal_of(caller.files("b"))
    export = await caller.export(await caller.dataset("union"))
    assert batch.state == batch_pb2.BATCH_STATE_FAILED
    assert (batch.number, batch.rows, batch.file_count) == (0, 0, 0)
    assert await caller.visible_batches(dataset_id) == []
    assert files.code is PRECONDITION
    assert export.metrics.profiles_read == 0
