import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profile_export.domain.catalog.allowances import TooManyError
from profile_export.domain.catalog.batches import RejectedRow, RowError
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.schemas.types import TEXT, ArrayType, DecimalType, ObjectType
from profile_export.ingest import output
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import RowsRefusedError, kept_text, read_rejected
from profile_export.ingest.rows import rows as sent_rows
from tests.contract import ingesting
from tests.contract.ingesting import CRM, Uploader

EVENT = {"crmId": "1", "_id": "e", "timestamp": "2024-01-01T00:00:00Z"}


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def as_lines(*rows: dict[str, Any] | str) -> bytes:
    return "".join(f"{row if isinstance(row, str) else _json(row)}\n" for row in rows).encode()


def as_array(*rows: dict[str, Any]) -> bytes:
    return f"[{', '.join(map(_json, rows))}]".encode()


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def as_csv(*rows: dict[str, Any]) -> bytes:
    names = sorted({name for row in rows for name in row})
    lines = [names, *([str(row.get(name) or "") for name in names] for row in rows)]
    return "".join(f"{','.join(line)}\n" for line in lines).encode()


def as_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


FORMATS = pytest.mark.parametrize(
    ("send", "upload_format"),
    [(as_lines, "json_lines"), (as_array, "json_array"), (as_csv, "csv"), (as_table, "parquet")],
    ids=["json_lines", "json_array", "csv", "parquet"],
)
GOOD: dict[str, Any] = {"crmId": "1", "n": "x"}
NOBODY: dict[str, Any] = {"crmId": None, "n": "y"}


# --- The budget ---


