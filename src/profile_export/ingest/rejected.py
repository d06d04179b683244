"""Rejected rows: kept beside the data files of their upload, and read page by page."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.batch import RejectedRow
from profile_export.ingest.output import writing
from profile_export.lake.data_file import sync

REJECTED_FILE = "rejected.parquet"
MAX_TEXT_BYTES = 100_000
"""How much of a rejected row is kept."""
_ROWS_PER_GROUP = 1_000
_BYTES_PER_GROUP = 4 * 1024 * 1024
_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("code", "message", "path", "text")),
    ]
)


def kept_text(sent: str | bytes) -> str:
    """Return what is kept of a row as sent: without its line end, at most 100 KB, and always Unicode."""
    start = sent[: MAX_TEXT_BYTES + 1]
    encoded = start.encode(errors="backslashreplace") if isinstance(start, str) else start
    # Not `final`: a character that the cut goes through is left out.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(encoded[:MAX_TEXT_BYTES], final=len(encoded) <= MAX_TEXT_BYTES).rstrip("\r\n")


class RejectedWriter:
    """Writes rejected rows in the order of their numbers; the file is there from the first row on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetWriter | None = None
        self._held: list[RejectedRow] = []
        self._bytes_held = 0

    def add(self, row: RejectedRow) -> None:
        """Take the next row."""
        self._held.append(row)
        self._bytes_held += len(row.text)
        if len(self._held) == _ROWS_PER_GROUP or self._bytes_held >= _BYTES_PER_GROUP:
            self._write()

    def finish(self) -> None:
        """Write what is held; the file, if there is one, survives a crash of the machine from here on."""
        if self._held:
            self._write()
        if self._file:
            with writing():
                self._file.close()
                self._file = None
                sync(self._path)
                sync(self._path.parent)

    def discard(self) -> None:
        """Drop all rows and the file."""
        self._held.clear()
        self._bytes_held = 0
        if self._file:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        columns = [[getattr(row, name) for row in self._held] for name in _SCHEMA.names]
        with writing():
            if self._file is None:
                self._file = pq.ParquetWriter(self._path, _SCHEMA, compression="zstd")
            self._file.write_table(pa.table(columns, _SCHEMA))
        self._held.clear()
        self._bytes_held = 0


def read_rejected(path: Path, after_row: int) -> Iterator[RejectedRow]:
    """Yield the rejected rows of one uploaded file, in the order of their numbers; a few megabytes at a time are held.

    Args:
        path: `rejected.parquet` in the folder of the upload; there is none if no row was rejected.
        after_row: The number of the last row that is known already; 0 for all.
    """
    if not path.exists():
        return
    with pq.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        first = bisect_right(groups, after_row, key=lambda group: _last_row(file.metadata, group))
        for group in groups[first:]:
            for row in file.read_row_group(group).to_pylist():
                if row["row"] > after_row:
                    yield RejectedRow(**row)


def _last_row(metadata: pq.FileMetaData, group: int) -> int:
    last: int = metadata.row_group(group).column(0).statistics.max
    return last
