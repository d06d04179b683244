"""Rows of data files as plain values: what they cost grows with what they hold, not with the names that others have."""

from __future__ import annotations

import time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.lake.rows import first_rows

MAP = pa.map_(pa.string(), pa.list_(pa.struct([("p", pa.int64()), ("q", pa.string())])))


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"v": 1, "none": [None]}
    for level in range(levels):
        value = {"d": [value, None]} if level % 3 == 0 else {"d": value}
    return value


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array(["a", None, ""]), ["a", None, ""]),
        (pa.array([Decimal("1.50"), None]), [Decimal("1.50"), None]),
        (pa.array([{"a": 1}, None, {"b": "x"}]), [{"a": 1}, None, {"b": "x"}]),
        (
            pa.array([[{"a": 1}, None, {"b": [None, 2]}], [], None, [{"c": {"d": 1}}]]),
            [[{"a": 1}, None, {"b": [None, 2]}], [], None, [{"c": {"d": 1}}]],
        ),
        (pa.array([[[1, None], None, []], None, [[]]]), [[[1, None], None, []], None, [[]]]),
        (
            pa.array([[("k.1", [{"p": 1}, None]), ("", None)], None, [], [("k", [])]], MAP),
            [{"k.1": [{"p": 1}, None], "": None}, None, {}, {"k": []}],
        ),
        (
            pa.array(
                [{"m": [("a", [{"q": "x"}])]}, {"n": 1}, None], pa.struct([("m", MAP), ("n", pa.int64())])
            ),
            [{"m": {"a": [{"q": "x"}]}}, {"n": 1}, None],
        ),
        (pa.array([deep(20), None, deep(20)]), [deep(20), None, deep(20)]),
    ],
)
def test_rows_have_their_values_and_objects_the_members_that_are_not_null(
    tmp_path: Path, column: pa.Array, values: list[Any]
) -> None:
    # Often enough that slices of all kinds are taken.
    table = pa.concat_tables([pa.table({"f": column, "_batch_id": ["b"] * len(column)})] * 90)
    pq.write_table(table, tmp_path / "rows.parquet")

    assert list(first_rows([tmp_path / "rows.parquet"])) == [{"f": value} for value in values] * 90


def test_objects_of_an_array_with_other_names_each_cost_what_they_hold(tmp_path: Path) -> None:
    # given four rows of a hundred objects, no two of which have a name in common
    told = [[{f"n{name}": name} for name in range(row * 100, row * 100 + 100)] for row in range(4)]
    table = pa.table({"f": told})
    pq.write_table(table, tmp_path / "rows.parquet")

    began = time.process_time()
    table["f"].to_pylist(maps_as_pydicts="strict")
    densely = time.process_time() - began
    began = time.process_time()
    rows = [row["f"] for row in islice(first_rows([tmp_path / "rows.parquet"]), 4)]
    took = time.process_time() - began

    assert rows == told
    assert took < densely / 2
