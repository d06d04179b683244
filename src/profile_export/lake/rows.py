"""Rows out of data files as plain values: the first ones, or those of a few identities. Blocks.

Files are sorted by identity key, so their footers say which row groups may hold one, and the two columns of the key
where its rows stand there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.catalog import batches as columns
from profile_export.domain.catalog.batches import OWN_COLUMNS
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import ExhaustedError
from profile_export.domain.export.plan import HIGHEST_KEY, LOWEST_KEY, ExportPlan, Source
from profile_export.domain.merging.identity import Identity, IdentityKey
from profile_export.domain.merging.merge import SourceRow, StatedIdentity
from profile_export.domain.schemas.types import EMPTY, EVENT_ID, EVENT_TIME, ObjectType, leaves
from profile_export.lake.data_files import footer_of, open_data_file

_VALUES_OF_A_COLUMN = 20_000
"""How many values of one column are made in one go, if not those of one row alone."""
_VALUES_HELD = 500_000
"""How many values of all columns are held, likewise."""


def _plain_rows(rows: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield rows as plain values; little is made of what is not asked for."""
    start = 0
    while start < rows.num_rows:
        some = _fitting(rows.slice(start))
        # One column after the other: of thousands together Arrow would make the values in one go.
        values = [_values(column) for column in some.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(some.schema.names, row, strict=True))
        start += some.num_rows


