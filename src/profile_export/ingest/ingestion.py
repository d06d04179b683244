"""Ingestion: the bytes of an upload become checked data files of one batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from profile_export.ingest.csv_rows import read_csv
from profile_export.ingest.json_array import read_json_array
from profile_export.ingest.json_lines import read_json_lines
from profile_export.ingest.parquet import ingest_parquet
from profile_export.ingest.refusals import FileRefusedError, Refusals, RowsRefusedError
from profile_export.ingest.sent_rows import ingest_rows
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.writer import BatchWriter

_FORMATS: dict[str, Callable[[IngestTask, BatchWriter, Refusals], IngestResult]] = {
    "json_lines": partial(ingest_rows, read_json_lines),
    "json_array": partial(ingest_rows, read_json_array),
    "csv": partial(ingest_rows, read_csv),
    "parquet": ingest_parquet,
}


def ingest(task: IngestTask) -> IngestResult:
    """Check an upload and write its data files.

    The files stand in `task.folder`, named `<nnnnn>.parquet`, each sorted by identity key. An upload that is refused
    or fails leaves none. Rejected rows are in `rejected.parquet` there (see `rejected`), also those of an upload that
    was refused because of them. Repeating a task writes the same rows again.

    Args:
        task: What to read, what is known of it, and where to write; the folder is made if it is missing.

    Returns:
        The files and what they hold; no file for an upload without rows.

    Raises:
        RowsRefusedError: More rows than allowed, or the file as a whole, cannot be stored.
        OSError: The disk failed.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with BatchWriter(task) as writer, Refusals(task) as refusals:
        try:
            return _FORMATS[task.format](task, writer, refusals)
        except FileRefusedError as refused:
            raise RowsRefusedError((refused.error,), refusals.count) from None
