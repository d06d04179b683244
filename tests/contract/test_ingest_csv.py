import csv
import gzip
import io
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from profile_export.domain.catalog.batches import RowError
from profile_export.domain.catalog.datasets import DatasetKind, IdentityField
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)
from tests.contract.ingesting import CRM, Uploader

DATA = Path(__file__).parent / "data"


class CsvUploader(Uploader):
    def task(self, sent: Any, *identity_fields: Any, **others: Any) -> Any:
        return super().task(
            sent.encode() if isinstance(sent, str) else sent, *identity_fields, upload_format="csv", **others
        )


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return CsvUploader(tmp_path)


# --- What is written ---


def test_rows_come_back_as_sent(uploader: Uploader) -> None:
    sent = (
        "\ufeffcrmId , person.name.first,person.age,note\r\n"
        '1, "Ann, Bob",7,"say ""hi"""\r\n'
        '2,,, "two\r\nlines"\r\n'
        '3,5" pipe,\t x\t,'
    )

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result) == [
        {"crmId": "1", "person": {"name": {"first": "Ann, Bob"}, "age": "7"}, "note": 'say "hi"'},
        {"crmId": "2", "note": "two\r\nlines"},
        {"crmId": "3", "person": {"name": {"first": '5" pipe'}, "age": "x"}},
    ]


def test_values_are_text_unless_another_type_is_known(uploader: Uploader) -> None:
    result = uploader.ingest("crmId,n,b,d\n1,1.5,true,2024-01-01\n", CRM)

    assert uploader.values(result) == [{"crmId": "1", "n": "1.5", "b": "true", "d": "2024-01-01"}]


@pytest.mark.parametrize(
    ("cell", "known", "stored"),
    [
        ("x", TEXT, "x"),
        ("9007199254740993", LONG, 2**53 + 1),
        ("3.0", LONG, 3),
        ("-1.5e3", DOUBLE, -1500.0),
        ("7", DOUBLE, 7.0),
        ("1234567890.10", DecimalType(12, 2), Decimal("1234567890.10")),
        ("TRUE", BOOLEAN, True),
        ("False", BOOLEAN, False),
        ("2024-01-31", DATE, date(2024, 1, 31)),
        ("2024-01-01T13:00:00+01:00", TIMESTAMP, datetime(2024, 1, 1, 12, tzinfo=UTC)),
        ('"[""a"", null]"', ArrayType(TEXT), ["a", None]),
        ("[1]", ArrayType(LONG), [1]),
        ('"{""k"": 1.10, ""l"": null}"', MapType(DecimalType(5, 2)), {"k": Decimal("1.10")}),
        ('"{""a"": true, ""b"": ""new""}"', ObjectType({"a": BOOLEAN}), {"a": True, "b": "new"}),
    ],
)
def test_a_cell_holds_what_the_type_of_its_field_says(
    uploader: Uploader, cell: str, known: FieldType, stored: Any
) -> None:
    result = uploader.ingest(f"crmId,f\n1, {cell}\n2,\n", CRM, known=ObjectType({"f": known}))

    assert uploader.values(result) == [{"crmId": "1", "f": stored}, {"crmId": "2"}]


