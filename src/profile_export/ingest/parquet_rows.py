"""Single rows of a Parquet batch: how large each is, and how it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.ingest.arrow_types import is_list, plain_type, with_singles
from profile_export.ingest.conform import entries_of, lengths_of, offsets_of, plain_values

_BITS = 8
_ROWS_AT_ONCE = 256


def row_bytes(batch: pa.RecordBatch) -> pa.Array:
    """Return how many bytes the values of each row have: text as many as it is long, others their width.

    An item of a list has one at least, also if it is null or empty: a row is not to hold any number of them.
    """
    total = pa.repeat(pa.scalar(0, pa.int64()), batch.num_rows)
    for column in batch.columns:
        total = pc.add(total, _value_bytes(column))
    return total


def _value_bytes(column: pa.Array) -> pa.Array:
    column = plain_values(column)
    found = column.type
    if pa.types.is_map(found):
        column = entries_of(column)
        found = column.type
    if pa.types.is_struct(found):
        total = pa.repeat(pa.scalar(0, pa.int64()), len(column))
        for member in column.flatten():
            total = pc.add(total, _value_bytes(member))
        return total
    if is_list(found):
        until = pc.cumulative_sum(pc.max_element_wise(_value_bytes(column.flatten()), 1))
        until = pa.concat_arrays([pa.array([0], pa.int64()), until]).take(offsets_of(lengths_of(column)))
        return pc.subtract(until[1:], until[:-1])
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return pc.fill_null(pc.binary_length(column), 0).cast(pa.int64())
    width = 0 if pa.types.is_null(found) else -(-found.bit_width // _BITS)
    return pc.if_else(column.is_valid(), pa.scalar(width, pa.int64()), pa.scalar(0, pa.int64()))


def row_values(batch: pa.RecordBatch, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield some rows of a batch as JSON has them: instants and days as text, decimals as `Decimal`."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        taken = batch.take(pa.array(rows[start : start + _ROWS_AT_ONCE], pa.int64()))
        values = {
            name: _json_values(column) for name, column in zip(taken.schema.names, taken.columns, strict=True)
        }
        for index in range(taken.num_rows):
            yield {name: column[index] for name, column in values.items()}


def row_texts(batch: pa.RecordBatch, rows: Sequence[int]) -> Iterator[str]:
    """Yield some rows of a batch as JSON text, as they were read."""
    for row in row_values(batch, rows):
        yield json.dumps(row, ensure_ascii=False, default=str)


def _json_values(column: pa.Array) -> list[Any]:
    # By way of Arrow's text: Python has no nanoseconds and no year 10000.
    column = plain_values(column)
    kinds = column.type
    for change in (_in_utc, _as_text):
        column = column.cast(with_singles(column.type, change), safe=False)
    return [_json_value(value, kinds) for value in column.to_pylist()]


def _in_utc(single: pa.DataType) -> pa.DataType:
    return pa.timestamp(single.unit, "UTC") if pa.types.is_timestamp(single) else single


def _as_text(single: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(single) else single


def _json_value(value: Any, found: pa.DataType) -> Any:
    found = plain_type(found)
    if value is None:
        return None
    if pa.types.is_struct(found):
        return {member.name: _json_value(value[member.name], member.type) for member in found}
    if is_list(found):
        return [_json_value(item, found.value_type) for item in value]
    if pa.types.is_map(found):
        entries = [(key, _json_value(item, found.item_type)) for key, item in value]
        # A key that stands twice may be why the row was refused.
        return dict(entries) if len(dict(entries)) == len(entries) else entries
    return value.replace(" ", "T") if pa.types.is_timestamp(found) else value
