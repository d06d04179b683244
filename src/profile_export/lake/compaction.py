"""Compaction: many small data files become one. Which ones is decided in the domain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import WrittenFile
from profile_export.lake.data_files import (
    BYTES_PER_GROUP,
    ROWS_PER_GROUP,
    footer_of,
    open_data_file,
    sync,
    write_data_file,
)
from profile_export.processes.supervisor import Pool

_LEAST_ROWS, _MOST_ROWS = 16, 1024
"""How many rows of a source are read at a time; few are as long as rows may be."""
_PARTS_OF_A_GROUP = 16
"""A row group is read in at least so many parts. It fits into memory, and has few rows if they are long."""
_BYTES_READ_AHEAD = 16 * 2**20
_MOST_OPEN = 32
_MOST_BYTES_OPEN = 64 * 2**20
"""The uncompressed row groups at which all open sources are read, together at most."""
_MOST_COLUMNS_OPEN = 30_000
"""The columns of all open sources, together at most: each takes memory however little is in it."""
_ORDER = (columns.KEY_HIGH, columns.KEY_LOW, columns.ROW)
_SortKey = tuple[int, ...]
"""A row's values of `_ORDER`."""


@dataclass(frozen=True, slots=True)
class CompactTask:
    """Data files to merge into the file `target`; its folder is made if it is missing."""

    sources: tuple[Path, ...]
    target: Path


class Merger:
    """Merges files in child processes."""

    def __init__(self, children: Pool) -> None:
        self._children = children

    async def __call__(self, sources: Sequence[Path], target: Path) -> WrittenFile:
        """Do what `compact` does, in a child.

        Raises:
            TooExpensiveError: It took more than the children may.
            ChildDiedError: The child ended.
        """
        return await self._children.run(compact, CompactTask(tuple(sources), target))


def compact(task: CompactTask) -> WrittenFile:
    """Write the rows of some data files, unchanged, into one, sorted as each of them is.

    Its memory does not grow with the files: it holds some row groups of rows, and what the sources take that are open
    at once. Where there are more, parts of them are merged into files beside the target. These are merged again, and
    removed at the end.

    Raises:
        OSError: The disk failed, or a source is gone.
        ArrowInvalid: The sources do not have the same columns.
    """
    folder = task.target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as between:
        new_file = (Path(between) / str(number) for number in count())
        parts = _parts(task.sources)
        while len(parts) > 1:
            parts = _parts([_merged(part, next(new_file)) for part in parts])
        written = _merge(parts[0], task.target)
    sync(folder)
    # The child may wait long for its next merge.
    pa.default_memory_pool().release_unused()
    return written


def _parts(sources: Sequence[Path]) -> list[list[Path]]:
    """Cut sources into parts of two or more, each of sources that may be open at once."""
    parts: list[list[Path]] = [[]]
    taken = 0.0
    for source in sources:
        share = _share(source)
        if len(parts[-1]) > 1 and taken + share > 1:
            parts.append([])
            taken = 0
        parts[-1].append(source)
        taken += share
    return parts


def _share(source: Path) -> float:
    """Return which share of what may be open at once one file takes, in memory or in number."""
    footer = footer_of(source)
    groups = [int(footer.row_group(at).total_byte_size) for at in range(footer.num_row_groups)]
    column_count: int = footer.num_columns
    return max(
        1 / _MOST_OPEN,
        max(groups, default=0) / _MOST_BYTES_OPEN,
        column_count / _MOST_COLUMNS_OPEN,
    )


def _merged(sources: Sequence[Path], target: Path) -> Path:
    """Merge a part into a file of its own; one file is left as it is."""
    if len(sources) == 1:
        return sources[0]
    _merge(sources, target)
    return target


def _merge(sources: Sequence[Path], target: Path) -> WrittenFile:
    with ExitStack() as opened:
        files = [opened.enter_context(open_data_file(path)) for path in sources]
        schema = files[0].schema_arrow
        return write_data_file(target, schema, _in_groups([_Rows(file) for file in files], schema))


def _in_groups(sources: Sequence[_Rows], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield all rows in tables of about a row group, none with a row that belongs before those of an earlier one."""
    gathered: list[_Slice] = []
    for further in _in_steps(sources):
        together = [*gathered, *further]
        rows, size = sum(some.rows for some in together), sum(some.bytes for some in together)
        if gathered and (rows > ROWS_PER_GROUP or size > BYTES_PER_GROUP):
            yield _table(gathered, schema)
            together = further
        gathered = together
    yield _table(gathered, schema)


def _table(gathered: Sequence[_Slice], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([some.batch for some in gathered], schema=schema)


def _in_steps(sources: Sequence[_Rows]) -> Iterator[list[_Slice]]:
    """Yield all rows in steps: none belongs before a row of an earlier step; within a step they have no order.

    A step has slices of all sources that have rows for it.
    """
    reading = [source for source in sources if source.read()]
    # Enough for every source to be read a second time, or little would be sure to come before the rest.
    most = max(_BYTES_READ_AHEAD, 2 * sum(source.bytes_held for source in reading))
    while reading:
        # No row that is still to be read belongs before the smallest of the last keys that were read.
        behind = min(reading, key=_Rows.end)
        if behind.holds_any and sum(source.bytes_held for source in sources) >= most:
            end = behind.end()
            yield [some for source in sources for some in source.up_to(end)]
        elif not behind.read():
            reading.remove(behind)
    yield [some for source in sources for some in source.held]


class _Slice:
    """Rows that follow each other in a source, with their sort keys."""

    def __init__(self, batch: pa.RecordBatch, keys: Sequence[_SortKey], size: float) -> None:
        self.batch, self.keys, self.bytes = batch, keys, size

    @property
    def rows(self) -> int:
        return len(self.keys)

    def split(self, last: _SortKey) -> tuple[_Slice, _Slice]:
        """Return the rows whose sort keys are `last` or smaller, and the others."""
        where = bisect_right(self.keys, last)
        before = self.bytes * where / self.rows
        return (
            _Slice(self.batch.slice(0, where), self.keys[:where], before),
            _Slice(self.batch.slice(where), self.keys[where:], self.bytes - before),
        )


class _Rows:
    """A source that is read from its first row to its last; `held` are rows that were read and not yet given out."""

    def __init__(self, file: pq.ParquetFile) -> None:
        groups = (file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups))
        ahead = max(_LEAST_ROWS, min(_MOST_ROWS, max(groups, default=0) // _PARTS_OF_A_GROUP))
        self._batches = file.iter_batches(ahead, use_threads=False)
        self.held: list[_Slice] = []

    @property
    def holds_any(self) -> bool:
        return bool(self.held)

    @property
    def bytes_held(self) -> float:
        return sum(some.bytes for some in self.held)

    def end(self) -> _SortKey:
        """Return the sort key of the last row that is held; if none is, one that is smaller than any."""
        return self.held[-1].keys[-1] if self.held else ()

    def read(self) -> bool:
        """Hold some more rows; False if there are none."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        keys = list(zip(*(batch.column(name).to_pylist() for name in _ORDER), strict=True))
        self.held.append(_Slice(batch, keys, batch.nbytes))
        return True

    def up_to(self, last: _SortKey) -> list[_Slice]:
        """Give out the held rows whose sort keys are `last` or smaller."""
        gone: list[_Slice] = []
        while self.held and self.held[0].keys[0] <= last:
            some = self.held.pop(0)
            if some.keys[-1] > last:
                some, rest = some.split(last)
                self.held.insert(0, rest)
            gone.append(some)
        return gone