@pytest.mark.parametrize(
    ("cell", "known", "code", "message"),
    [
        ("x", LONG, "VALUE_INVALID", "is 'x', not a number as JSON writes it."),
        ("007", DOUBLE, "VALUE_INVALID", "is '007', not a number as JSON writes it."),
        ("NaN", DOUBLE, "VALUE_INVALID", "is 'NaN', not a number as JSON writes it."),
        ("1e400", DOUBLE, "VALUE_INVALID", "is inf, which no double can hold."),
        ("3.5", LONG, "VALUE_INVALID", "is 3.5, not an integer of 64 bits."),
        ("1e99999999999999999999", LONG, "VALUE_INVALID", "is beyond reckoning"),
        ("9" * 5000, LONG, "NUMBER_NOT_EXACT", "has an integer of thousands of digits."),
        ("9007199254740993", DOUBLE, "NUMBER_NOT_EXACT", "is the integer 9007199254740993"),
        ("1.001", DecimalType(5, 2), "NUMBER_NOT_EXACT", "is 1.001, which does not fit decimal(5,2)."),
        ("yes", BOOLEAN, "VALUE_INVALID", "is 'yes', neither true nor false."),
        ("2024-02-30", DATE, "VALUE_INVALID", "not a date such as 2026-01-31."),
        ("2024-01-01 12:00:00", TIMESTAMP, "VALUE_INVALID", "which has no offset: write one"),
        ("[1", ArrayType(LONG), "JSON_INVALID", "is not JSON: Expecting ',' delimiter at character 3."),
        ("[NaN]", ArrayType(LONG), "JSON_INVALID", "is not JSON: NaN is no number there."),
        ('"{""a"":1,""a"":2}"', MapType(LONG), "JSON_INVALID", "has the name 'a' twice in one object."),
        ('"x"', ArrayType(LONG), "JSON_INVALID", "is not JSON"),
        ("1", ArrayType(LONG), "FIELD_TYPE_CONFLICT", "is double, but it is known as array<long>."),
    ],
)
def test_a_cell_of_something_else_is_refused_with_its_path(
    uploader: Uploader, cell: str, known: FieldType, code: str, message: str
) -> None:
    [error] = uploader.refused(
        f"crmId,o.f\n1,\n2,{cell}\n", CRM, known=ObjectType({"o": ObjectType({"f": known})})
    )

    assert (error.row, error.code, error.path) == (2, code, "o.f")
    assert message in error.message


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("identityMap", '{"Email": [{"id": "a@x.nl", "primary": true}]}'),
        ("identityMap.Email", '[{"id": "a@x.nl", "primary": true}]'),
    ],
)
def test_identities_come_from_a_map_in_a_cell(uploader: Uploader, name: str, cell: str) -> None:
    quoted = cell.replace('"', '""')

    [row] = uploader.rows(uploader.ingest(f'{name}\n"{quoted}"\n'))

    assert (row["_namespace"], row["_identity"]) == ("Email", "a@x.nl")


def test_segments_come_from_dotted_names(uploader: Uploader) -> None:
    name = "segmentMembership.ups.s1"
    sent = f"crmId,{name}.status,{name}.lastQualificationTime\n1,existing,2024-01-01T00:00:00Z\n2,,\n"

    result = uploader.ingest(sent, CRM)

    first, second = uploader.values(result)
    [(segment, entry)] = first["segmentMembership"]["ups"].items()
    assert (segment, entry["status"]) == ("s1", "existing")
    assert entry["lastQualificationTime"] == datetime(2024, 1, 1, tzinfo=UTC)
    assert second == {"crmId": "2"}


# --- Headers ---


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "The file has no CSV header: its first line must hold the names of the fields."),
        (b"\n1\n", "The file has no CSV header: its first line must hold the names of the fields."),
        (b"crmId,a, a \n", "The header has the name 'a' twice."),
        (b"crmId,,a\n", "The header has an empty name in column 2: ''."),
        (b"crmId,a.\n", "The header has an empty name in column 2: 'a.'."),
        (b"crmId,a.b,a\n", "The header has 'a' as a value and as an object of other names."),
        (b"crmId,a.b,a.b.c\n", "The header has 'a.b' as a value and as an object of other names."),
        (b'crmId,"a\n', "The header of the file has a quote that is never closed."),
        (b'crmId,"a\n1,2\n', "The header of the file has a quote that is never closed."),
        (b'crmId,"a"b\n', "The header of the file is not CSV: ',' expected after '\"'."),
        (b"crmId,\xff\n", "The header of the file is not UTF-8 at byte 7: write the file as UTF-8."),
        (b"\xff\xfec\0r\0m\0", "The file is UTF-16 or UTF-32: write it as UTF-8."),
        (b"a\0,b\n", "The header of the file holds a NUL byte."),
        (b"a," * 60_000, "The header of the file has more than 100000 bytes."),
    ],
)
def test_a_file_without_a_header_that_can_be_used_is_refused(
    uploader: Uploader, sent: bytes, message: str
) -> None:
    refusal = uploader.refusal(sent, CRM, max_bad_records=1_000)

    assert refusal.rows == (RowError(None, "FILE_INVALID", message),)


