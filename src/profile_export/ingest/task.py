"""What ingestion is asked to do, what it may take, and what comes of it: plain data that travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from profile_export.domain.catalog.batches import NamespaceUse, Reading, RowError
from profile_export.domain.catalog.datasets import DatasetKind, IdentityField
from profile_export.domain.export.plan import WrittenFile
from profile_export.domain.schemas.types import FieldPath, ObjectType
from profile_export.processes.messages import Limits


@dataclass(frozen=True, slots=True)
class IngestTask:
    """An upload to turn into data files.

    `source` is the upload as it was sent, in the `format` `json_lines`, `json_array`, `csv`, `tsv` or `parquet`, and
    `reading` how to read it; `folder` is
    an empty or missing folder for the files of this attempt. `fields` are those of the dataset as known now, built-in
    and declared ones included; `identity_fields` are the ones it declares. A file gets at most `rows_per_file` rows.

    Up to `max_bad_records` rows may be rejected, among them those of more than `max_row_bytes`; the others are numbered
    from `first_row` without gaps. `rules` is the text of the rules that every record keeps, empty for none. About
    `bytes_held` of rows wait in memory until they are written.
    """

    source: Path
    format: str
    kind: DatasetKind
    batch_id: str
    fields: ObjectType
    identity_fields: tuple[IdentityField, ...]
    folder: Path
    rows_per_file: int = 1_000_000
    max_bad_records: int = 0
    first_row: int = 0
    max_row_bytes: int = 100_000
    rules: str = ""
    bytes_held: int = 256 * 2**20
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an upload turned out to hold.

    `files` are in the folder of the task, none if there is no row; every one has the system columns and exactly
    `fields`: what the dataset knew and what this upload taught. `rows` counts the accepted ones. `untyped` are the
    paths of arrays that were left out because nobody knew the type of their items (S13). `errors` are the first 100
    of the `rejected_rows`, all of which are in `rejected.parquet`. `null_count` is how many texts were read as absent,
    those of rejected rows included; `notes` say in sentences what else was left out.
    """

    files: tuple[WrittenFile, ...]
    rows: int
    fields: ObjectType
    identity_namespaces: NamespaceUse
    segment_namespaces: NamespaceUse
    untyped: tuple[FieldPath, ...]
    rejected_rows: int
    errors: tuple[RowError, ...]
    null_count: int = 0
    notes: tuple[str, ...] = ()


_MEBIBYTE = 2**20
_MEGABYTE = 1_000_000
_SECONDS_PER_CPU_SECOND = 5
"""A machine that has other things to do is so many times slower."""
_BESIDE_ROWS = 200 * _MEGABYTE
_COPIES_OF_ROWS = 8
_MOST_HELD = 256 * _MEBIBYTE


@dataclass(frozen=True, slots=True)
class Expense:
    """What one file or schema may take to read.

    `cpu_seconds` and for each MiB of it `cpu_seconds_per_mib` more, five times that by the clock; `memory_mb` is what
    the process holds that reads it, in 10^6 bytes.
    """

    cpu_seconds: int = 30
    cpu_seconds_per_mib: int = 2
    memory_mb: int = 2_000

    def limits(self, byte_count: int) -> Limits:
        """Return the limits of so many bytes."""
        cpu_seconds = self.cpu_seconds + self.cpu_seconds_per_mib * byte_count / _MEBIBYTE
        return Limits(
            seconds=cpu_seconds * _SECONDS_PER_CPU_SECOND,
            cpu_seconds=cpu_seconds,
            memory_bytes=self.memory_mb * _MEGABYTE,
        )

    @property
    def bytes_held(self) -> int:
        """How many bytes of rows may wait for their file, so that all copies of them fit into the memory."""
        return min(_MOST_HELD, (self.memory_mb * _MEGABYTE - _BESIDE_ROWS) // _COPIES_OF_ROWS)
