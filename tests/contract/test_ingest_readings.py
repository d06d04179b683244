"""How a sender wants a file to be read, placeholders as absent and fields under other names; what is told of it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profile_export.domain.catalog.batches import Reading
from profile_export.domain.catalog.datasets import IdentityField
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.schemas.types import DOUBLE, TEXT, ArrayType, ObjectType
from tests.contract.ingesting import CRM, Uploader

EMAIL = IdentityField(("email",), "Email")
NULLS = Reading(("NULL", "n/a", "-"))
RENAMED = Reading(renames=(("id", "crmId"), ("mail", "email")))
FORMATS = ["json_lines", "json_array", "csv", "tsv", "parquet"]


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def written(rows: list[dict[str, Any]], upload_format: str) -> bytes | pa.Table:
    if upload_format == "parquet":
        return pa.Table.from_pylist(rows)
    if upload_format == "json_array":
        return json.dumps(rows).encode()
    if upload_format == "json_lines":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    mark = {"csv": ",", "tsv": "\t"}[upload_format]
    lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.mark.parametrize("upload_format", FORMATS)
def test_a_placeholder_is_absent_and_links_nobody(uploader: Uploader, upload_format: str) -> None:
    rows = [
        {"crmId": "1", "email": "NULL", "city": "Oslo"},
        {"crmId": "2", "email": "n/a", "city": "-"},
        {"crmId": "3", "email": "a@x.org", "city": "NULL "},
    ]
    sent = written(rows, upload_format)

    plain = uploader.ingest(sent, CRM, EMAIL, upload_format=upload_format)
    result = uploader.ingest(sent, CRM, EMAIL, upload_format=upload_format, reading=NULLS)

    by_cell = upload_format in {"csv", "tsv"}  # blanks around a cell are no part of it
    assert plain.null_count == 0
    assert result.null_count == (4 if by_cell else 3)
    assert uploader.values(result) == [
        {"crmId": "1", "city": "Oslo"},
        {"crmId": "2"},
        {"crmId": "3", "email": "a@x.org"} | ({} if by_cell else {"city": "NULL "}),
    ]
    assert [len(row.get("_links") or []) for row in uploader.rows(result)] == [0, 0, 1]


@pytest.mark.parametrize("upload_format", ["json_lines", "parquet"])
def test_placeholders_are_absent_at_all_depths_but_names_and_keys_are_no_values(
    uploader: Uploader, upload_format: str
) -> None:
    rows: list[dict[str, Any]] = [
        {"crmId": "1", "NULL": "x", "o": {"a": "-", "b": ["NULL", "y"]}, "l": [{"c": "n/a", "d": 1.0}]},
        {"crmId": "2", "NULL": "-", "o": {"a": "z", "b": []}, "l": []},
    ]

    result = uploader.ingest(written(rows, upload_format), CRM, upload_format=upload_format, reading=NULLS)

    first, second = uploader.values(result)
    assert first["NULL"] == "x"
    assert first["o"] == {"a": None, "b": [None, "y"]}
    assert first["l"] == [{"d": 1.0}] or first["l"] == [{"c": None, "d": 1.0}]
    assert "NULL" not in second
    assert result.null_count == 4


def test_placeholders_in_maps_of_parquet_are_absent(uploader: Uploader) -> None:
    maps = pa.array([[("-", "x"), ("k", "-")]], pa.map_(pa.string(), pa.string()))
    column = pa.array(["-"]).dictionary_encode()

    result = uploader.ingest(pa.table({"crmId": ["1"], "m": maps, "d": column}), CRM, reading=NULLS)

    assert uploader.values(result) == [{"crmId": "1", "m": {"-": "x"}}]
    assert result.null_count == 2


def test_a_placeholder_stands_in_the_cell_of_any_type(uploader: Uploader) -> None:
    known = ObjectType({"n": DOUBLE, "tags": ArrayType(TEXT)})

    result = uploader.ingest(
        b'crmId,n,tags\n1,-,NULL\n2,3,"[""NULL""]"\nNULL,1,-\n',
        CRM,
        upload_format="csv",
        known=known,
        reading=NULLS,
        max_bad_records=1,
    )

    assert uploader.values(result) == [{"crmId": "1"}, {"crmId": "2", "n": 3.0, "tags": [None]}]
    assert (result.null_count, result.errors[0].code) == (5, "PRIMARY_IDENTITY_MISSING")


@pytest.mark.parametrize("upload_format", FORMATS)
def test_fields_get_the_names_that_were_asked_for(uploader: Uploader, upload_format: str) -> None:
    sent = written([{"id": "1", "mail": "a@x.org", "city": "Oslo"}], upload_format)

    result = uploader.ingest(sent, CRM, EMAIL, upload_format=upload_format, reading=RENAMED)

    assert uploader.values(result) == [{"crmId": "1", "email": "a@x.org", "city": "Oslo"}]


@pytest.mark.parametrize("upload_format", FORMATS)
def test_a_name_that_the_file_does_not_have_is_refused(uploader: Uploader, upload_format: str) -> None:
    sent = written([{"crmId": "1", "mail": "a@x.org"}], upload_format)

    [error] = uploader.refused(sent, CRM, upload_format=upload_format, reading=RENAMED)

    assert (error.row, error.code) == (None, "FILE_INVALID")
    assert (
        error.message == "The file has no field 'id', which is to be renamed: check how the file spells it."
    )


@pytest.mark.parametrize(
    ("upload_format", "message"),
    [
        ("json_lines", "stands there twice once fields are renamed"),
        ("json_array", "stands there twice once fields are renamed"),
        ("csv", "The header has the name 'crmId' twice."),
        ("tsv", "The header has the name 'crmId' twice."),
        ("parquet", "The field 'crmId' stands twice."),
    ],
)
def test_a_name_that_another_field_has_is_refused(
    uploader: Uploader, upload_format: str, message: str
) -> None:
    sent = written([{"id": "1", "crmId": "2"}], upload_format)

    [error] = uploader.refused(
        sent, CRM, upload_format=upload_format, reading=Reading(renames=(("id", "crmId"),))
    )

    assert message in error.message


@pytest.mark.parametrize("upload_format", FORMATS)
@pytest.mark.parametrize(
    ("renames", "row"),
    [
        ({"a": "crmId", "crmId": "a"}, {"crmId": "1", "a": "2", "b": "3"}),
        ({"a": "crmId", "crmId": "b", "b": "a"}, {"crmId": "1", "b": "2", "a": "3"}),
        ({"b": "c", "a": "b"}, {"b": "1", "crmId": "2", "c": "3"}),
    ],
)
def test_a_field_gets_its_new_name_once_also_where_that_is_the_old_one_of_another(
    uploader: Uploader, renames: dict[str, str], row: dict[str, str], upload_format: str
) -> None:
    sent = written([{"a": "1", "crmId": "2", "b": "3"}], upload_format)

    result = uploader.ingest(
        sent, CRM, upload_format=upload_format, reading=Reading(renames=tuple(renames.items()))
    )

    assert uploader.values(result) == [row]


@pytest.mark.parametrize("renames", [{"": "a"}, {"a": ""}, {"a": "x" * 1_025}, {"a": "c", "b": "c"}])
def test_renames_that_make_no_sense_are_refused(renames: dict[str, str]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"start\.renames"):
        Reading(renames=tuple(renames.items()))


@pytest.mark.parametrize("first", [b",crmId,a\n", b'"",crmId,a\n'])
def test_a_first_column_without_a_name_is_left_out_and_told(uploader: Uploader, first: bytes) -> None:
    result = uploader.ingest(first + b"0,1,x\n1,2,y\n", CRM, upload_format="csv")

    assert uploader.values(result) == [{"crmId": "1", "a": "x"}, {"crmId": "2", "a": "y"}]
    assert result.notes == ("The first column has no name and was left out.",)


def test_a_header_in_the_middle_is_a_bad_row(uploader: Uploader) -> None:
    sent = b"crmId,a\n1,x\ncrmId, a\n2,y\n"

    result = uploader.ingest(sent, CRM, upload_format="csv", max_bad_records=1)

    assert [value["crmId"] for value in uploader.values(result)] == ["1", "2"]
    assert result.errors[0].message == "The row repeats the header: files that were joined have one each."


@pytest.mark.parametrize(
    ("sent", "upload_format", "message"),
    [
        (
            b"crmId;name\n1;Ann\n",
            "csv",
            "where names of fields are expected with commas between them: the file has semicolons there.",
        ),
        (b"crmId\tname\n1\tAnn\n", "csv", "the file has tabs there. Send it as TSV."),
        (b"crmId|name\n1|Ann\n", "csv", "the file has bars there. Write it with commas."),
        (b"crmId,name\n1,Ann\n", "tsv", "with tabs between them: the file has commas there. Send it as CSV."),
        ("crmId,a\n1,x\n".encode("utf-16"), "csv", "The file is UTF-16 or UTF-32: write it as UTF-8."),
        ("crmId,a\n1,x\n".encode("utf-16-le"), "csv", "The file is UTF-16 or UTF-32: write it as UTF-8."),
        (
            '{"crmId":"1"}\n'.encode("utf-16-be"),
            "json_lines",
            "The file is UTF-16 or UTF-32: write it as UTF-8.",
        ),
        (
            '[{"crmId":"1"}]'.encode("utf-16"),
            "json_array",
            "The file is UTF-16 or UTF-32: write it as UTF-8.",
        ),
        (
            gzip.compress(b"crmId\n1\n", mtime=0),
            "csv",
            "The file is packed by gzip: unpack it first, as the command line does where the name ends in .gz.",
        ),
        (b"PK\x03\x04crmId\n", "json_lines", "The file is packed by zip: unpack it first."),
        (b"PAR1crmId\n", "tsv", "The file is Parquet: send it as that format."),
        (b"crmId,a\r1,x\r2,y\r", "csv", "The lines of the file end as on old Macs, with CR alone"),
        (b"crmId,a\r" + b"1,x\r" * 30_000, "csv", "The lines of the file end as on old Macs, with CR alone"),
        (
            b'{"crmId":"1"}\r{"crmId":"2"}\r',
            "json_lines",
            "end as on old Macs, with CR alone: write it with LF or CRLF.",
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_text_is_told_by_name(
    uploader: Uploader, sent: bytes, upload_format: str, message: str
) -> None:
    [error] = uploader.refused(sent, CRM, upload_format=upload_format, max_bad_records=100)

    assert (error.row, error.code) == (None, "FILE_INVALID")
    assert message in error.message
