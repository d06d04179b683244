"""What holds for all formats that are read row by row."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.schemas.types import (
    BOOLEAN,
    DOUBLE,
    LONG,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)
from profile_export.ingest.formats import json as json_array
from profile_export.ingest.rows import rows as sent_rows
from profile_export.ingest.task import IngestResult
from tests.contract.ingesting import CRM, Uploader

MEGABYTE = 1024 * 1024
ENDLESS = 150 * MEGABYTE
TEXT = b"x" * 1_000
KNOWN = ObjectType(
    {"n": LONG, "d": DOUBLE, "b": BOOLEAN, "t": TIMESTAMP, "o": ObjectType({"p": ObjectType({"q": LONG})})}
)
# Blanks around a cell are no part of it, and an empty cell is absent.
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(
    lambda text: f"<{text}>"
)
_FLAT: dict[str, st.SearchStrategy[Any]] = {
    "text": _TEXTS,
    "n": st.integers(-(2**63), 2**63 - 1),
    "d": st.floats(allow_nan=False, allow_infinity=False),
    "b": st.booleans(),
    "t": st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    "o.p.q": st.integers(0, 9),
    "o.text": _TEXTS,
}
_FLAT_RECORDS = st.lists(st.fixed_dictionaries({}, optional=_FLAT), max_size=6)
_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def as_lines(records: list[Any]) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def as_array(records: list[Any]) -> bytes:
    return json.dumps(records, indent=1).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    sent = io.StringIO()
    writer = csv.DictWriter(sent, ["crmId", *_FLAT])
    writer.writeheader()
    writer.writerows(records)
    return sent.getvalue().encode()


def nested(record: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in record.items():
        *parents, leaf = name.split(".")
        holder = made
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[leaf] = value
    return made


def ingested(sent: bytes, upload_format: str, **others: Any) -> tuple[Any, ...]:
    """All that an upload comes to: its rows, and what is told of the others."""
    with TemporaryDirectory() as folder:
        uploader = Uploader(Path(folder))
        result: IngestResult = uploader.ingest(
            sent, CRM, upload_format=upload_format, max_bad_records=1_000, rows_per_file=2, **others
        )
        rejected = [(row.row, row.code, row.message, row.path) for row in uploader.rejected()]
        return uploader.rows(result), rejected, result.fields, result.untyped, result.identity_namespaces


@given(_FLAT_RECORDS, st.integers(1, 3))
def test_flat_records_are_the_same_rows_in_every_format(records: list[dict[str, Any]], batch: int) -> None:
    sent = [{"crmId": str(number), **record} for number, record in enumerate(records)]
    as_objects = [nested(record) for record in sent]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent_rows, "_ROWS_PER_BATCH", batch)

        lines = ingested(as_lines(as_objects), "json_lines", known=KNOWN)
        array = ingested(as_array(as_objects), "json_array", known=KNOWN)
        cells = ingested(as_csv(sent), "csv", known=KNOWN)

    assert lines == array
    assert (lines[0], lines[1]) == (cells[0], [])


@given(st.lists(_NESTED, max_size=6), st.integers(1, 3), st.integers(1, 30))
def test_lines_and_arrays_accept_reject_and_store_alike(items: list[Any], batch: int, chunk: int) -> None:
    sent = [item | {"crmId": "1"} if isinstance(item, dict) else item for item in items]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent_rows, "_ROWS_PER_BATCH", batch)
        patch.setattr(json_array, "_CHUNK", chunk)

        lines, array = ingested(as_lines(sent), "json_lines"), ingested(as_array(sent), "json_array")

    assert lines == array


NUMBERS = (
    "9007199254740993.0",
    "9.007199254740993e15",
    "9223372036854775807.0",
    "-9223372036854775808.0",
    "3.0",
    "1e3",
)
NO_LONGS = (
    "9007199254740992.5",
    "1.00000000000000000001",
    "0.99999999999999999999",
    "1e-400",
    "9223372036854775808.0",
)


@pytest.mark.parametrize("upload_format", ["json_lines", "json_array", "csv"])
@pytest.mark.parametrize("other", [DOUBLE, DecimalType(5, 2)])
def test_a_number_with_a_fraction_is_a_long_with_all_its_digits_or_none(
    uploader: Uploader, other: FieldType, upload_format: str
) -> None:
    known = ObjectType(
        {"n": LONG, "o": ObjectType({"q": LONG}), "l": ArrayType(LONG), "m": MapType(LONG), "x": other}
    )
    texts = (*NUMBERS, *NO_LONGS)
    if upload_format == "csv":
        sent = "crmId,n,o.q,l,m,x\n" + "".join(
            f'1,{one},{one},[{one}],"{{""k"": {one}}}",2.5\n' for one in texts
        )
    else:
        rows = [
            f'{{"crmId": "1", "n": {one}, "o": {{"q": {one}}}, "l": [{one}], "m": {{"k": {one}}}, "x": 2.5}}'
            for one in texts
        ]
        sent = "\n".join(rows) if upload_format == "json_lines" else f"[{','.join(rows)}]"

    result = uploader.ingest(
        sent.encode(), CRM, upload_format=upload_format, known=known, max_bad_records=len(NO_LONGS)
    )

    wanted = [2**53 + 1, 2**53 + 1, 2**63 - 1, -(2**63), 3, 1000]
    assert [(row["n"], row["o"]["q"], row["l"], row["m"], row["x"]) for row in uploader.values(result)] == [
        (one, one, [one], {"k": one}, 2.5) for one in wanted
    ]
    assert [row.row for row in uploader.rejected()] == [*range(len(NUMBERS) + 1, len(texts) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("upload_format", "before", "piece", "rows"),
    [
        ("json_lines", b"", b'{"crmId":"1","text":"%s"}\n' % TEXT, None),
        ("json_lines", b"", TEXT, 1),
        ("json_array", b"[0", b',\n{"crmId":"1","text":"%s"}' % TEXT, None),
        ("json_array", b'[{"a":"', TEXT, 0),
        ("json_array", b"[", b'["%s",' % TEXT, 0),
        ("json_array", b"[", b"1", 0),
        ("csv", b"crmId,text\n", b"1,%s\n" % TEXT, None),
        ("csv", b"crmId,text\n", TEXT, 1),
        ("csv", b'crmId,text\n1,"', b"2,%s\n" % TEXT, None),
    ],
    ids=lambda value: value.decode().strip()[:5] if isinstance(value, bytes) else None,
)
def test_an_upload_of_any_length_is_read_in_little_memory(
    tmp_path: Path, upload_format: str, before: bytes, piece: bytes, rows: int | None
) -> None:
    with (tmp_path / "sent").open("wb") as sent:
        sent.write(before)
        for _ in range(ENDLESS // MEGABYTE):
            sent.write(piece * (MEGABYTE // len(piece)))

    read = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path / "sent"), upload_format],
        check=True,
        capture_output=True,
        text=True,
    )

    (tmp_path / "sent").unlink()
    found, grown = map(int, read.stdout.split())
    assert grown < 20 * MEGABYTE
    assert found == rows if rows is not None else found > 100_000


_READ = """
import resource, sys
from pathlib import Path
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.schemas.types import EMPTY
from profile_export.ingest.formats.csv import read_csv
from profile_export.ingest.formats.json import read_json_array
from profile_export.ingest.formats.json import read_json_lines
from profile_export.ingest.output import FileRefusedError
from profile_export.ingest.rows.reading import AppliedReading
from profile_export.ingest.task import IngestTask

source, upload_format = Path(sys.argv[1]), sys.argv[2]
read = {"json_lines": read_json_lines, "json_array": read_json_array, "csv": read_csv}[upload_format]
task = IngestTask(source, upload_format, DatasetKind.RECORD, "b", EMPTY, (), source.parent)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = 0
try:
    for _ in read(task, AppliedReading(task.reading)):
        rows += 1
except FileRefusedError:
    pass
print(rows, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
