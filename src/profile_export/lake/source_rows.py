"""The rows of a few identities out of data files, as merging takes them. Blocks.

Files are sorted by identity key, so their footers say which row groups may hold one, and the two columns of the key
where its rows stand there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain import columns
from profile_export.domain.catalog import DatasetKind
from profile_export.domain.errors import ExhaustedError
from profile_export.domain.identity import Identity, IdentityKey
from profile_export.domain.plan import HIGHEST_KEY, LOWEST_KEY, ExportPlan, Source
from profile_export.domain.resolution import SourceRow, StatedIdentity
from profile_export.domain.schema import EMPTY, EVENT_ID, EVENT_TIME, ObjectType, leaves
from profile_export.lake.data_file import footer_of, open_data_file
from profile_export.lake.plain_rows import plain_rows, value_count

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
                    raise _too_much()
                found += [_source_row(source.dataset_id, line) for line in plain_rows(rows)]
    return found


def _held(rows: pa.RecordBatch) -> int:
    """Return about how much memory rows take as objects."""
    return _BYTES_OF_A_VALUE * sum(map(value_count, rows.columns)) + int(rows.nbytes)


def _too_much() -> ExhaustedError:
    return ExhaustedError(
        "REQUEST_TOO_EXPENSIVE",
        f"The rows of this person take more than {MOST_HELD // 10**6} MB of memory. Ask for fewer fields, or export.",
        metadata={"limit": f"{MOST_HELD // 10**6}MB"},
    )


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
            _stated(link["namespace"], link["id"], link["authenticated_state"])
            for link in line[columns.LINKS] or ()
        ),
    )


def _stated(namespace: str, identity_id: str, state: str | None) -> StatedIdentity:
    return StatedIdentity(Identity(namespace, identity_id), state)
