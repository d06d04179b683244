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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import Source
from profile_export.domain.merging.identity import IdentityKey
from profile_export.engines.identity.components import find
from profile_export.engines.identity.graph import KEY, Keys, key_records

Pairs = tuple[Keys, Keys]
Batches = Collection[str] | None
"""The batches that a row has to be of; None: of any."""
_LINKED_KEY = (f"{columns.LINKS}.list.element.key_high", f"{columns.LINKS}.list.element.key_low")
_READ = (columns.KEY_HIGH, columns.KEY_LOW, *_LINKED_KEY)
_ROWS_AT_ONCE = 65_536
_MOST_SCHEMA_LEVELS = 1_000
"""Arrow reads a hundred unless it is told otherwise; `lake.data_files` says how many there may be."""


class DamagedFileError(Exception):
    """A data file cannot be decoded. The text names it."""


@dataclass(frozen=True, slots=True)
class LinkedRows:
    """Rows that have at most so many links, such as a row group of a file, which is its `number`.

    Their batch ids lie between the two of `ids`; without them nothing is known.
    """

    links: int
    number: int = 0
    ids: tuple[str, str] | None = None

    def may_hold(self, batches: Sequence[str] | None) -> bool:
        """Say whether there is a link on a row of one of these batches, given in order; None: on any row."""
        if batches is None or self.ids is None:
            return self.links > 0
        return self.links > 0 and bisect_left(batches, self.ids[0]) < bisect_right(batches, self.ids[1])


@dataclass(frozen=True, slots=True)
class LinkedPlace:
    """A table or file with such rows. `read` yields the pairs of some of them, some ten thousands at once."""

    rows: Sequence[LinkedRows]
    read: Callable[[Sequence[LinkedRows], Batches], Iterable[Pairs]]


class Links:
    """The links in some places; `batches` narrow them down to the rows of these."""

    def __init__(self, places: Iterable[LinkedPlace]) -> None:
        self._places = list(places)
        self.share_read = 0.0
        """How much of what was asked for last has been read, between 0 and 1."""

    def at_most(self, batches: Batches = None) -> int:
        """Return how many links there are at most; 0 if there is none."""
        return sum(rows.links for _, holding in self._holding(batches) for rows in holding)

    def pairs(self, batches: Batches = None) -> Iterator[Pairs]:
        """Yield the identities that a link joins, some ten thousands at once."""
        read, at_most = 0, self.at_most(batches)
        for place, holding in self._holding(batches):
            yield from place.read(holding, batches)
            read += sum(rows.links for rows in holding)
            self.share_read = read / at_most

    def _holding(self, batches: Batches) -> Iterator[tuple[LinkedPlace, Sequence[LinkedRows]]]:
        ordered = None if batches is None else sorted(batches)
        for place in self._places:
            if holding := [rows for rows in place.rows if rows.may_hold(ordered)]:
                yield place, holding


def links_in_files(
    sources: Iterable[Source], lake_root: Path, excluded: Collection[IdentityKey] = ()
) -> Links:
    """Find the links of all rows of some sources, which are read as they are asked for.

    Those to and from `excluded` identities do not count (S4), but where it is said how many there are at most.

    Raises:
        OSError: A file is gone, or the disk failed; reading raises it, too.
        DamagedFileError: As it says; reading raises it, too.
    """
    files = (file for source in sources for part in source.parts for file in part.files if file.rows)
    left_out = np.array(sorted(excluded), KEY)
    return Links(_in_file(lake_root / file.path, left_out) for file in files)


def _in_file(path: Path, excluded: Keys) -> LinkedPlace:
    with _opened(path) as file:
        footer = file.metadata
        key, batch_id = (_place(footer, column) for column in (_LINKED_KEY[0], columns.BATCH_ID))
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        rows = [
            _in_row_group(number, group.column(key), group.column(batch_id))
            for number, group in enumerate(groups)
        ]
    read = partial(_pairs_in_file, path)
    return LinkedPlace(rows, partial(_without, excluded, read) if len(excluded) else read)


def _without(
    excluded: Keys,
    read: Callable[[Sequence[LinkedRows], Batches], Iterable[Pairs]],
    groups: Sequence[LinkedRows],
    batches: Batches,
) -> Iterator[Pairs]:
    """Yield the pairs of which neither end is excluded; `excluded` is in order."""
    for ones, others in read(groups, batches):
        counting = ~(find(excluded, ones)[1] | find(excluded, others)[1])
        yield ones[counting], others[counting]


def _place(footer: pq.FileMetaData, column: str) -> int:
    """Return where a column stands. Ours stand before those of users, of whom there may be thousands."""
    for at in range(footer.num_columns):
        if footer.schema.column(at).path == column:
            return at
    raise KeyError(column)


def _in_row_group(number: int, key: pq.ColumnChunkMetaData, batch_id: pq.ColumnChunkMetaData) -> LinkedRows:
    ids = batch_id.statistics
    # A row without links counts as one null there, and a link always has a key.
    nulls = key.statistics.null_count if key.statistics is not None else None
    known = ids is not None and ids.has_min_max
    return LinkedRows(key.num_values - (nulls or 0), number, (ids.min, ids.max) if known else None)


def _pairs_in_file(path: Path, groups: Iterable[LinkedRows], batches: Batches) -> Iterator[Pairs]:
    wanted = None if batches is None else pa.array(batches, pa.string())
    names = [*_READ] if wanted is None else [*_READ, columns.BATCH_ID]
    with _opened(path) as file:
        for group in groups:
            # Apart, since a row group holds fewer rows where they have many links.
            for rows in file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group.number], columns=names, use_threads=False
            ):
                if wanted is None:
                    yield _pairs(rows)
                else:
                    yield _pairs(rows.filter(pc.is_in(rows[columns.BATCH_ID], wanted)))


def _pairs(rows: pa.RecordBatch) -> Pairs:
    links = rows[columns.LINKS]
    row_of_link = pc.list_parent_indices(links).to_numpy()
    high, low = (rows[half].to_numpy()[row_of_link] for half in (columns.KEY_HIGH, columns.KEY_LOW))
    others = links.flatten()
    other_high, other_low = (others.field(half).to_numpy() for half in ("key_high", "key_low"))
    return key_records(high, low), key_records(other_high, other_low)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, schema_depth_limit=_MOST_SCHEMA_LEVELS) as file:
            yield file
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        # Arrow seldom names the file, and calls it an OSError without a number where a page cannot be decoded.
        first, *_ = str(error).splitlines() or [type(error).__name__]
        sentence = f"{path}: {first}"
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, sentence) from error
        raise DamagedFileError(sentence) from error