def _fitting(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return the first rows, as many as are made together."""
    while rows.num_rows > 1:
        counts = [_value_count(column) for column in rows.columns]
        if max(counts) <= _VALUES_OF_A_COLUMN and sum(counts) <= _VALUES_HELD:
            return rows
        rows = rows.slice(0, rows.num_rows // 2)
    return rows


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column: maps as dicts, objects as dicts of the members that are not null.

    An array of objects with other names each has a place for every name in every object, nearly all of them null.
    """
    kind = column.type
    if pa.types.is_struct(kind):
        objects: list[Any] = [{} if there else None for there in column.is_valid().to_pylist()]
        for name, member in _members(column):
            places = pc.indices_nonzero(member.is_valid())
            values = _values(member.take(places) if member.null_count else member)
            for place, value in zip(places.to_pylist(), values, strict=True):
                objects[place][name] = value
        return objects
    if pa.types.is_list(kind):
        items = iter(_values(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else list(islice(items, length)) for length in lengths]
    if pa.types.is_map(kind):
        keys, values = map(_values, _entries(column))
        spans = pairwise(pc.subtract(column.offsets, column.offsets[0]).to_pylist())
        return [
            dict(zip(keys[start:end], values[start:end], strict=True)) if there else None
            for there, (start, end) in zip(column.is_valid().to_pylist(), spans, strict=True)
        ]
    return list(column.to_pylist(maps_as_pydicts="strict"))


def _value_count(column: pa.Array) -> int:
    """Return how many values a column has at all depths: members that are not null, items, entries of maps."""
    kind, own = column.type, len(column)
    if not own:
        return 0
    if pa.types.is_struct(kind):
        return own + sum(_value_count(member) - int(member.null_count) for _, member in _members(column))
    if pa.types.is_list(kind):
        return own + _value_count(column.flatten())
    if pa.types.is_map(kind):
        return own + sum(map(_value_count, _entries(column)))
    return own


def _members(column: pa.StructArray) -> Iterator[tuple[str, pa.Array]]:
    """Yield the members of objects that some of them have, null where the object is."""
    for field, member in zip(column.type, column.flatten(), strict=True):
        if member.null_count < len(member):
            yield field.name, member


def _entries(column: pa.MapArray) -> tuple[pa.Array, pa.Array]:
    """Return the keys and the items of maps; what stands there is those of the whole array that it is a slice of."""
    first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    return column.keys.slice(first, end - first), column.items.slice(first, end - first)


_ROWS_READ_AT_ONCE = 100
_CELLS_READ_AT_ONCE = 5_000_000
"""Of all columns, nulls among them: an array of objects with other names each has as many as items times names."""


def _rows_read_at_once(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    cells = sum(
        int(group.column(column).num_values) for group in groups for column in range(group.num_columns)
    )
    return max(1, min(_ROWS_READ_AT_ONCE, _CELLS_READ_AT_ONCE * int(metadata.num_rows) // max(1, cells)))


def first_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield rows of one file after the other, maps as dicts; as many as somebody asks for are read."""
    for path in paths:
        with open_data_file(path) as file:
            columns = [name for name in file.schema_arrow.names if name not in OWN_COLUMNS]
            for batch in file.iter_batches(_rows_read_at_once(file.metadata), columns=columns):
                yield from _plain_rows(batch)


_KEY = [columns.KEY_HIGH, columns.KEY_LOW]
_STATED = (
    columns.BATCH_ID,
    columns.ROW,
    columns.NAMESPACE,
    columns.IDENTITY,
    columns.AUTHENTICATED_STATE,
    columns.LINKS,
)
_FILES_REMEMBERED = 10_000
MOST_HELD = 256 * 10**6
"""How many bytes the rows of one person may take."""
_BYTES_OF_A_VALUE = 80
"""Of an object, with its place in a row, beside the bytes of a text."""


def source_rows(lake_root: Path, plan: ExportPlan, keys: Collection[IdentityKey]) -> list[SourceRow]:
    """Read all rows of some primary identities, of all sources of a plan, with the fields that the plan needs.

    Raises:
        OSError: A file is gone, or the disk failed.
        ExhaustedError: They take more memory than `MOST_HELD`.
    """
    wanted, held = frozenset(keys), 0
    found: list[SourceRow] = []
    for source in plan.sources:
        for file in (file for part in source.parts for file in part.files):
            for rows in _rows(lake_root / file.path, wanted, _needed(plan, source)):
                held += _held(rows)
                if held > MOST_HELD:
                    raise ExhaustedError(
                        "REQUEST_TOO_EXPENSIVE",
                        f"The rows of this person take more than {MOST_HELD // 10**6} MB of memory. "
                        "Ask for fewer fields, or export.",
                        metadata={"limit": f"{MOST_HELD // 10**6}MB"},
                    )
                found += [_source_row(source.dataset_id, line) for line in _plain_rows(rows)]
    return found


def _held(rows: pa.RecordBatch) -> int:
    """Return about how much memory rows take as objects."""
    return _BYTES_OF_A_VALUE * sum(map(_value_count, rows.columns)) + int(rows.nbytes)


def _needed(plan: ExportPlan, source: Source) -> Sequence[str]:
    """Name the leaves of a source that the plan needs; those that a file lacks do not matter."""
    if not source.takes_part:
        return _STATED
    if source.kind is DatasetKind.RECORD:
        return *_STATED, *_names(plan.fields)
    return *_STATED, EVENT_ID, EVENT_TIME, *_names(plan.events.fields if plan.events else EMPTY)


def _names(fields: ObjectType) -> Iterator[str]:
    # A name with a dot in it may also name a leaf of another field: that one is read for nothing, and no harm done.
    return (".".join(path) for path, _ in leaves(fields))


def _rows(path: Path, keys: frozenset[IdentityKey], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    highs = sorted({high for high, _ in keys})
    groups = [
        group
        for group, (lowest, highest) in enumerate(_bounds(path))
        if any(lowest <= high <= highest for high in highs)
    ]
    if not groups:
        return
    with open_data_file(path) as file:
        for group in groups:
            places = _places(file.read_row_group(group, columns=_KEY), pa.array(highs, pa.int64()), keys)
            if places:
                # What is behind the last of them is not even decoded.
                ahead = file.iter_batches(
                    places[-1] + 1, row_groups=[group], columns=list(dict.fromkeys(names))
                )
                yield next(ahead).take(pa.array(places))


@lru_cache(_FILES_REMEMBERED)
def _bounds(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the lowest and the highest key of each row group, by their high halves. Files never change."""
    metadata = footer_of(path)
    leaf = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(
        columns.KEY_HIGH
    )
    known = [metadata.row_group(group).column(leaf).statistics for group in range(metadata.num_row_groups)]
    return tuple(
        (one.min, one.max) if one is not None and one.has_min_max else (LOWEST_KEY, HIGHEST_KEY)
        for one in known
    )


def _places(found: pa.Table, highs: pa.Array, keys: frozenset[IdentityKey]) -> list[int]:
    """Return where rows of these keys stand in a row group."""
    candidates = pc.indices_nonzero(pc.is_in(found[columns.KEY_HIGH], highs))
    lows = found[columns.KEY_LOW].take(candidates).to_pylist()
    known = zip(found[columns.KEY_HIGH].take(candidates).to_pylist(), lows, strict=True)
    return [place for place, key in zip(candidates.to_pylist(), known, strict=True) if key in keys]


def _source_row(dataset_id: str, line: Mapping[str, Any]) -> SourceRow:
    return SourceRow(
        dataset_id,
        line[columns.BATCH_ID],
        line[columns.ROW],
        _stated(line[columns.NAMESPACE], line[columns.IDENTITY], line[columns.AUTHENTICATED_STATE]),
        {name: value for name, value in line.items() if name not in columns.SYSTEM_COLUMNS},
        tuple(
            _stated(link["namespace"], link["id"], link.get("authenticated_state"))
            for link in line[columns.LINKS] or ()
        ),
    )


def _stated(namespace: str, identity_id: str, state: str | None) -> StatedIdentity:
    return StatedIdentity(Identity(namespace, identity_id), state)
