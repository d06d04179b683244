"""The identity graph of a plan as DuckDB reads its links, and the rows that it moves to their profile.

In buckets by the key of the profile, and not in one sorted file: sorting takes more memory than there may be.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import HIGHEST_KEY, LOWEST_KEY, ExportPlan, KeyRange, Source
from profile_export.engines.duckdb.memory import memory_of
from profile_export.engines.duckdb.sources import listed, scan, text
from profile_export.engines.identity.components import key_records
from profile_export.engines.identity.graph import MappingFacts, Pairs, Space, mapping_facts, resolve
from profile_export.engines.identity.kept import KeptGraphs, extend

_PAIRS_AT_ONCE = 250_000
_COLUMNS = {
    "key_high": columns.KEY_HIGH,
    "key_low": columns.KEY_LOW,
    "batch_id": columns.BATCH_ID,
    "links": columns.LINKS,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """A table or file with at most so many links. Its batch ids lie between two; without them nothing is known."""

    name: str
    links: int
    ids: tuple[str, str] | None = None

    def may_hold(self, batches: Sequence[str]) -> bool:
        """Say whether a row may belong to one of these batches, given in order."""
        return self.ids is None or bisect_left(batches, self.ids[0]) < bisect_right(batches, self.ids[1])


class Links:
    """The links of a plan's rows, in tables or in files; `batches` narrow them down to the rows of these."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        places: Sequence[_Place],
        read: Callable[[Sequence[str]], str],
    ) -> None:
        self._connection, self._read = connection, read
        self._places = [place for place in places if place.links]

    def at_most(self, batches: Collection[str] | None = None) -> int:
        """Return how many links there are at most; 0 if there is none."""
        return sum(place.links for place in self._holding(batches))

    def pairs(self, batches: Collection[str] | None = None) -> Iterator[Pairs]:
        """Yield the identities that a link joins, some ten thousands at once."""
        places = self._holding(batches)
        if not places:
            return
        wanted = "" if batches is None else "AND batch_id IN (SELECT unnest($batches))"
        rows = self._read([place.name for place in places])
        # As a relation: what a statement gives would be held as a whole first.
        found = self._connection.sql(
            "SELECT high, low, link.key_high, link.key_low FROM ("
            "SELECT key_high AS high, key_low AS low, unnest(links) AS link"
            f" FROM ({rows}) WHERE links IS NOT NULL {wanted})",
            params=None if batches is None else {"batches": sorted(batches)},
        )
        for batch in found.to_arrow_reader(_PAIRS_AT_ONCE):
            high, low, other_high, other_low = (column.to_numpy() for column in batch.columns)
            yield key_records(high, low), key_records(other_high, other_low)

    def _holding(self, batches: Collection[str] | None) -> list[_Place]:
        if batches is None:
            return self._places
        ordered = sorted(batches)
        return [place for place in self._places if place.may_hold(ordered)]


def links_in_tables(connection: duckdb.DuckDBPyConnection, tables: Collection[str]) -> Links:
    """Find the links of rows that are in tables, in the form of `Binding.rows`."""
    places = []
    for table in tables:
        ((links,),) = connection.execute(f"SELECT coalesce(sum(len(links)), 0) FROM {table}").fetchall()
        places.append(_Place(table, int(links)))
    return Links(connection, places, _read_tables)


def links_in_files(
    connection: duckdb.DuckDBPyConnection, sources: Iterable[Source], lake_root: Path
) -> Links:
    """Find the links of rows that are in the files of sources.

    Their footers say where there may be any: reading the column would take longer than everything else at the start.
    """
    paths = [
        lake_root / file.path
        for source in sources
        for part in source.parts
        for file in part.files
        if file.rows
    ]
    if not paths:
        return Links(connection, [], _read_files)
    # A row without links counts as one null there, and a link always has a key.
    found = connection.execute(f"""
        SELECT
            file_name,
            sum(num_values - coalesce(stats_null_count, 0)) FILTER (path_in_schema <> '{columns.BATCH_ID}'),
            min(stats_min_value) FILTER (path_in_schema = '{columns.BATCH_ID}'),
            max(stats_max_value) FILTER (path_in_schema = '{columns.BATCH_ID}'),
            bool_and(stats_min_value IS NOT NULL AND stats_max_value IS NOT NULL)
                FILTER (path_in_schema = '{columns.BATCH_ID}')
        FROM parquet_metadata([{listed(paths)}])
        WHERE path_in_schema = '{columns.BATCH_ID}' OR path_in_schema LIKE '{columns.LINKS}, %, key_high'
        GROUP BY file_name ORDER BY file_name""").fetchall()
    places = [
        _Place(name, int(links), (lowest, highest) if known else None)
        for name, links, lowest, highest, known in found
    ]
    return Links(connection, places, _read_files)


