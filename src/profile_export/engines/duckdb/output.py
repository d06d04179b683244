"""What comes of a range: profiles counted, and those that are not left out written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import duckdb

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LEFT_OUT_REASONS,
    LOWEST_KEY,
    ExportCounts,
    ExportPlan,
    KeyRange,
    WrittenFile,
)
from profile_export.engines.duckdb.query import output_columns
from profile_export.engines.duckdb.sources import scan
from profile_export.engines.duckdb.spelling import name, text
from profile_export.engines.expression.tables import Shape

_BYTES_PER_FILE = 128 * 2**20
_MOST_BYTES_PER_ROW_GROUP = 64 * 2**20
"""As DuckDB holds it while it is filled, by each thread; rows of a few fields come to their number before."""
FEWEST_ROWS = 16
"""A slice of so few rows is not halved where memory is too small for it."""
_OF_MEMORY = 32
"""A row group takes no more than this part of the memory, since it is encoded and compressed beside it."""
# As `domain.merging.identity.profile_id` has it; of a negative number the digits are those of its two's complement.
_PROFILE_ID = "lower(lpad(hex(profile_high), 16, '0') || lpad(hex(profile_low), 16, '0'))"
_KEPT = "FILTER (WHERE left_out IS NULL)"
_LEFT_OUT = "count(*) FILTER (WHERE left_out = '{}')"
_COUNTS = {
    "fragments_read": "sum(fragments)",
    "events_read": "sum(events)",
    "profiles_read": "count(*)",
    "profiles_exported": f"count(*) {_KEPT}",
    "profiles_merged": "count(*) FILTER (WHERE left_out IS NULL AND fragments > 1)",
    "events_exported": f"sum(attached) {_KEPT}",
    "events_with_record": "sum(events) FILTER (WHERE fragments > 0)",
    "identities_left_out": "sum(identities) FILTER (WHERE left_out = 'too_many_identities')",
    "fragments_left_out": "sum(fragments) FILTER (WHERE left_out = 'too_many_identities')",
    **{reason: _LEFT_OUT.format(reason) for reason in LEFT_OUT_REASONS},
}
_BY_NAMESPACE = """
SELECT found, count(*) FROM (
    SELECT namespace AS found FROM profiles WHERE namespace IS NOT NULL AND left_out IS NULL
    UNION ALL
    SELECT unnest(namespaces) FROM profiles WHERE left_out IS NULL
) GROUP BY found ORDER BY found"""
_SEGMENT_MEMBERS = """
SELECT position, count(*) FROM (SELECT unnest(members) AS position FROM profiles)
GROUP BY position ORDER BY position"""


class Output:
    """Where and how an attempt's files are written, from the table `profiles`.

    Args:
        connection: The database that has the table.
        plan: What is exported.
        folder: For the files of the plan's `batch_id`.
        segment_folders: Instead, one for each of its `segment_batches`.
        memory: How many bytes the database may use.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        plan: ExportPlan,
        folder: Path,
        segment_folders: Sequence[Path],
        memory: int,
    ) -> None:
        self._connection, self._plan = connection, plan
        self._folder, self._segment_folders = folder, segment_folders
        self._widest = HIGHEST_KEY - LOWEST_KEY + 1
        self._bytes_per_row_group = min(_MOST_BYTES_PER_ROW_GROUP, memory // _OF_MEMORY)

    def count(self) -> ExportCounts:
        """Count the profiles."""
        ((*figures,),) = self._connection.execute(
            f"SELECT {', '.join(_COUNTS.values())} FROM profiles"
        ).fetchall()
        names = dict(self._connection.execute(_BY_NAMESPACE).fetchall())
        members = dict(self._connection.execute(_SEGMENT_MEMBERS).fetchall()) if self._plan.segments else {}
        found: dict[str, Any] = {
            count: int(figure or 0) for count, figure in zip(_COUNTS, figures, strict=True)
        }
        return ExportCounts(**found, by_namespace=names, segment_members=members)

    def write(self, shape: Shape, key_range: KeyRange) -> tuple[WrittenFile, ...]:
        """Write the files of a range: all rows, or for each segment those that are in it; safe on the disk then."""
        batches = self._plan.segment_batches
        if not batches:
            return self._write_batch(shape, key_range, self._folder, self._plan.batch_id, "left_out IS NULL")
        admitted = "left_out IS NULL AND list_contains(admitted, {})"
        return tuple(
            file
            for position, (folder, batch_id) in enumerate(zip(self._segment_folders, batches, strict=True))
            for file in self._write_batch(shape, key_range, folder, batch_id, admitted.format(position))
        )

    def _write_batch(
        self, shape: Shape, key_range: KeyRange, folder: Path, batch_id: str, kept: str
    ) -> tuple[WrittenFile, ...]:
        """Write the rows in the order of their profiles: at once, or in slices where memory is too small for that.

        As for merging, a slice that does not fit is halved, as are those that come after it.
        """
        self._connection.execute(f"SET VARIABLE batch_id = {text(batch_id)}")
        outgoing = folder / f"range-{key_range.index}"
        files: list[WrittenFile] = []
        waiting = [key_range]
        while waiting:
            key_slice = waiting.pop()
            if key_slice.width > self._widest:
                waiting += reversed(key_slice.halves())
                continue
            in_slice = f"{kept} AND profile_high BETWEEN {key_slice.low} AND {key_slice.high}"
            try:
                written = self._copy(shape, outgoing, batch_id, in_slice)
            except duckdb.OutOfMemoryException:
                if self._plan.rows_in(key_slice) <= FEWEST_ROWS:
                    raise
                rmtree(outgoing, ignore_errors=True)
                self._widest = key_slice.width - 1
                waiting.append(key_slice)
                continue
            for path in written:
                ((rows,),) = self._connection.execute(f"SELECT count(*) FROM {scan([path])}").fetchall()
                if rows == 0:
                    # Nobody of this slice is exported, or in the segment.
                    path.unlink()
                    continue
                final = folder / f"{key_range.index}-{len(files)}.parquet"
                path.rename(final)
                files.append(
                    WrittenFile(final.name, rows, final.stat().st_size, _digest_on_disk(final), batch_id)
                )
            outgoing.rmdir()
        return tuple(files)

    def _copy(self, shape: Shape, folder: Path, batch_id: str, kept: str) -> list[Path]:
        """Write rows of `profiles` into a folder; return the paths of its files."""
        out = [f"{column.name} AS {name(column.field)}" for column in output_columns(shape)]
        out.append(f"{_PROFILE_ID} AS {name(columns.PROFILE_ID)}")
        out.append(f"getvariable('batch_id') AS {name(columns.BATCH_ID)}")
        query = f"SELECT {', '.join(out)} FROM profiles WHERE {kept} ORDER BY {name(columns.PROFILE_ID)}"
        told = {**self._plan.origin, "batch-id": batch_id}
        about = ", ".join(f"{name(columns.ABOUT_FILE + key)}: {text(value)}" for key, value in told.items())
        # DuckDB marks columns that it finds out to be without nulls as required, which readers take for the table's
        # schema.
        with _without(self._connection, "statistics_propagation"):
            ((_, written),) = self._connection.execute(
                f"COPY ({query}) TO {text(str(folder))}"
                f" (FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES {_BYTES_PER_FILE},"
                f" ROW_GROUP_SIZE_BYTES {self._bytes_per_row_group}, RETURN_FILES, KV_METADATA {{{about}}})"
            ).fetchall()
        return [Path(path) for path in sorted(written)]


@contextmanager
def _without(connection: duckdb.DuckDBPyConnection, optimizer: str) -> Iterator[None]:
    """Leave one more optimizer out while this lasts."""
    ((others,),) = connection.execute("SELECT current_setting('disabled_optimizers')").fetchall()
    connection.execute(f"SET disabled_optimizers = '{others},{optimizer}'")
    try:
        yield
    finally:
        connection.execute(f"SET disabled_optimizers = '{others}'")


def _digest_on_disk(path: Path) -> str:
    """Return a file's SHA-256 once the file is safe on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
