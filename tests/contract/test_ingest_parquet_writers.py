"""Parquet as other programs write it."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.domain.schemas.types import (
    DOUBLE,
    LARGE_LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    MapType,
    ObjectType,
)
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.task import IngestResult
from tests.contract.ingesting import CRM, Uploader

DATA = Path(__file__).parent / "data"
NOON = datetime(2024, 1, 1, 12, 0, 0, 123456, UTC)
SPARK_ROWS: list[dict[str, Any]] = [
    {
        "crmId": "1",
        "identityMap": {"Email": [{"id": "a@x.nl", "authenticatedState": "authenticated", "primary": False}]},
        "name": {"first": "Ann", "at": {"city": "Oslo", "zip": 150}},
        "tags": ["a", None, ""],
        "numbers": [1, 2**53 + 1],
        "places": [{"city": "Rome", "zip": 1}, {"city": "Bonn", "zip": None}],
        "nested": [[1], None, [], [2, None]],
        "scores": {"x": 1.5},
        "seen": NOON,
        "times": [datetime(1066, 10, 14, tzinfo=UTC), None],
        "born": date(1999, 12, 31),
        "price": Decimal("1234567.89"),
        "total": Decimal("123456789012345678901.2345"),
    },
    {"crmId": "2"},
    {
        "crmId": "3",
        "tags": [],
        "numbers": [],
        "places": [],
        "nested": [],
        "seen": datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
        "times": [],
    },
]


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def ingested(uploader: Uploader, path: Path) -> IngestResult:
    return ingest(uploader.task(path.read_bytes(), CRM, upload_format="parquet"))


@pytest.mark.parametrize(
    ("file", "others"), [("spark.parquet", {"local": NOON}), ("spark-legacy.parquet", {})]
)
def test_what_spark_writes_in_either_layout_comes_back(
    uploader: Uploader, file: str, others: dict[str, Any]
) -> None:
    result = ingested(uploader, DATA / file)

    fields = result.fields.fields
    first, second, third = SPARK_ROWS
    assert uploader.values(result) == [first | others, second, third]
    assert [fields[name] for name in ("numbers", "scores", "seen", "times", "total")] == [
        ArrayType(LARGE_LONG),
        MapType(DOUBLE),
        TIMESTAMP,
        ArrayType(TIMESTAMP),
        DecimalType(25, 4),
    ]
    assert [link["id"] for link in uploader.rows(result)[0]["_links"]] == ["a@x.nl"]


def test_what_duckdb_writes_comes_back(uploader: Uploader, tmp_path: Path) -> None:
    path = tmp_path / "duck.parquet"
    duckdb.sql(
        f"""
        COPY (
            SELECT '1' AS "crmId",
                   MAP {{'ECID': [{{'id': 'e', 'primary': true}}]}} AS "identityMap",
                   MAP {{'k': [1::TINYINT, NULL], 'none': NULL}} AS lists,
                   {{'a': {{'b': 1.50::DECIMAL(5,2)}}, 'c': 'x'::VARCHAR}} AS o,
                   TIMESTAMPTZ '2024-01-01 13:00:00.123456+01' AS seen,
                   TIMESTAMP_S '2024-01-01 12:00:00' AS second,
                   170141183460469231731::HUGEINT AS huge,
                   'red'::ENUM ('red', 'blue') AS colour
            UNION ALL BY NAME SELECT '2' AS "crmId"
        ) TO '{path}' (FORMAT parquet)
        """
    )

    result = ingested(uploader, path)

    assert uploader.values(result) == [
        {
            "crmId": "1",
            "identityMap": {"ECID": [{"id": "e", "authenticatedState": None, "primary": True}]},
            "lists": {"k": [1, None]},
            "o": {"a": {"b": Decimal("1.50")}, "c": "x"},
            "seen": NOON,
            "second": NOON.replace(microsecond=0),
            "huge": float(170141183460469231731),
            "colour": "red",
        },
        {"crmId": "2"},
    ]


def test_what_polars_writes_comes_back(uploader: Uploader, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "crmId": ["1", "2"],
            "kind": pl.Series(["a", None], dtype=pl.Categorical),
            "tags": [["x", None], None],
            "seen": [NOON, None],
            "o": [{"n": 1, "l": ["y"]}, {"n": None, "l": None}],
        }
    )
    frame.write_parquet(tmp_path / "polars.parquet")

    result = ingested(uploader, tmp_path / "polars.parquet")

    assert uploader.values(result) == [
        {"crmId": "1", "kind": "a", "tags": ["x", None], "seen": NOON, "o": {"n": 1, "l": ["y"]}},
        {"crmId": "2"},
    ]


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("compliant", [False, True])
def test_text_is_text_in_all_forms_of_arrow(
    uploader: Uploader, tmp_path: Path, *, text: pa.DataType, dictionary: bool, compliant: bool
) -> None:
    item = pa.struct([("id", text), ("primary", pa.bool_())])
    table = pa.table(
        {
            "crmId": pa.array(["1", None], text),
            "identityMap": pa.array(
                [None, [("A", [{"id": "2", "primary": True}])]], pa.map_(text, pa.list_(item))
            ),
            "o": pa.array([{"a": ["x", None]}, None], pa.struct([("a", pa.list_(text))])),
        }
    )
    pq.write_table(
        table, tmp_path / "arrow.parquet", use_dictionary=dictionary, use_compliant_nested_type=compliant
    )

    task = uploader.task((tmp_path / "arrow.parquet").read_bytes(), CRM, upload_format="parquet")
    result = ingest(task)

    assert [row["_identity"] for row in uploader.rows(result)] == ["1", "2"]
    assert result.fields.fields["o"] == ObjectType({"a": ArrayType(TEXT)})
    assert uploader.values(result)[0]["o"] == {"a": ["x", None]}
