"""Ingestion: the bytes of an upload become checked data files of one batch."""

from __future__ import annotations

from profile_export.ingest.json_lines import ingest_json_lines
from profile_export.ingest.parquet import ingest_parquet
from profile_export.ingest.task import IngestResult, IngestTask
from profile_export.ingest.writer import BatchWriter

_FORMATS = {"json_lines": ingest_json_lines, "parquet": ingest_parquet}


def ingest(task: IngestTask) -> IngestResult:
    """Check an upload and write its data files.

    The files stand in `task.folder`, named `<nnnnn>.parquet`, each sorted by identity key. An upload that is refused
    or fails leaves none. Repeating a task writes the same rows again.

    Args:
        task: What to read, what is known of it, and where to write; the folder is made if it is missing.

    Returns:
        The files and what they hold; no file for an upload without rows.

    Raises:
        RowsRefusedError: Rows, or the file as a whole, cannot be stored.
        OSError: The disk failed.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with BatchWriter(task) as writer:
        return _FORMATS[task.format](task, writer)
