"""Data files: their Arrow schema; written sorted by identity key, with their digest; opened; checked by a receipt."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.catalog import batches as columns
from profile_export.domain.export.plan import WrittenFile
from profile_export.domain.export.receipt import FORM, FoundFile, ReceiptFile, Verification, differences
from profile_export.domain.schemas.types import (
    TEXT,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
)

INSTANT = pa.timestamp("us", "UTC")
_SCALARS = {
    ScalarKind.TEXT: pa.string(),
    ScalarKind.BOOLEAN: pa.bool_(),
    ScalarKind.LONG: pa.int64(),
    ScalarKind.DOUBLE: pa.float64(),
    ScalarKind.DATE: pa.date32(),
    ScalarKind.TIMESTAMP: INSTANT,
}
LINK = pa.struct(
    [
        ("namespace", pa.string()),
        ("id", pa.string()),
        ("authenticated_state", pa.string()),
        ("key_high", pa.int64()),
        ("key_low", pa.int64()),
    ]
)
SYSTEM_FIELDS = (
    pa.field(columns.BATCH_ID, pa.string()),
    pa.field(columns.ROW, pa.int64()),
    pa.field(columns.NAMESPACE, pa.string()),
    pa.field(columns.IDENTITY, pa.string()),
    pa.field(columns.AUTHENTICATED_STATE, pa.string()),
    pa.field(columns.KEY_HIGH, pa.int64()),
    pa.field(columns.KEY_LOW, pa.int64()),
    pa.field(columns.LINKS, pa.list_(LINK)),
)


def arrow_type(field_type: FieldType) -> pa.DataType:
    """Return the Arrow type that a field is stored as; everything in it may be null."""
    match field_type:
        case ObjectType(fields):
            return pa.struct([(name, arrow_type(member)) for name, member in fields.items()])
        case ArrayType(item):
            return pa.list_(arrow_type(item))
        case MapType(value):
            return pa.map_(pa.string(), arrow_type(value))
        case DecimalType(precision, scale):
            return pa.decimal128(precision, scale)
        case Scalar(kind):
            return _SCALARS[kind]


def file_schema(fields: ObjectType) -> pa.Schema:
    """Return the schema of a data file: the system columns, then the fields."""
    return pa.schema([*SYSTEM_FIELDS, *arrow_type(fields)])


def stored_fields(found: pa.Schema | pa.StructType) -> ObjectType:
    """Return the columns of a data file of ours, system columns included: the way back from `arrow_type`.

    Raises:
        ValueError: It holds a type that no field is stored as.
    """
    return ObjectType({member.name: _stored_type(member.type) for member in found})


def _stored_type(found: pa.DataType) -> FieldType:
    if pa.types.is_struct(found):
        return stored_fields(found)
    if pa.types.is_map(found):
        return MapType(_stored_type(found.item_type))
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return ArrayType(_stored_type(found.value_type))
    if pa.types.is_decimal(found):
        return DecimalType(found.precision, found.scale)
    if pa.types.is_large_string(found):
        return TEXT
    for kind, stored in _SCALARS.items():
        if found == stored:
            return Scalar(kind)
    message = f"no field is stored as {found}"
    raise ValueError(message)


ROWS_PER_GROUP = 65_536
BYTES_PER_GROUP = 32 * 2**20
"""As Arrow holds them. A reader holds the whole column of a row group at once, in each of its threads."""
_ROWS_READ_AT_ONCE = 2_048
_BYTES_READ_AT_ONCE = 8 * 2**20
"""An engine reads so many rows of a row group at once, and holds them several times: long rows get smaller groups."""
_MOST_SCHEMA_LEVELS = 1_000
"""Arrow reads a hundred unless it is told otherwise. An array takes three of them, and rows may be nested 64 deep."""
_SORTED_BY = [(name, "ascending") for name in (columns.KEY_HIGH, columns.KEY_LOW, columns.ROW)]


def write_data_file(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> WrittenFile:
    """Write rows, each table sorted by itself, so none may hold a key that belongs before those of an earlier one.

    The file's bytes survive a crash of the machine when this returns; its name does after `sync` of its folder.

    Raises:
        OSError: The disk failed; the file may stand there in part.
    """
    rows = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        write_statistics=True,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        for table in tables:
            writer.write_table(table.sort_by(_SORTED_BY), row_group_size=_rows_per_group(table))
            rows += table.num_rows
    sync(path)
    with path.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return WrittenFile(path.name, rows, path.stat().st_size, sha256)


def open_data_file(path: Path) -> pq.ParquetFile:
    """Open a data file, which is closed as a context is left.

    Raises:
        OSError: The disk failed, or the file is gone.
        ArrowInvalid: It is damaged.
    """
    return pq.ParquetFile(path, schema_depth_limit=_MOST_SCHEMA_LEVELS, page_checksum_verification=True)


def footer_of(path: Path) -> pq.FileMetaData:
    """Return the footer of a data file.

    Raises:
        OSError: As `open_data_file`.
        ArrowInvalid: As `open_data_file`.
    """
    with open_data_file(path) as file:
        return file.metadata


def _rows_per_group(table: pa.Table) -> int:
    """Return how many rows make a row group, all groups alike."""
    rows, size = int(table.num_rows), int(table.nbytes)
    is_long = size / max(rows, 1) * _ROWS_READ_AT_ONCE > _BYTES_READ_AT_ONCE
    most = _BYTES_READ_AT_ONCE if is_long else BYTES_PER_GROUP
    groups = max(math.ceil(rows / ROWS_PER_GROUP), math.ceil(size / most), 1)
    return max(1, math.ceil(rows / groups))


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Receipts ---


def verify(receipt: Path) -> Verification:
    """Check every file that a receipt lists, and that no other Parquet file lies beside it. Blocks.

    A file may lie at its path, as in the lake, or under its name, as after a download.

    Raises:
        OSError: The receipt, or a file, cannot be read.
    """
    try:
        document = json.loads(receipt.read_bytes())
        batch_id, form = str(document["batch_id"]), document["form"]
        listed = [
            ReceiptFile(one["path"], one["name"], one["rows"], one["bytes"], one["sha256"])
            for one in document["files"]
        ]
    except (ValueError, KeyError, TypeError):
        return Verification("", 0, 0, 0, (f"{receipt.name}: is no receipt.",))
    if form != FORM:
        finding = f"{receipt.name}: is a receipt of form {form}; this version knows form {FORM}."
        return Verification(batch_id, 0, 0, 0, (finding,))
    findings: list[str] = []
    checked: dict[Path, FoundFile] = {}
    for file in listed:
        place = _place(receipt.parent, file)
        if place:
            checked[place] = _found(place)
        findings += differences(file, checked[place] if place else None)
    others = sorted(path for path in receipt.parent.rglob("*.parquet") if path not in checked)
    findings += [f"{path.relative_to(receipt.parent)}: is not in the receipt." for path in others]
    return Verification(
        batch_id,
        files=len(checked),
        rows=sum(found.rows or 0 for found in checked.values()),
        bytes=sum(found.bytes for found in checked.values()),
        findings=tuple(findings),
    )


def _place(folder: Path, file: ReceiptFile) -> Path | None:
    return next((place for name in (file.path, file.name) if (place := folder / name).is_file()), None)


def _found(path: Path) -> FoundFile:
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    try:
        rows = footer_of(path).num_rows
    except (pa.ArrowException, OSError):
        rows = None
    return FoundFile(path.stat().st_size, sha256, rows)