def _read_tables(names: Sequence[str]) -> str:
    return " UNION ALL ".join(f"SELECT {', '.join(_COLUMNS)} FROM {name}" for name in names)


def _read_files(names: Sequence[str]) -> str:
    selected = ", ".join(f"{column} AS {alias}" for alias, column in _COLUMNS.items())
    return f"SELECT {selected} FROM {scan([Path(name) for name in names])}"


@contextmanager
def half_of_memory(connection: duckdb.DuckDBPyConnection) -> Iterator[int]:
    """Leave a database half of the memory that it may take while this lasts; yields the other half, in bytes."""
    limit = memory_of(connection)
    connection.execute(f"SET memory_limit = '{limit // 2}B'")
    try:
        yield limit // 2
    finally:
        connection.execute(f"SET memory_limit = '{limit}B'")


def mapping_of(plan: ExportPlan, links: Links, lake_root: Path, space: Space) -> tuple[Path, MappingFacts]:
    """Return the mapping of exactly the plan's batches, as a file in the space's folder.

    Where the plan says where graphs are kept, one of all its batches is taken as it is; the largest of some of them is
    extended by the links of the others; one that has a batch which does not count any more is of no use, since no
    one can tell what it alone had linked.
    """
    batches = {batch.id: batch.number for batch in plan.batches}
    kept, mapping = space.folder / "kept.parquet", space.folder / "mapping.parquet"
    graphs = KeptGraphs(lake_root / plan.graph_folder) if plan.graph_folder else None
    if graphs is not None and graphs.fetch(batches, kept):
        facts = mapping_facts(kept)
        if facts.batches == batches:
            return kept.rename(mapping), facts
        others = batches.keys() - facts.batches.keys()
        facts = extend(kept, links.pairs(others), links.at_most(others), batches, space, mapping)
    else:
        facts = resolve(links.pairs(), links.at_most(), batches, space, mapping)
    if graphs is not None:
        graphs.keep(mapping)
    return mapping, facts


_MOST_BUCKETS = 128
_BUCKET = "bucket"
_BYTES_PER_ROW_GROUP = 8 * 2**20


class MovedRows:
    """Moved rows on disk, by table.

    Args:
        folder: Where to keep them; it must be there and hold nothing of the tables' names.
        ranges: In how many ranges they will be read; more buckets than that are of no use.
    """

    def __init__(self, folder: Path, ranges: int) -> None:
        self._folder = folder
        self._last = min(ranges, _MOST_BUCKETS) - 1
        self._width = (HIGHEST_KEY - LOWEST_KEY + 1) // (self._last + 1)

    def write(self, connection: duckdb.DuckDBPyConnection, table: str, rows: str, mapping: Path) -> int:
        """Write those rows of a table's query that a mapping moves; return how many."""
        bucket = f"least((found.profile_high::HUGEINT - {LOWEST_KEY}) // {self._width}, {self._last})"
        moving = (
            f"SELECT found.profile_high, found.profile_low, rows.*, {bucket} AS {_BUCKET} FROM ({rows}) AS rows"
            f" JOIN {scan([mapping])} AS found"
            " ON found.key_high = rows.key_high AND found.key_low = rows.key_low"
        )
        ((copied, *_),) = connection.execute(
            f"COPY ({moving}) TO {text(str(self._folder / table))}"
            f" (FORMAT parquet, PARTITION_BY ({_BUCKET}), ROW_GROUP_SIZE_BYTES {_BYTES_PER_ROW_GROUP})"
        ).fetchall()
        return int(copied)

    def files(self, table: str, key_range: KeyRange) -> list[Path]:
        """Return the files that have all moved rows of a range, beside some of others."""
        buckets = range(self._bucket_of(key_range.low), self._bucket_of(key_range.high) + 1)
        folders = (self._folder / table / f"{_BUCKET}={bucket}" for bucket in buckets)
        return [file for folder in folders for file in sorted(folder.glob("*.parquet"))]

    def _bucket_of(self, key: int) -> int:
        return min((key - LOWEST_KEY) // self._width, self._last)
