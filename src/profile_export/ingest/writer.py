"""Writing the data files of a batch. A fault of our own disk is told from one of the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from profile_export.domain.export.plan import WrittenFile
from profile_export.ingest.task import IngestTask
from profile_export.lake.data_files import sync, write_data_file


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
