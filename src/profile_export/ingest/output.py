"""What ingestion leaves of an upload: data files, and the rows that it refuses. Or it refuses the whole.

A fault of our own disk is told from one of the file.
"""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.catalog.batches import RejectedRow, RowError
from profile_export.domain.errors import Reason
from profile_export.domain.export.plan import WrittenFile
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import TypeConflictError, dotted_path
from profile_export.ingest.task import IngestTask
from profile_export.lake.data_files import sync, write_data_file

REJECTED_FILE = "rejected.parquet"
MAX_TEXT_BYTES = 100_000
"""How much of a rejected row is kept."""
MOST_TOLD = 100
"""How many refused rows are told at once."""
_MOST_CHARACTERS = 1_000
_ROWS_PER_GROUP = 1_000
_BYTES_PER_GROUP = 4 * 1024 * 1024
_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("code", "message", "path", "text")),
    ]
)


class RowsRefusedError(Exception):
    """An upload that cannot be stored, so that nothing of it is.

    `rows` are the first of the `rejected_rows` that were found before reading ended, at most 100; or the one error that
    is about the file, whose code is FILE_INVALID or whose row is None.
    """

    def __init__(self, rows: tuple[RowError, ...], rejected_rows: int) -> None:
        super().__init__(rows, rejected_rows)  # what travels between processes
        self.rows = rows
        self.rejected_rows = rejected_rows

    def __str__(self) -> str:
        return f"row {self.rows[0].row}: {self.rows[0].message}"


class FileRefusedError(Exception):
    """A file that is not what its format says: no row behind this point can be told from another.

    `row` is the number of the row where that is known.
    """

    def __init__(self, message: str, row: int | None = None, reason: Reason = Reason.FILE_INVALID) -> None:
        super().__init__(message)
        self.error = RowError(row, reason.value, _told(message))


class OutputFailedError(Exception):
    """Writing what ingestion makes has failed; `error` says how."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def writing() -> Iterator[None]:
    """Set errors of the disk apart from those of reading, which look the same.

    Raises:
        OutputFailedError: The disk failed.
    """
    try:
        yield
    except OSError as error:
        raise OutputFailedError(error) from error


class BatchWriter:
    """Takes the rows of a batch in order and writes its files; a context that removes them again if it fails."""

    def __init__(self, task: IngestTask) -> None:
        self._folder = task.folder
        self._rows_per_file = task.rows_per_file
        self._most_held = task.bytes_held  # copied once to be sorted, so this bounds the memory
        self._held: list[pa.Table] = []
        self._rows_held = 0
        self._bytes_held = 0
        self.files: list[WrittenFile] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for number in range(len(self.files) + 1):
                self._path(number).unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        """Take the next rows; every table of a batch has the same schema."""
        while table.num_rows:
            part = table.slice(0, self._rows_per_file - self._rows_held)
            table = table.slice(part.num_rows)
            self._held.append(part)
            self._rows_held += part.num_rows
            self._bytes_held += part.nbytes
            if self._rows_held == self._rows_per_file or self._bytes_held >= self._most_held:
                self._write()

    def finish(self) -> tuple[WrittenFile, ...]:
        """Write what is held and return all files; they survive a crash of the machine from here on."""
        if self._held:
            self._write()
        if self.files:
            with writing():
                sync(self._folder)
        return tuple(self.files)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.parquet"

    def _write(self) -> None:
        table = pa.concat_tables(self._held).combine_chunks()
        self._held.clear()
        self._rows_held = self._bytes_held = 0
        path = self._path(len(self.files))
        with writing():
            self.files.append(write_data_file(path, table.schema, [table]))


class Refusals:
    """Collects the rejected rows of an upload; a context that writes them to `rejected.parquet`.

    The file is there if there is any such row, whether the upload is accepted or refused.
    """

    def __init__(self, task: IngestTask) -> None:
        self._allowed = task.max_bad_records
        # Somebody who corrects an upload wants to see more than the first row of many.
        self._most = max(task.max_bad_records, MOST_TOLD) + 1
        self._path = task.folder / REJECTED_FILE
        self._file: pq.ParquetWriter | None = None
        self._held: list[RejectedRow] = []
        self._bytes_held = 0
        self._first: list[RowError] = []
        self.count = 0

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RowsRefusedError):
            self._finish()
        else:
            self.restart()

    @property
    def first(self) -> tuple[RowError, ...]:
        """The first 100 rejected rows."""
        return tuple(self._first)

    def restart(self) -> None:
        """Forget everything: the upload is read once more, and what that rejects is what counts."""
        self._held.clear()
        self._bytes_held = 0
        if self._file:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)
        self._first.clear()
        self.count = 0

    def add(self, row: int, error: ValueRefusedError | TypeConflictError, text: str | bytes) -> None:
        """Note a rejected row, of a number from 1 that is greater than all before; `text` is the row as sent.

        Raises:
            RowsRefusedError: There are so many of them that reading on is of no use.
        """
        told = row_error(row, error)
        if self.count < MOST_TOLD:
            self._first.append(told)
        kept = kept_text(text)
        self._held.append(RejectedRow(row, told.code, told.message, told.path, kept))
        self._bytes_held += len(kept)
        if len(self._held) == _ROWS_PER_GROUP or self._bytes_held >= _BYTES_PER_GROUP:
            self._write()
        self.count += 1
        if self.count == self._most:
            self.settle()

    def settle(self) -> None:
        """Go on only if no more rows were rejected than may be.

        Raises:
            RowsRefusedError: There were more.
        """
        if self.count > self._allowed:
            raise RowsRefusedError(self.first, self.count)

    def _write(self) -> None:
        columns = [[getattr(row, name) for row in self._held] for name in _SCHEMA.names]
        with writing():
            if self._file is None:
                self._file = pq.ParquetWriter(self._path, _SCHEMA, compression="zstd")
            self._file.write_table(pa.table(columns, _SCHEMA))
        self._held.clear()
        self._bytes_held = 0

    def _finish(self) -> None:
        """Write what is held; the file, if there is one, survives a crash of the machine from here on."""
        if self._held:
            self._write()
        if self._file:
            with writing():
                self._file.close()
                self._file = None
                sync(self._path)
                sync(self._path.parent)


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


def kept_text(sent: str | bytes) -> str:
    """Return what is kept of a row as sent: without its line end, at most 100 KB, and always Unicode."""
    start = sent[: MAX_TEXT_BYTES + 1]
    encoded = start.encode(errors="backslashreplace") if isinstance(start, str) else start
    # Not `final`: a character that the cut goes through is left out.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(encoded[:MAX_TEXT_BYTES], final=len(encoded) <= MAX_TEXT_BYTES).rstrip("\r\n")


def row_error(row: int | None, error: ValueRefusedError | TypeConflictError) -> RowError:
    """Return a refusal as it is told."""
    if isinstance(error, TypeConflictError):
        code, message = Reason.FIELD_TYPE_CONFLICT, error.message
    else:
        code, message = error.code, error.reason
    return RowError(row, code.value, _told(message), _told(dotted_path(error.path)))


def _told(text: str) -> str:
    """Cut a text that holds a name without end, and write half surrogate pairs so that it can be stored."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    return cut.encode(errors="backslashreplace").decode()
