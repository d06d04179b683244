"""The order of rows, files and batches decides nothing where a value teaches no type (S13)."""

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from profile_export.domain.schemas.types import type_at
from profile_export.ingest.task import IngestResult
from tests.contract.ingesting import CRM, Uploader
from tests.contract.test_ingest_formats import as_array, as_lines

NOTHING: list[Any] = [{}, [], [None], [{}], [[]], {"a": []}]
ABSENT = [None] * len(NOTHING)
TAUGHT = [
    ("x", ABSENT),
    (True, ABSENT),
    (1, ABSENT),
    ({"a": "x"}, ABSENT),
    ({"a": ["x"]}, [*ABSENT[:-1], {"a": []}]),
    (["x"], [None, [], [None], [None], [None], None]),
    ([["x"]], [None, [], [None], [None], [[]], None]),
    ([{"a": "x"}], [None, [], [None], [None], [None], None]),
]
PARQUET = [
    (pa.list_(pa.null()), [], 1),
    (pa.list_(pa.null()), [None], 2),
    (pa.list_(pa.list_(pa.null())), [[]], 4),
]


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def stored(uploader: Uploader, result: IngestResult) -> dict[str, Any]:
    return {row["crmId"]: row.get("f") for row in uploader.values(result)}


@pytest.mark.slow
@pytest.mark.parametrize(("upload_format", "written"), [("json_lines", as_lines), ("json_array", as_array)])
@pytest.mark.parametrize(("taught", "expected"), TAUGHT)
def test_rows_in_any_order_of_a_file_are_stored_alike(
    uploader: Uploader, upload_format: str, written: Any, taught: Any, expected: list[Any]
) -> None:
    rows = [{"crmId": str(place), "f": value} for place, value in enumerate(NOTHING)]
    teacher = {"crmId": "teacher", "f": taught}

    found = [
        stored(uploader, uploader.ingest(written(order), CRM, upload_format=upload_format))
        for pair in combinations(rows, 2)
        for order in permutations([*pair, teacher])
    ]

    assert len(found) == 90
    for one in found:
        assert one.pop("teacher") == (1.0 if taught is not True and taught == 1 else taught)
        assert all(value == expected[int(place)] for place, value in one.items())


@pytest.mark.parametrize(("taught", "expected"), TAUGHT)
@pytest.mark.parametrize(("kind", "value", "place"), PARQUET)
def test_files_and_batches_in_any_order_are_stored_alike(
    uploader: Uploader, taught: Any, expected: list[Any], kind: pa.DataType, value: Any, place: int
) -> None:
    column = pa.table({"crmId": ["1"], "f": pa.array([value], kind)})
    known = uploader.ingest([{"crmId": "1", "f": taught}], CRM).fields

    lines = uploader.ingest([{"crmId": "1", "f": value}], CRM, known=known)
    of_lines = stored(uploader, lines)
    parquet = uploader.ingest(column, CRM, known=known)
    of_parquet = stored(uploader, parquet)
    before = uploader.ingest(column, CRM)

    assert of_lines == of_parquet == {"1": expected[place]}
    assert lines.untyped == parquet.untyped == ()
    assert parquet.fields == lines.fields == known
    assert stored(uploader, before) == {"1": None}
    assert type_at(before.fields, ("f",)) is None
    assert ("f",) in before.untyped


def test_a_cell_without_a_value_is_absent_whatever_is_known(uploader: Uploader) -> None:
    known = uploader.ingest([{"crmId": "1", "f": ["x"], "g": {"a": "x"}}], CRM).fields

    result = uploader.ingest(
        b"crmId,f,g\n1,{},[]\n2,[[]],[null]\n3,[],{}\n", CRM, known=known, upload_format="csv"
    )

    assert uploader.values(result) == [{"crmId": "1"}, {"crmId": "2", "f": [None]}, {"crmId": "3", "f": []}]


def test_identities_without_a_value_are_absent(uploader: Uploader) -> None:
    sent = [
        {"crmId": "1", "identityMap": []},
        {"crmId": "2", "identityMap": {"A": {}, "B": [{"id": "b", "primary": []}], "C": []}},
        {"crmId": [], "identityMap": {"D": [{"id": "d", "primary": True}]}},
    ]

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result) == [
        {"crmId": "1"},
        {"crmId": "2", "identityMap": {"B": [{"id": "b", "authenticatedState": None, "primary": None}]}},
        {"identityMap": {"D": [{"id": "d", "authenticatedState": None, "primary": True}]}},
    ]
