"""Ingestion: the bytes of an upload become checked data files of one batch."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from profile_export.domain.catalog.allowances import check_dataset_fields
from profile_export.domain.catalog.batches import RowError
from profile_export.domain.errors import DomainError, Reason
from profile_export.ingest.formats.csv import read_csv
from profile_export.ingest.formats.json import read_json_array, read_json_lines
from profile_export.ingest.formats.parquet import ingest_parquet
from profile_export.ingest.output import (
    BatchWriter,
    FileRefusedError,
    OutputFailedError,
    Refusals,
    RowsRefusedError,
)
from profile_export.ingest.rows.rows import ingest_rows
from profile_export.ingest.task import IngestResult, IngestTask

_FORMATS: dict[str, Callable[[IngestTask, BatchWriter, Refusals], IngestResult]] = {
    "json_lines": partial(ingest_rows, read_json_lines),
    "json_array": partial(ingest_rows, read_json_array),
    "csv": partial(ingest_rows, read_csv),
    "tsv": partial(ingest_rows, read_csv),
    "parquet": ingest_parquet,
}
_OF_THE_BYTES = {None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG}
"""What Arrow raises for content that makes no sense, or the system for places in a file that it sends us to."""


def ingest(task: IngestTask) -> IngestResult:
    """Check an upload and write its data files.

    The files stand in `task.folder`, named `<nnnnn>.parquet`, each sorted by identity key. An upload that is refused
    or fails leaves none. Rejected rows are in `rejected.parquet` there (see `output`), also those of an upload that
    was refused because of them. Repeating a task writes the same rows again.

    Args:
        task: What to read, what is known of it, and where to write; the folder is made if it is missing.

    Returns:
        The files and what they hold; no file for an upload without rows.

    Raises:
        RowsRefusedError: More rows than allowed, or the file as a whole, cannot be stored.
        SchemaInvalidError: The rules cannot be used.
        TooManyError: It has more fields than a dataset knows.
        OSError: The disk failed.
        MemoryError: It takes more than there is.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    try:
        with BatchWriter(task) as writer, Refusals(task) as refusals:
            try:
                result = _FORMATS[task.format](task, writer, refusals)
                # More than a dataset knows would only be refused where it holds others up.
                check_dataset_fields(result.fields)
            except BaseException as error:
                if _is_known(error):
                    raise
                raise RowsRefusedError((_of_the_file(error),), refusals.count) from error
            return result
    except OutputFailedError as failed:
        raise failed.error from None


def _is_known(error: BaseException) -> bool:
    """Whether an error is told as it is: any other that reading strangers' bytes raises is the fault of these."""
    if isinstance(error, OSError):
        return error.errno not in _OF_THE_BYTES
    return isinstance(error, RowsRefusedError | DomainError | OutputFailedError | MemoryError)


def _of_the_file(error: BaseException) -> RowError:
    if isinstance(error, FileRefusedError):
        return error.error
    message = "The file cannot be read: its content breaks the reader. Write it anew, or in another format."
    return RowError(None, Reason.FILE_UNREADABLE.value, message)
