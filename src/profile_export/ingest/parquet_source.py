"""A Parquet file as it was sent: judged by its footer before anything is decoded, then read in bounded slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.ingest.arrow_types import with_singles
from profile_export.ingest.refusals import FileRefusedError
from profile_export.ingest.task import IngestTask
from profile_export.lake.data_file import ROWS_PER_GROUP

MOST_FOOTER_BYTES = 32 * 2**20
MOST_COLUMNS = 10_000
MOST_ROW_GROUPS = 20_000
_TAIL_BYTES = 8
_MAGIC = b"PAR1"
_MOST_BYTES_OF_A_VALUE = 8
"""Of one that has a fixed width, as Arrow holds most of them; of text there is what its row may have."""
_LIBRARYS_OWN = re.compile(r"\b\w+(?:Exception|Error): ")
"""The name of an exception, which stands in what the reader says and means nothing to who sent the file."""


def judged_schema(task: IngestTask) -> pa.Schema:
    """Return the columns of a file whose footer says nothing that speaks against reading it.

    Raises:
        FileRefusedError: It is not sound Parquet, or so large in some way that it is not decoded.
    """
    with _refusing_unsound(task), task.source.open("rb") as source:
        source.seek(0, 2)
        source.seek(max(0, source.tell() - _TAIL_BYTES))
        tail = source.read()
        if tail.endswith(_MAGIC):
            _judge(int.from_bytes(tail[:4], "little"), MOST_FOOTER_BYTES, "a footer of {} bytes")
    with _refusing_unsound(task), pq.ParquetFile(task.source, coerce_int96_timestamp_unit="us") as file:
        _judge(file.metadata.num_columns, MOST_COLUMNS, "{} columns")
        _judge(file.metadata.num_row_groups, MOST_ROW_GROUPS, "{} row groups")
        _judge_values(file.metadata, task.max_row_bytes)
        return file.schema_arrow


def read_batches(task: IngestTask) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a judged file, as many at a time as are worked on well and fit into memory.

    Raises:
        FileRefusedError: It is not sound Parquet.
    """
    most_bytes = task.bytes_held // 2
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in _slices(task, most_bytes):
        if _has_dictionaries(batch.schema):  # which cannot all be joined
            yield batch
            continue
        if held and (rows + batch.num_rows > ROWS_PER_GROUP or size + batch.nbytes > most_bytes):
            yield pa.concat_batches(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
    if held:
        yield pa.concat_batches(held)


def _has_dictionaries(schema: pa.Schema) -> bool:
    return any("dictionary" in str(found) for found in schema.types)


def _slices(task: IngestTask, most_bytes: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(task.source, coerce_int96_timestamp_unit="us") as file:
        batches = file.iter_batches(_rows_at_once(file.metadata, most_bytes, task.max_row_bytes))
        while True:
            with _refusing_unsound(task):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)  # the reader takes bytes for text that are not UTF-8
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays(
                    [_taken(column) for column in batch.columns], batch.schema.names
                )


def _judge(found: int, most: int, what: str) -> None:
    if found > most:
        message = f"The file has {what.format(found)}, but may have {most}: write its rows as smaller files."
        raise FileRefusedError(message)


def _judge_values(metadata: pq.FileMetaData, most: int) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            if column.num_values > most * max(group.num_rows, 1):
                message = (
                    f"The row group {number + 1} of the file has {column.num_values} values of "
                    f"'{column.path_in_schema}' in {group.num_rows} rows, but a row may have {most}, as it may have "
                    "bytes."
                )
                raise FileRefusedError(message)


def _rows_at_once(metadata: pq.FileMetaData, most_bytes: int, max_row_bytes: int) -> int:
    """Return how many rows, if none has more bytes than it may, take no more than so many.

    What the footer says of their bytes is only what they take with a dictionary, which the reader does away with.
    """
    widest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = sum(group.column(place).num_values for place in range(group.num_columns))
        size = max(group.total_byte_size, values * _MOST_BYTES_OF_A_VALUE)
        widest = max(widest, size // max(group.num_rows, 1))
    return max(1, min(ROWS_PER_GROUP, most_bytes // max(widest, max_row_bytes)))


def _taken(column: pa.Array) -> pa.Array:
    """Return a column with text that can be taken out of it by row: Arrow cannot do so with views."""
    viewless = with_singles(
        column.type, lambda single: pa.string() if pa.types.is_string_view(single) else single
    )
    return column.cast(viewless) if "string_view" in str(column.type) else column


@contextmanager
def _refusing_unsound(task: IngestTask) -> Iterator[None]:
    """Tell a file that is not sound Parquet as a refusal."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file's content
        if isinstance(error, MemoryError):
            raise
        told = _LIBRARYS_OWN.sub("", str(error).replace(str(task.source), "the upload"))
        raise FileRefusedError(f"The file is not sound Parquet: {told}") from None