@FORMATS
def test_as_many_bad_rows_as_allowed_are_left_out(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    sent = send(GOOD, NOBODY, GOOD, NOBODY, GOOD)

    result = uploader.ingest(sent, CRM, upload_format=upload_format, max_bad_records=2, first_row=7)

    assert [(row["_row"], row["n"]) for row in uploader.rows(result)] == [(7, "x"), (8, "x"), (9, "x")]
    assert (result.rows, result.rejected_rows) == (3, 2)
    assert [(error.row, error.code) for error in result.errors] == [
        (2, "PRIMARY_IDENTITY_MISSING"),
        (4, "PRIMARY_IDENTITY_MISSING"),
    ]
    assert [(row.row, row.code, row.message) for row in uploader.rejected()] == [
        (error.row, error.code, error.message) for error in result.errors
    ]


@FORMATS
def test_one_bad_row_more_refuses_the_upload_but_keeps_what_was_rejected(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    sent = send(*[NOBODY, GOOD] * 3)

    refusal = uploader.refusal(sent, CRM, upload_format=upload_format, max_bad_records=2, rows_per_file=1)

    assert [error.row for error in refusal.rows] == [1, 3, 5]
    assert refusal.rejected_rows == 3
    assert [row.row for row in uploader.rejected()] == [1, 3, 5]


@FORMATS
def test_reading_ends_when_more_than_a_hundred_bad_rows_are_found(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    refusal = uploader.refusal(send(*[GOOD, NOBODY] * 200), CRM, upload_format=upload_format)

    assert [error.row for error in refusal.rows] == list(range(2, 202, 2))
    assert refusal.rejected_rows == 101
    assert len(uploader.rejected()) == 101


@FORMATS
def test_a_budget_of_more_than_a_hundred_is_read_to_its_end(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    sent = send(*[GOOD, NOBODY] * 200)

    refusal = uploader.refusal(sent, CRM, upload_format=upload_format, max_bad_records=150)
    result = uploader.ingest(sent, CRM, upload_format=upload_format, max_bad_records=200)

    assert (len(refusal.rows), refusal.rejected_rows) == (100, 151)
    assert (result.rows, result.rejected_rows, len(result.errors)) == (200, 200, 100)


@FORMATS
def test_an_upload_of_bad_rows_alone_has_no_data_file(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    result = uploader.ingest(send(NOBODY, NOBODY), CRM, upload_format=upload_format, max_bad_records=2)

    assert (result.files, result.rows, result.rejected_rows) == ((), 0, 2)


@FORMATS
def test_a_sound_upload_leaves_no_rejected_rows_of_an_earlier_one(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    uploader.refusal(send(NOBODY, GOOD), CRM, upload_format=upload_format)

    result = uploader.ingest(send(GOOD), CRM, upload_format=upload_format)

    assert (result.rejected_rows, result.errors, uploader.rejected()) == (0, (), [])
    assert [path.name for path in (uploader.folder / "files").iterdir()] == ["00000.parquet"]


@FORMATS
def test_a_row_has_no_more_bytes_than_allowed(
    uploader: Uploader, send: Callable[..., Any], upload_format: str
) -> None:
    large = {"crmId": "2", "n": "é" * 200}
    sent = send(GOOD, large, GOOD)
    as_json = len(_json(large).encode())
    limit = {"json_lines": as_json, "json_array": as_json, "csv": 402, "parquet": 401}[upload_format]

    result = uploader.ingest(sent, CRM, upload_format=upload_format, max_row_bytes=limit)
    [error] = uploader.refused(sent, CRM, upload_format=upload_format, max_row_bytes=limit - 1)

    assert result.rows == 3
    assert error == RowError(2, "RECORD_TOO_LARGE", f"The row has more than {limit - 1} bytes.")


def test_fields_are_counted_before_they_leave_the_process(uploader: Uploader) -> None:
    def deep(names: range) -> dict[str, Any]:
        return GOOD | {f"f{name}": {"a": {"b": {"c": {"d": name}}}} for name in names}

    task = uploader.task([deep(range(first, first + 500)) for first in range(0, 2_000, 500)], CRM)
    with pytest.raises(TooManyError) as refused:
        ingest(task)

    assert refused.value.reason == "TOO_MANY_FIELDS"
    assert list(task.folder.iterdir()) == []


def test_an_upload_that_failed_leaves_nothing(uploader: Uploader) -> None:
    task = uploader.task(as_lines(NOBODY, GOOD), CRM, max_bad_records=5)
    missing = replace(task, source=uploader.folder / "missing")
    ingest(task)

    with pytest.raises(FileNotFoundError):
        ingest(missing)

    assert list(task.folder.iterdir()) == []


# --- Reasons ---


@pytest.mark.parametrize(
    ("row", "kind", "code", "path"),
    [
        ('{"crmId":"1"', "record", "JSON_INVALID", ""),
        ('{"crmId":"1","crmId":"2"}', "record", "JSON_INVALID", ""),
        ('{"crmId":"1","n":NaN}', "record", "JSON_INVALID", ""),
        ("7", "record", "NOT_AN_OBJECT", ""),
        ("null", "record", "NOT_AN_OBJECT", ""),
        ({"n": 1}, "record", "PRIMARY_IDENTITY_MISSING", ""),
        (
            {"identityMap": {"A": [{"id": "1", "primary": True}, {"id": "2", "primary": True}]}},
            "record",
            "PRIMARY_IDENTITY_AMBIGUOUS",
            "",
        ),
        ({"crmId": ""}, "record", "IDENTITY_INVALID", "crmId"),
        ({"crmId": 1.5}, "record", "IDENTITY_INVALID", "crmId"),
        ({"identityMap": {"A": [{"primary": True}]}}, "record", "IDENTITY_INVALID", "identityMap.A[]"),
        ({"identityMap": {"": [{"id": "1"}]}}, "record", "IDENTITY_INVALID", "identityMap."),
        (
            {"identityMap": {"A": [{"id": "1", "xid": 1}]}},
            "record",
            "IDENTITY_INVALID",
            "identityMap.A[].xid",
        ),
        ({"identityMap": {"A": 1}}, "record", "FIELD_TYPE_CONFLICT", "identityMap.A"),
        (EVENT | {"_id": ""}, "event", "EVENT_ID_MISSING", "_id"),
        (EVENT | {"timestamp": None}, "event", "TIMESTAMP_MISSING", "timestamp"),
        (EVENT | {"timestamp": "noon"}, "event", "VALUE_INVALID", "timestamp"),
        ({"crmId": "1", "o": {"a.b": 1}}, "record", "VALUE_INVALID", "o.a.b"),
        ('{"crmId":"1","o":' + "[" * 70 + "]" * 70 + "}", "record", "VALUE_INVALID", "o[][]"),
        ('{"crmId":"1","o":' + "[" * 9000 + "]" * 9000 + "}", "record", "VALUE_INVALID", ""),
        ({"crmId": "1", "n": [2**53 + 1]}, "record", "NUMBER_NOT_EXACT", "n[]"),
        ('{"crmId":"1","n":' + "9" * 5000 + "}", "record", "NUMBER_NOT_EXACT", ""),
        ({"crmId": "1", "known": [1]}, "record", "FIELD_TYPE_CONFLICT", "known[]"),
    ],
)
@pytest.mark.parametrize("upload_format", ["json_lines", "json_array"])
def test_a_refused_row_is_told_by_code_and_path(
    uploader: Uploader, upload_format: str, row: dict[str, Any] | str, kind: str, code: str, path: str
) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    good = json.dumps(EVENT | {"known": ["x"]})
    known = ObjectType({"known": ArrayType(TEXT)})
    lines = upload_format == "json_lines"
    sent = f"{good}\n{text}\n{good}\n" if lines else f"[{good}, {text}, {good}]"
    if upload_format == "json_array" and text == '{"crmId":"1"':
        pytest.skip("an array that cannot be read on is refused whole")

    result = uploader.ingest(
        sent.encode(),
        CRM,
        kind=DatasetKind(kind),
        known=known,
        max_bad_records=1,
        upload_format=upload_format,
    )

    [rejected_row] = uploader.rejected()
    [error] = result.errors
    assert (error.row, error.code, error.path) == (2, code, path)
    assert rejected_row == RejectedRow(2, code, error.message, path, text)
    assert result.rows == 2


def test_names_that_are_no_text_are_told_escaped(uploader: Uploader) -> None:
    result = uploader.ingest(b'{"crmId":"1","\\ud800":1e400}\n', CRM, max_bad_records=1)

    [error] = result.errors
    assert (error.code, error.path) == ("VALUE_INVALID", "\\ud800")
    assert uploader.rejected()[0].text == '{"crmId":"1","\\ud800":1e400}'


def test_an_exponent_beyond_reckoning_is_refused(uploader: Uploader) -> None:
    known = ObjectType({"price": DecimalType(10, 2)})
    huge, tiny = f"1e{'9' * 20}", f"0e-{'9' * 20}"

    told = uploader.reasons(
        as_lines(*(f'{{"crmId":"1","price":{sent}}}' for sent in (huge, tiny))), CRM, known=known
    )

    assert told == [
        f"1: The row has the number {huge}, which is beyond reckoning.",
        f"2: The row has the number {tiny}, which is beyond reckoning.",
    ]


# --- Two readings ---


@pytest.fixture(params=["waiting", "read twice"])
def small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_rows, "_ROWS_PER_BATCH", 2)
    if request.param == "read twice":
        monkeypatch.setattr(ingesting, "BYTES_HELD", 0)


@pytest.mark.usefixtures("small_batches")
def test_what_is_rejected_is_the_same_however_often_an_upload_is_read(uploader: Uploader) -> None:
    sent = as_lines(*[GOOD, NOBODY, {"crmId": "1", "n": 5}, {"crmId": "2", "late": True}] * 2)

    result = uploader.ingest(sent, CRM, max_bad_records=4)

    assert [(row.row, row.code) for row in uploader.rejected()] == [
        (2, "PRIMARY_IDENTITY_MISSING"),
        (3, "FIELD_TYPE_CONFLICT"),
        (6, "PRIMARY_IDENTITY_MISSING"),
        (7, "FIELD_TYPE_CONFLICT"),
    ]
    assert [row["_row"] for row in uploader.rows(result)] == [0, 1, 2, 3]
    assert (result.rows, result.rejected_rows) == (4, 4)


def test_a_rejected_row_teaches_neither_fields_nor_namespaces(uploader: Uploader) -> None:
    bad = {
        "identityMap": {"Bad": [{"id": "1"}]},
        "segmentMembership": {"bad": {"s": {"status": "existing"}}},
        "new": 1,
        "open": [],
    }

    result = uploader.ingest(as_lines(bad, GOOD), CRM, max_bad_records=1)

    assert list(result.fields.fields) == ["identityMap", "segmentMembership", "crmId", "n"]
    assert result.untyped == ()
    assert result.identity_namespaces.all_spellings == {"CRM"}
    assert result.segment_namespaces.all_spellings == frozenset()


# --- The kept rows ---


@pytest.mark.parametrize("upload_format", ["json_lines", "parquet"])
def test_rejected_rows_are_read_page_by_page(
    uploader: Uploader, upload_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_ROWS_PER_GROUP", 3)
    send = as_lines if upload_format == "json_lines" else as_table
    uploader.ingest(send(*[GOOD, NOBODY] * 10), CRM, upload_format=upload_format, max_bad_records=10)

    pages = [uploader.rejected(after, 4) for after in (0, 8, 16, 20, 99)]

    assert [[row.row for row in page] for page in pages] == [
        [2, 4, 6, 8],
        [10, 12, 14, 16],
        [18, 20],
        [],
        [],
    ]
    assert pages[0][0].text == '{"crmId": null, "n": "y"}'


def test_there_is_nothing_to_read_where_no_row_was_rejected(tmp_path: Path) -> None:
    assert list(read_rejected(tmp_path / "rejected.parquet", 0)) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'{"a":1}\r\n', '{"a":1}'),
        (b"\xffa\n", "\ufffda"),
        (b"\xc3", "\ufffd"),
        ("é" * 60_000, "é" * 50_000),
        ("x" + "é" * 60_000, "x" + "é" * 49_999),
        (b"x" + "é".encode() * 60_000, "x" + "é" * 49_999),
        ("\ud800", "\\ud800"),
    ],
    ids=["line", "not UTF-8", "half", "text", "text cut", "bytes cut", "surrogate"],
)
def test_what_is_kept_of_a_row_is_text_of_at_most_100_kilobytes(sent: str | bytes, kept: str) -> None:
    assert kept_text(sent) == kept


def test_a_refusal_says_what_it_is_about() -> None:
    assert (
        str(RowsRefusedError((RowError(3, "VALUE_INVALID", "The row is bad."),), 1))
        == "row 3: The row is bad."
    )
