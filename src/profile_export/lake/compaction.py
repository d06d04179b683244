"""Compaction: many small data files become one. Which ones is decided in the domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain import columns
from profile_export.domain.plan import HIGHEST_KEY, LOWEST_KEY, WrittenFile
from profile_export.lake.data_file import (
    BYTES_PER_GROUP,
    ROWS_PER_GROUP,
    open_data_file,
    sync,
    write_data_file,
)

_OF_A_GROUP = 0.9
"""Keys spread evenly, but not exactly so: what is a little above the average must still be one row group."""
_ROWS_READ_AHEAD = 1024


@dataclass(frozen=True, slots=True)
class CompactTask:
    """Data files to merge into the file `target`; its folder is made if it is missing."""

    sources: tuple[Path, ...]
    target: Path


def compact(task: CompactTask) -> WrittenFile:
    """Write the rows of some data files, unchanged, into one, sorted as each of them is.

    Holds about one row group of rows and the pages that each source is being read at, at most 1 MiB per column, which
    for small sources is all of them: some 0.6 GB for half a million rows of 31 fields. Rows of one key are held at
    once.

    Raises:
        OSError: The disk failed, or a source is gone.
        ArrowInvalid: The sources do not have the same columns.
    """
    task.target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        files = [opened.enter_context(open_data_file(path)) for path in task.sources]
        schema = files[0].schema_arrow
        rows = sum(file.metadata.num_rows for file in files)
        groups = max(rows / ROWS_PER_GROUP, sum(map(_bytes, files)) / BYTES_PER_GROUP)
        slices = max(1, math.ceil(groups / _OF_A_GROUP))
        sources = [_Rows(file) for file in files]
        written = write_data_file(task.target, schema, _in_slices(sources, schema, slices))
    sync(task.target.parent)
    # The child may wait long for its next merge.
    pa.default_memory_pool().release_unused()
    return written


def _bytes(file: pq.ParquetFile) -> int:
    """Return how many bytes a file's rows take, before compression."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def _in_slices(sources: Sequence[_Rows], schema: pa.Schema, count: int) -> Iterator[pa.Table]:
    """Yield all rows, cut by key into about equally many."""
    width = (HIGHEST_KEY - LOWEST_KEY + 1) // count
    for highest in (*(LOWEST_KEY + width * number for number in range(1, count)), HIGHEST_KEY):
        batches = chain.from_iterable(source.up_to(highest) for source in sources)
        yield pa.Table.from_batches(batches, schema=schema)


class _Rows:
    """The rows of a file, in their order."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches = file.iter_batches(batch_size=_ROWS_READ_AHEAD)
        self._held: pa.RecordBatch | None = None

    def up_to(self, highest: int) -> Iterator[pa.RecordBatch]:
        """Yield the next rows whose key's high half is at most that."""
        while (batch := next(self._batches, None) if self._held is None else self._held) is not None:
            count = pc.sum(pc.less_equal(batch.column(columns.KEY_HIGH), highest)).as_py()
            yield batch.slice(0, count)
            self._held = batch.slice(count) if count < batch.num_rows else None
            if self._held is not None:
                return
