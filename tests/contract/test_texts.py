"""Text that not every database can keep is refused alike before it gets to one, with its row where it has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profile_export.domain.schemas.xdm_places import SchemaInvalidError
from profile_export.ingest.schema_documents import read_documents
from tests.contract.ingesting import CRM, Uploader

ENTRY = {"s1": {"status": "realized"}}
SOUND: dict[str, Any] = {"crmId": "1", "segmentMembership": {"ups": ENTRY}}
WRONG: dict[str, Any] = {"crmId": "2", "segmentMembership": {"u\0s": ENTRY, "ups": ENTRY}}
NAMELESS: dict[str, Any] = {"crmId": "2", "a\0b": "x"}
IN_NAMESPACE = r"The field 'segmentMembership.'u\x00s'' has a NUL character in its namespace."
IN_NAME = r"The field ''a\x00b'' has a NUL character in its name."


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def json_lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_array(*rows: dict[str, Any]) -> bytes:
    return json.dumps(rows).encode()


def csv(*rows: dict[str, Any]) -> bytes:
    cells = (json.dumps(row["segmentMembership"]).replace('"', '""') for row in rows)
    return "\n".join(
        [
            "crmId,segmentMembership",
            *(f'{row["crmId"]},"{cell}"' for row, cell in zip(rows, cells, strict=True)),
        ]
    ).encode()


def parquet(*rows: dict[str, Any]) -> pa.Table:
    entry = pa.struct([("status", pa.string())])
    memberships = [
        [(space, list(held.items())) for space, held in row["segmentMembership"].items()] for row in rows
    ]
    column = pa.array([[], *memberships], pa.map_(pa.string(), pa.map_(pa.string(), entry))).slice(1)
    return pa.table({"crmId": [row["crmId"] for row in rows], "segmentMembership": column})


FORMATS = {"json_lines": json_lines, "json_array": json_array, "csv": csv, "parquet": parquet}


@pytest.mark.parametrize("name", FORMATS)
def test_a_nul_in_a_segments_namespace_is_its_rows_fault(uploader: Uploader, name: str) -> None:
    sent = FORMATS[name](SOUND, WRONG, {**SOUND, "crmId": "3"})

    [error] = uploader.refused(sent, CRM, upload_format=name)
    result = uploader.ingest(sent, CRM, upload_format=name, max_bad_records=1)

    assert (error.row, error.code, error.message) == (2, "VALUE_INVALID", IN_NAMESPACE)
    assert (result.rows, result.rejected_rows) == (2, 1)
    assert result.segment_namespaces.all_spellings == {"ups"}


@pytest.mark.parametrize("make", [json_lines, json_array])
def test_a_nul_in_a_fields_name_is_its_rows_fault(uploader: Uploader, make: Any) -> None:
    sent = make(SOUND, NAMELESS)

    [error] = uploader.refused(sent, CRM, upload_format=make.__name__)
    result = uploader.ingest(sent, CRM, upload_format=make.__name__, max_bad_records=1)

    assert (error.row, error.code, error.message) == (2, "VALUE_INVALID", IN_NAME)
    assert "a\0b" not in result.fields.fields


@pytest.mark.parametrize(
    "change",
    [
        {"$id": "https://a/\0"},
        {"title": "a\0b"},
        {"properties": {"a\0b": {"type": "string"}}},
        {"allOf": [{"$ref": "https://a/\0"}]},
        {"meta:extends": ["https://a/\0"]},
        {"title": "\\\0"},
    ],
)
def test_a_nul_in_a_schemas_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaInvalidError, match=r"it holds the character U\+0000"):
        read_documents([json.dumps({"$id": "https://a/b", "type": "object", **change})], {})


def test_a_pattern_may_speak_of_it() -> None:
    member = {"type": "string", "pattern": r"^[^\u0000]*$"}

    [schema] = read_documents(
        [json.dumps({"$id": "https://a/b", "type": "object", "properties": {"a": member}})], {}
    )

    assert schema.id == "https://a/b"
