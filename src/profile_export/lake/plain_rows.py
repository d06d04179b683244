"""Rows of data files as plain values, some at a time: while Arrow makes values, no other thread gets a turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_VALUES_OF_A_COLUMN = 20_000
"""How many values of one column are made in one go, if not those of one row alone."""
_VALUES_HELD = 500_000
"""How many values of all columns are held, likewise."""


def plain_rows(rows: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield rows as plain values, maps as dicts; little is made of what is not asked for."""
    start = 0
    while start < rows.num_rows:
        some = _fitting(rows.slice(start))
        # One column after the other: of thousands together Arrow would make the values in one go.
        values = [column.to_pylist(maps_as_pydicts="strict") for column in some.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(some.schema.names, row, strict=True))
        start += some.num_rows


def _fitting(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return the first rows, as many as are made together."""
    while rows.num_rows > 1:
        counts = [value_count(column) for column in rows.columns]
        if max(counts) <= _VALUES_OF_A_COLUMN and sum(counts) <= _VALUES_HELD:
            return rows
        rows = rows.slice(0, rows.num_rows // 2)
    return rows


def value_count(column: pa.Array) -> int:
    """Return how many values a column has at all depths: members of objects, items of arrays, entries of maps."""
    kind, own = column.type, len(column)
    if not own:
        return 0
    if pa.types.is_struct(kind):
        return own + sum(map(value_count, column.flatten()))
    if pa.types.is_list(kind):
        return own + value_count(column.flatten())
    if pa.types.is_map(kind):
        # Keys and items of a slice are those of the whole array.
        first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
        return own + sum(value_count(part.slice(first, end - first)) for part in (column.keys, column.items))
    return own
