"""The rules of a registered schema hold in every format, and a refused row says which it broke."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.schemas.types import DATE, DOUBLE, LONG, TEXT, TIMESTAMP, ArrayType, ObjectType
from profile_export.domain.schemas.xdm import read_document
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import REJECTED_FILE, read_rejected
from tests.contract.ingesting import CRM, Uploader

DOCUMENT: dict[str, Any] = {
    "$id": "https://example.com/crm",
    "type": "object",
    "required": ["crmId", "tier"],
    "properties": {
        "crmId": {"type": "string", "pattern": "^[0-9]+$"},
        "tier": {"type": "string", "enum": ["gold", "silver"]},
        "visits": {"type": "integer", "minimum": 0},
        "born": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"},
        "spent": {"type": "number", "maximum": 1000},
        "mail": {"type": "object", "properties": {"address": {"type": "string", "format": "email"}}},
    },
}
KNOWN = ObjectType(
    {
        "crmId": TEXT,
        "tier": TEXT,
        "visits": LONG,
        "born": DATE,
        "seen": TIMESTAMP,
        "spent": DOUBLE,
        "mail": ObjectType({"address": TEXT}),
        "tags": ArrayType(TEXT),
    }
)
SOUND: dict[str, Any] = {
    "crmId": "1",
    "tier": "gold",
    "visits": 3,
    "born": "1990-01-31",
    "seen": "2026-01-31T10:00:00Z",
    "spent": 12.5,
    "mail": {"address": "ann@example.com"},
}
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"tier": "bronze"}, "tier"),
    ({"tier": None}, "tier"),
    ({"visits": -1}, "visits"),
    ({"spent": 1000.5}, "spent"),
    ({"crmId": "x"}, "crmId"),
    ({"mail": {"address": "nobody"}}, "mail.address"),
]
ROWS = [SOUND, *({**SOUND, **change} for change, _ in BROKEN), {"crmId": "2", "tier": "silver"}]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def array(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def csv(rows: list[dict[str, Any]]) -> bytes:
    names = [*(name for name in SOUND if name != "mail"), "mail.address"]
    flat = [{**row, "mail.address": (row.get("mail") or {}).get("address")} for row in rows]
    table: list[list[Any]] = [names, *([row.get(name) for name in names] for row in flat)]
    return "".join(
        ",".join("" if cell is None else str(cell) for cell in line) + "\n" for line in table
    ).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    typed = [
        {
            **row,
            "born": row.get("born") and datetime.fromisoformat(row["born"]).date(),
            "seen": row.get("seen") and datetime.fromisoformat(row["seen"]).astimezone(UTC),
        }
        for row in rows
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(typed), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("upload_format", "written"),
    [("json_lines", lines), ("json_array", array), ("csv", csv), ("parquet", parquet)],
)
def test_rows_that_break_a_rule_are_rejected_by_their_field(
    tmp_path: Path, upload_format: str, written: Any
) -> None:
    rules = read_document(DOCUMENT, {}).rules
    task = Uploader(tmp_path).task(written(ROWS), CRM, kind=DatasetKind.RECORD, known=KNOWN)
    task = replace(task, format=upload_format, rules=rules, max_bad_records=len(BROKEN))

    result = ingest(task)

    rejected = list(read_rejected(task.folder / REJECTED_FILE, 0))
    assert result.rows == 2
    assert [(row.row, row.code, row.path) for row in rejected] == [
        (number, "VALUE_INVALID", path) for number, (_, path) in enumerate(BROKEN, start=2)
    ]
