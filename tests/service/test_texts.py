"""Text that one database keeps and the other does not: both servers refuse it, in the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc

from tests.databases import Place
from tests.service.harness import refusal_of
from tests.service.test_stale_uploads import serving

ROWS: tuple[dict[str, Any], ...] = (
    {"id": "1", "segmentMembership": {"ups": {"s": {"status": "realized"}}}},
    {"id": "2", "segmentMembership": {"u\0s": {"s": {"status": "realized"}}}},
    {"id": "3", "a\0b": "x"},
    {"id": "4", "segmentMembership": {"\ud800": {"s": {}}}},
    {"id": "5", "segmentMembership": {"ups": {"a\0b": {"status": "realized"}}}, "note": "a\0b"},
)
SENT = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


async def test_of_an_upload_only_the_rows_that_hold_it(tmp_path: Path, place: Place) -> None:
    async with serving(tmp_path, place) as caller:
        dataset = await caller.dataset("record", {"id": "CRM"})

        refusal = await refusal_of(caller.send(dataset, "strict", SENT))
        batch = (await caller.send(dataset, "lenient", SENT, max_bad_records=3)).batch

        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ROW_REJECTED")
        assert (batch.rows, batch.rejected_rows) == (2, 3)


async def test_of_a_schema_the_document(tmp_path: Path, place: Place) -> None:
    async with serving(tmp_path, place) as caller:
        for change in ({"title": "a\0b"}, {"$id": "https://a/\0"}, {"allOf": [{"$ref": "https://a/\0"}]}):
            refusal = await refusal_of(caller.schema({"$id": "https://a/b", "type": "object", **change}))

            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SCHEMA_INVALID")
            assert "U+0000" in refusal.message
