"""Uploads for the tests of ingestion, and the rows that their files hold."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from profile_export.domain.catalog.batches import SYSTEM_COLUMNS, RejectedRow, RowError
from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    DatasetKind,
    IdentityField,
    initial_fields,
)
from profile_export.domain.schemas.types import EMPTY, ObjectType, union_objects
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import REJECTED_FILE, RowsRefusedError, read_rejected
from profile_export.ingest.task import IngestResult, IngestTask

CRM = IdentityField(("crmId",), "CRM", primary=True)
BYTES_HELD = 256 * 2**20


@dataclass(frozen=True)
class Uploader:
    """Ingests uploads into a folder, as one dataset after another."""

    folder: Path

    def task(
        self,
        sent: list[Any] | bytes | pa.Table,
        *identity_fields: IdentityField,
        kind: DatasetKind = DatasetKind.RECORD,
        known: ObjectType = EMPTY,
        upload_format: str = "",
        rows_per_file: int = 1_000,
        **others: Any,
    ) -> IngestTask:
        """Return the task; what is sent is a table, the text of any format, or records for JSON lines."""
        source = self.folder / "upload"
        if isinstance(sent, pa.Table):
            pq.write_table(sent, source, row_group_size=3)
        elif isinstance(sent, bytes):
            source.write_bytes(sent)
        else:
            source.write_text("".join(json.dumps(record) + "\n" for record in sent))
        schema = next(schema for schema in BUILT_IN_SCHEMAS.values() if schema.kind is kind)
        return IngestTask(
            source=source,
            format=upload_format or ("parquet" if isinstance(sent, pa.Table) else "json_lines"),
            kind=kind,
            batch_id="b-1",
            fields=union_objects(initial_fields(schema, identity_fields), known),
            identity_fields=identity_fields,
            folder=self.folder / "files",
            rows_per_file=rows_per_file,
            **{"bytes_held": BYTES_HELD, **others},
        )

    def ingest(
        self, sent: list[Any] | bytes | pa.Table, *fields: IdentityField, **others: Any
    ) -> IngestResult:
        return ingest(self.task(sent, *fields, **others))

    def refusal(
        self, sent: list[Any] | bytes | pa.Table, *fields: IdentityField, **others: Any
    ) -> RowsRefusedError:
        """Why an upload was refused; of its files only the rejected rows may be left."""
        with pytest.raises(RowsRefusedError) as refused:
            self.ingest(sent, *fields, **others)
        left = [path.name for path in (self.folder / "files").iterdir()]
        assert left == ([REJECTED_FILE] if refused.value.rejected_rows else [])
        return refused.value

    def refused(
        self, sent: list[Any] | bytes | pa.Table, *fields: IdentityField, **others: Any
    ) -> tuple[RowError, ...]:
        return self.refusal(sent, *fields, **others).rows

    def reasons(self, sent: list[Any] | bytes | pa.Table, *fields: IdentityField, **others: Any) -> list[str]:
        return [f"{error.row}: {error.message}" for error in self.refused(sent, *fields, **others)]

    def rejected(self, after_row: int = 0, count: int = 1_000) -> list[RejectedRow]:
        """The rows that the last upload had rejected."""
        return list(islice(read_rejected(self.folder / "files" / REJECTED_FILE, after_row), count))

    def tables(self, result: IngestResult) -> list[pa.Table]:
        return [pq.read_table(self.folder / "files" / file.name) for file in result.files]

    def rows(self, result: IngestResult) -> list[dict[str, Any]]:
        """All rows in the order of the upload, nulls left out."""
        found = [
            {name: value for name, value in row.items() if value is not None}
            for table in self.tables(result)
            for row in table.to_pylist(maps_as_pydicts="strict")
        ]
        return sorted(found, key=lambda row: row["_row"])

    def values(self, result: IngestResult) -> list[dict[str, Any]]:
        """As `rows`, without system columns."""
        return [
            {name: value for name, value in row.items() if name not in SYSTEM_COLUMNS}
            for row in self.rows(result)
        ]
