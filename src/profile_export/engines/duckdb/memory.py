"""What a limit on the memory of an engine's process leaves for what.

The limit means the memory that the process holds at most (peak RSS), as `ExportJob.metrics` reports it. DuckDB's own
`memory_limit` covers its buffers, hash tables and sorts, beyond which it spills to the disk. Beside those the process
holds the interpreter and its libraries (170 MB once the sources are bound), the compiled query, pages that the Parquet
writer compresses and what the allocator has not given back: 225 to 290 MB in all, with 9 and 31 fields and with texts
of 10 KB, with and without a graph, whatever the limit.
"""

from __future__ import annotations

import os

import duckdb

from profile_export.domain.export.plan import VALUES_PER_RANGE

_MEGABYTE = 1_000_000
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_BESIDE_DUCKDB = 300 * _MEGABYTE
_LEAST_FOR_DUCKDB = 16 * _MEGABYTE
_PER_THREAD = 100 * _MEGABYTE
"""Less than this for each thread, and a merge fails for the buffers of its operators alone."""
_PER_VALUE = 128
"""Bytes: a value takes 60 to 90 where profiles are not linked and 210 where they are, half of which may be spilled."""


def duckdb_bytes(limit_mb: int) -> int:
    """Return what DuckDB may use so that its process stays within a limit."""
    return max(_LEAST_FOR_DUCKDB, limit_mb * _MEGABYTE - _BESIDE_DUCKDB)


def threads(wanted: int | None, limit_mb: int) -> int:
    """Return how many threads a limit feeds: those wanted (None: one per core), or fewer."""
    return max(1, min(wanted or os.cpu_count() or 1, duckdb_bytes(limit_mb) // _PER_THREAD))


def memory_of(connection: duckdb.DuckDBPyConnection) -> int:
    """Return how many bytes a database may use."""
    ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    number, unit = limit.split(" ")
    return int(float(number) * 1024 ** _UNITS.index(unit))


def values_per_range(limit_mb: int | None) -> int:
    """Return how much one range may read: plans that an engine of this limit shall carry out are cut accordingly."""
    if limit_mb is None:
        return VALUES_PER_RANGE
    return min(VALUES_PER_RANGE, duckdb_bytes(limit_mb) // _PER_VALUE)
