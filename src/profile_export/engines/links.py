"""The links of a plan's rows: which identities occur together with a row's primary one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from profile_export.domain import columns
from profile_export.domain.plan import Source
from profile_export.engines.binding import listed, scan
from profile_export.engines.keys import key_records
from profile_export.engines.resolution import Pairs

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
