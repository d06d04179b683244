"""The links of a plan's rows: which identities occur on the same row.

They are read from the data files, unless an engine has the rows at hand. Footers say which row groups have any, and of
these nothing but keys is read: names and ids would be most of the work.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import Source
from profile_export.engines.identity.graph import Keys, key_records

Pairs = tuple[Keys, Keys]
_LINKED_KEY = (f"{columns.LINKS}.list.element.key_high", f"{columns.LINKS}.list.element.key_low")
_ROWS_AT_ONCE = 65_536
_MOST_SCHEMA_LEVELS = 1_000
"""Arrow reads a hundred unless it is told otherwise; `lake.data_files` says how many there may be."""


class DamagedFileError(Exception):
    """A data file cannot be decoded. The text names it."""


@dataclass(frozen=True, slots=True)
class LinkedRows:
    """Rows that have at most so many links.

    `read` yields some rows at a time, with the columns asked for, or more. Their batch ids lie between the two of
    `ids`; without them nothing is known.
    """

    links: int
    read: Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
    ids: tuple[str, str] | None = None

    def may_hold(self, batches: Sequence[str]) -> bool:
        """Say whether a row may belong to one of these batches, given in order."""
        return self.ids is None or bisect_left(batches, self.ids[0]) < bisect_right(batches, self.ids[1])


class Links:
    """The links of some rows; `batches` narrow them down to the rows of these."""

    def __init__(self, rows: Iterable[LinkedRows]) -> None:
        self._rows = [some for some in rows if some.links]
        self.share_read = 0.0
        """How much of what was asked for last has been read, between 0 and 1."""

    def at_most(self, batches: Collection[str] | None = None) -> int:
        """Return how many links there are at most; 0 if there is none."""
        return sum(rows.links for rows in self._holding(batches))

    def pairs(self, batches: Collection[str] | None = None) -> Iterator[Pairs]:
        """Yield the identities that a link joins, some ten thousands at once."""
        read, at_most = 0, self.at_most(batches)
        wanted = None if batches is None else pa.array(batches, pa.string())
        names = [columns.KEY_HIGH, columns.KEY_LOW, *_LINKED_KEY]
        if wanted is not None:
            names.append(columns.BATCH_ID)
        for rows in self._holding(batches):
            for some in rows.read(names):
                yield _pairs(
                    some if wanted is None else some.filter(pc.is_in(some[columns.BATCH_ID], wanted))
                )
            read += rows.links
            self.share_read = read / at_most

    def _holding(self, batches: Collection[str] | None) -> list[LinkedRows]:
        if batches is None:
            return self._rows
        ordered = sorted(batches)
        return [rows for rows in self._rows if rows.may_hold(ordered)]


def _pairs(rows: pa.RecordBatch) -> Pairs:
    links = rows[columns.LINKS]
    row_of_link = pc.list_parent_indices(links).to_numpy()
    high, low = (rows[half].to_numpy()[row_of_link] for half in (columns.KEY_HIGH, columns.KEY_LOW))
    others = links.flatten()
    other_high, other_low = (others.field(half).to_numpy() for half in ("key_high", "key_low"))
    return key_records(high, low), key_records(other_high, other_low)


def links_in_files(sources: Iterable[Source], lake_root: Path) -> Links:
    """Find the links of all rows of some sources, which are read as they are asked for.

    Raises:
        OSError: A file is gone, or the disk failed; reading raises it, too.
        DamagedFileError: As it says; reading raises it, too.
    """
    files = (file for source in sources for part in source.parts for file in part.files if file.rows)
    return Links(rows for file in files for rows in _row_groups(lake_root / file.path))


def _row_groups(path: Path) -> Iterator[LinkedRows]:
    with _opened(path) as file:
        footer = file.metadata
    batch_ids, keys = (_place(footer, column) for column in (columns.BATCH_ID, _LINKED_KEY[0]))
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        ids, key = group.column(batch_ids).statistics, group.column(keys)
        # A row without links counts as one null there, and a link always has a key.
        nulls = key.statistics.null_count if key.statistics is not None else None
        known = ids is not None and ids.has_min_max
        yield LinkedRows(
            key.num_values - (nulls or 0),
            partial(_read, path, number),
            (ids.min, ids.max) if known else None,
        )


def _place(footer: pq.FileMetaData, column: str) -> int:
    """Return where a column stands. Ours stand before those of users, of whom there may be thousands."""
    return next(at for at in range(footer.num_columns) if footer.schema.column(at).path == column)


def _read(path: Path, group: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _opened(path) as file:
        yield from file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names, use_threads=False)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, schema_depth_limit=_MOST_SCHEMA_LEVELS) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow seldom names the file, and calls it an OSError without a number where a page cannot be decoded.
        first, *_ = str(error).splitlines()
        sentence = f"{path}: {first}"
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, sentence) from error
        raise DamagedFileError(sentence) from error