@pytest.mark.parametrize("sent", [b"crmId,a", b"crmId,a\r\n", b"crmId,a\n\n  \n"])
def test_a_header_alone_has_no_rows(uploader: Uploader, sent: bytes) -> None:
    result = uploader.ingest(sent, CRM)

    assert (result.files, result.rows) == ((), 0)


# --- Rows ---


def rejected_of(
    uploader: Uploader, sent: bytes | str, **others: Any
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The identities of the rows that were accepted, and what is told of the others."""
    result = uploader.ingest(sent, CRM, max_bad_records=1_000, **others)
    rejected = [(row.row, row.code, row.message, row.text) for row in uploader.rejected()]
    return [row["_identity"] for row in uploader.rows(result)], rejected


def test_blank_lines_are_skipped_but_counted(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(uploader, "crmId,a\n1,x\n\n  \n2,y\n,z\n")

    assert accepted == ["1", "2"]
    assert [row for row, *_ in rejected] == [5]


@pytest.mark.parametrize(("row", "count"), [("2", 1), ("2,x,y,", 4), ("2,x,y,z", 4), ("2,", 2)])
def test_a_row_has_as_many_cells_as_the_header(uploader: Uploader, row: str, count: int) -> None:
    accepted, rejected = rejected_of(uploader, f"crmId,a,b\n1,,\n{row}\n3,,\n")

    assert accepted == ["1", "3"]
    assert rejected == [(2, "VALUE_INVALID", f"The row has {count} cells, but the header has 3.", row)]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(uploader, 'crmId,a\n1,x\n2,"y\n3,z\n4,\n')

    assert accepted == ["1", "3", "4"]
    assert rejected == [(2, "VALUE_INVALID", "The row has a quote that is never closed.", '2,"y')]


def test_a_quote_in_the_last_line_that_is_never_closed_is_refused(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(uploader, 'crmId,a\n1,x\n2,"y')

    assert accepted == ["1"]
    assert rejected == [(2, "VALUE_INVALID", "The row has a quote that is never closed.", '2,"y')]


def test_a_quote_that_is_not_closed_within_the_limit_costs_its_own_line_only(uploader: Uploader) -> None:
    lines = [f"{number},z" for number in range(3, 40_003)]

    accepted, rejected = rejected_of(uploader, "\n".join(["crmId,a", "1,x", '2,"y', *lines, '50000,"']))

    assert accepted == ["1", *(line.split(",")[0] for line in lines)]
    assert [(row, code, text) for row, code, _, text in rejected] == [
        (2, "RECORD_TOO_LARGE", '2,"y'),
        (40_003, "VALUE_INVALID", '50000,"'),
    ]
    assert rejected[0][2] == "The row has more than 100000 bytes, or a quote that is never closed."


def test_what_stands_behind_a_closing_quote_refuses_the_row_with_all_its_lines(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(uploader, 'crmId,a\n1,"x\ny" z\n2,\n')

    assert accepted == ["2"]
    assert rejected == [(1, "VALUE_INVALID", "The row is not CSV: ',' expected after '\"'.", '1,"x\ny" z')]


@pytest.mark.parametrize("header", ["crmId,a", '"crmId","a"', "crmId,b"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_that_was_joined_to_another_with_its_byte_order_mark_makes_nobody(
    uploader: Uploader, header: str, end: str
) -> None:
    accepted, rejected = rejected_of(
        uploader, end.join(("\ufeffcrmId,a", "1,x", f"\ufeff{header}", "2,y", "3,\ufeff", ""))
    )

    assert accepted == ["1", "2", "3"]
    assert [(row, message) for row, _, message, _ in rejected] == [
        (2, "The row begins with a byte order mark: files that were joined have one each.")
    ]


@pytest.mark.parametrize("rows", ["1,x\r2,y\r3,z", "1,x\r2,y\n3,z\n", '1,"x"\r2,y\n'])
def test_a_line_that_ends_in_cr_alone_is_told_as_that(uploader: Uploader, rows: str) -> None:
    [error, *_] = uploader.refused(f"crmId,a\n{rows}", CRM)

    assert (error.row, error.message) == (
        1,
        "The row holds a CR alone: end lines with LF or CRLF, and put cells with line breaks into quotes.",
    )


def test_bytes_that_are_no_text_refuse_their_row(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(uploader, b'crmId,a\n1,"x\n\xff"\n2,\0\n3,\n')

    assert accepted == ["3"]
    assert rejected == [
        (1, "VALUE_INVALID", "The row is not UTF-8 at byte 6: write the file as UTF-8.", '1,"x\n\ufffd"'),
        (2, "VALUE_INVALID", "The row holds a NUL byte.", "2,\0"),
    ]


def test_a_line_that_is_too_long_is_skipped_to_its_end(uploader: Uploader) -> None:
    long = "2," + "y" * 1_000_000

    accepted, rejected = rejected_of(uploader, f"crmId,a\n1,x\n{long}\n3,z\n")

    assert accepted == ["1", "3"]
    assert rejected == [(2, "RECORD_TOO_LARGE", "The row has more than 100000 bytes.", long[:100_000])]


def test_a_row_of_several_lines_that_is_too_long_passes_for_no_other_rows(uploader: Uploader) -> None:
    accepted, rejected = rejected_of(
        uploader, 'crmId,a\n1,x\n2,"' + "long\n" * 30 + '"\n3,z\n', max_row_bytes=100
    )

    assert accepted == ["1", "3"]
    assert {code for _, code, _, _ in rejected} == {"RECORD_TOO_LARGE", "VALUE_INVALID"}


def test_rows_are_as_python_writes_them(uploader: Uploader) -> None:
    cells = ["plain", "a,b", 'q"q', "line\nbreak", "Zoë", "'", '"', "\\", "x\ry"]
    sent = io.StringIO()
    writer = csv.writer(sent)
    writer.writerows([["crmId", "a"], *([str(number), cell] for number, cell in enumerate(cells))])

    result = uploader.ingest(sent.getvalue(), CRM)

    assert [value["a"] for value in uploader.values(result)] == cells


# --- Files of others (see data/README.md) ---


def test_a_file_with_blanks_behind_its_commas(uploader: Uploader) -> None:
    sent = gzip.decompress((DATA / "febrl_dataset1.csv.gz").read_bytes())

    result = uploader.ingest(sent, IdentityField(("rec_id",), "FEBRL", primary=True))

    assert result.rows == 1_000
    assert uploader.values(result)[0] == {
        "rec_id": "rec-223-org",
        "surname": "waller",
        "street_number": "6",
        "address_1": "tullaroop street",
        "address_2": "willaroo",
        "suburb": "st james",
        "postcode": "4011",
        "state": "wa",
        "date_of_birth": "19081209",
        "soc_sec_id": "6988048",
    }


def test_events_with_instants_as_databases_write_them(uploader: Uploader) -> None:
    header, *lines = gzip.decompress((DATA / "ecom_clickstream.csv.gz").read_bytes()).splitlines()
    sent = b"\n".join([b"_id," + header, *(b"%d,%s" % (number, line) for number, line in enumerate(lines))])
    user = IdentityField(("user_id",), "User", primary=True)
    in_utc = re.sub(rb"(:[0-9]{2}),", rb"\1+00,", sent)

    result = uploader.ingest(in_utc, user, kind=DatasetKind.EVENT, rows_per_file=100_000)
    refusal = uploader.refusal(sent, user, kind=DatasetKind.EVENT)

    assert result.rows == 31_106
    assert (refusal.rows[0].code, refusal.rows[0].path) == ("VALUE_INVALID", "timestamp")
