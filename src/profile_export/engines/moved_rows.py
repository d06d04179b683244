"""The rows of identities whose profile has another key than they: brought to where their profile is.

In buckets by the key of the profile, and not in one sorted file: sorting takes more memory than there may be.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from profile_export.domain.plan import HIGHEST_KEY, LOWEST_KEY, KeyRange
from profile_export.engines.binding import scan, text

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
