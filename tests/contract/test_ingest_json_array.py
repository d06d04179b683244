import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import RowError
from profile_export.ingest.formats import json as json_array
from profile_export.ingest.formats.json import read_json_array
from profile_export.ingest.rows.reading import AppliedReading
from tests.contract.ingesting import CRM, Uploader


class ArrayUploader(Uploader):
    def task(self, sent: Any, *identity_fields: Any, **others: Any) -> Any:
        return super().task(sent, *identity_fields, upload_format="json_array", **others)


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return ArrayUploader(tmp_path)


@pytest.fixture(params=[1, 7, 256 * 1024])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is read at a time, the items are the same."""
    monkeypatch.setattr(json_array, "_CHUNK", request.param)


PIECES = pytest.mark.usefixtures("_pieces")


@PIECES
def test_items_come_back_as_sent(uploader: Uploader) -> None:
    sent = '\ufeff [ {"crmId": "Zoë 💐", "o": {"l": ["]", "}\\"", "\\\\"]}} ,\r\n{"crmId":"2"}\t]\n'

    result = uploader.ingest(sent.encode(), CRM)

    assert uploader.values(result) == [
        {"crmId": "Zoë 💐", "o": {"l": ["]", '}"', "\\"]}},
        {"crmId": "2"},
    ]


@PIECES
@pytest.mark.parametrize("sent", [b"[]", b" [ \n] ", b"\xef\xbb\xbf[]"])
def test_an_empty_array_has_no_rows(uploader: Uploader, sent: bytes) -> None:
    result = uploader.ingest(sent, CRM)

    assert (result.files, result.rows) == ((), 0)


@PIECES
@pytest.mark.parametrize(
    ("sent", "item", "message"),
    [
        (b"", None, "The file is not a JSON array: it does not begin with '['."),
        (b'{"crmId":"1"}', None, "The file is not a JSON array: it does not begin with '['."),
        (b"\xef\xbb\xbf\xef\xbb\xbf[]", None, "The file is not a JSON array: it does not begin with '['."),
        (b'[{"crmId":"1"}', 1, "The file is not a JSON array: at item 1, the array has no end."),
        (b"[", 1, "The file is not a JSON array: at item 1, the array has no end."),
        (b'[{"crmId":"1"},', 2, "The file is not a JSON array: at item 2, the array has no end."),
        (b'[{"crmId":"1"},{"crmId":"2', 2, "The file is not a JSON array: at item 2, the array has no end."),
        (b"[tru", 1, "The file is not a JSON array: at item 1, the array has no end."),
        (
            b'[{"crmId":"1"},]',
            1,
            "The file is not a JSON array: at item 1, there is no item behind the last comma.",
        ),
        (b"[,1]", 1, "The file is not a JSON array: at item 1, Expecting value at its character 1."),
        (
            b'[{"crmId":"1"} {"crmId":"2"}]',
            1,
            "The file is not a JSON array: at item 1, neither ',' nor ']' follows it.",
        ),
        (b'[{"crmId":"1"}] x', 1, "The file is not a JSON array: at item 1, something follows the array."),
        (b'[{"crmId":"1"}][]', 1, "The file is not a JSON array: at item 1, something follows the array."),
        (
            b'[{"crmId":"1"}, {"crmId":tru}]',
            2,
            "The file is not a JSON array: at item 2, Expecting value at its character 10.",
        ),
        (
            b'[{"a":"1"]}]',
            1,
            "The file is not a JSON array: at item 1, Expecting ',' delimiter at its character 9.",
        ),
        (b"[nul]", 1, "The file is not a JSON array: at item 1, Expecting value at its character 1."),
        (b'[{"crmId":"\xff"}]', None, "The file is not UTF-8 at byte 12: write it as UTF-8."),
        (b'\xef\xbb\xbf[{"crmId":"\xc3"}]', None, "The file is not UTF-8 at byte 15: write it as UTF-8."),
        (b'[{"crmId":"\xc3', None, "The file is not UTF-8 at byte 12: write it as UTF-8."),
    ],
)
def test_a_file_that_is_no_array_is_refused_whatever_the_budget(
    uploader: Uploader, sent: bytes, item: int | None, message: str
) -> None:
    refusal = uploader.refusal(sent, CRM, max_bad_records=1_000)

    assert refusal.rows == (RowError(item, "FILE_INVALID", message),)


@PIECES
def test_items_that_are_no_records_are_rejected_one_by_one(uploader: Uploader) -> None:
    items = [
        '{"crmId":"1"}',
        "12345",
        "-1.5e3",
        '"]"',
        "null",
        "[1]",
        '{"a":1,"a":2}',
        "NaN",
        '{"crmId":"2"}',
    ]

    result = uploader.ingest(f"[{','.join(items)}]".encode(), CRM, max_bad_records=7)

    assert [(row.row, row.code, row.text) for row in uploader.rejected()] == [
        (2, "NOT_AN_OBJECT", "12345"),
        (3, "NOT_AN_OBJECT", "-1.5e3"),
        (4, "NOT_AN_OBJECT", '"]"'),
        (5, "NOT_AN_OBJECT", "null"),
        (6, "NOT_AN_OBJECT", "[1]"),
        (7, "JSON_INVALID", '{"a":1,"a":2}'),
        (8, "JSON_INVALID", "NaN"),
    ]
    assert [row["_identity"] for row in uploader.rows(result)] == ["1", "2"]


@PIECES
def test_what_was_rejected_before_an_array_breaks_is_kept(uploader: Uploader) -> None:
    refusal = uploader.refusal(b'[{"n":1},{"crmId":"1"},{]', CRM)

    assert [(error.row, error.code) for error in refusal.rows] == [(3, "FILE_INVALID")]
    assert refusal.rejected_rows == 1
    assert [row.row for row in uploader.rejected()] == [1]


@pytest.mark.parametrize("chunk", [10_000, 256 * 1024])
@pytest.mark.parametrize(
    "large",
    [
        '{"a":["}\\\\' + '\\"' * 150_000 + '"]}',
        '"' + "x" * 150_000 + '"',
        "[" * 150_000 + "]" * 150_000,
        "9" * 150_000,
    ],
    ids=["escapes", "text", "brackets", "digits"],
)
def test_an_item_that_is_too_large_is_skipped_to_its_end(
    uploader: Uploader, chunk: int, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    sent = f'[{{"crmId":"1"}},{large},{{"crmId":"3"}}]'

    result = uploader.ingest(sent.encode(), CRM, max_bad_records=1)

    assert [row["_identity"] for row in uploader.rows(result)] == ["1", "3"]
    [rejected] = uploader.rejected()
    assert (rejected.row, rejected.code) == (2, "RECORD_TOO_LARGE")
    assert rejected.text == large[:100_000]


def test_an_item_that_is_too_large_and_has_no_end_refuses_the_file(uploader: Uploader) -> None:
    [error] = uploader.refused(b'[{"a":"' + b"x" * 1_000_000, CRM, max_bad_records=1)

    assert (error.row, error.code) == (1, "FILE_INVALID")


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FLOATS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(
    items=st.lists(_JSON, max_size=5),
    chunk=st.integers(1, 20),
    is_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_any_array_is_read_as_python_reads_it(
    *, items: list[Any], chunk: int, is_ascii: bool, indent: int | None
) -> None:
    try:
        sent = json.dumps(items, ensure_ascii=is_ascii, indent=indent).encode()
    except UnicodeEncodeError:
        sent = json.dumps(items).encode()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        task = ArrayUploader(Path(folder)).task(sent)

        rows = list(read_json_array(task, AppliedReading(task.reading)))

    assert [row.record for row in rows] == json.loads(sent)
    assert [json.loads(row.text) for row in rows] == json.loads(sent)
    assert [row.number for row in rows] == list(range(1, len(items) + 1))
