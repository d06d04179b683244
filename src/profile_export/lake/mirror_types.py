"""Types of a mirrored table: which changes a table takes as it is, and copies of files for those it does not."""

from __future__ import annotations

import os
import secrets
import time
from glob import escape
from hashlib import sha256
from json import dumps
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.schema import ArrayType, DecimalType, FieldType, MapType, ObjectType
from profile_export.domain.type_json import to_json
from profile_export.lake.arrow_types import arrow_type
from profile_export.lake.data_file import open_data_file

_ABANDONED_SECONDS = 600
"""Who copies writes all the time: what nobody has written to for so long is of one that was killed."""


def can_read(table: FieldType, file: FieldType) -> bool:
    """Whether Iceberg lets a table of one type read a file of the other: fields may lack, decimals have fewer digits.

    All other widening of ours (long to double, long to decimal, decimal to double, more digits after the point) is
    none of Iceberg's.
    """
    match table, file:
        case ObjectType(known), ObjectType(stored):
            return all(name in known and can_read(known[name], member) for name, member in stored.items())
        case (ArrayType(known_item), ArrayType(stored_item)) | (MapType(known_item), MapType(stored_item)):
            return can_read(known_item, stored_item)
        case DecimalType(), DecimalType():
            return table.scale == file.scale and table.precision >= file.precision
    return table == file


def cast_fields(table: ObjectType, file: ObjectType) -> ObjectType:
    """Return the file's own fields, no more, with the types that the table has for them."""
    return ObjectType({name: _cast(table.fields[name], member) for name, member in file.fields.items()})


def _cast(table: FieldType, file: FieldType) -> FieldType:
    match table, file:
        case ObjectType(), ObjectType():
            return cast_fields(table, file)
        case ArrayType(known_item), ArrayType(stored_item):
            return ArrayType(_cast(known_item, stored_item))
        case MapType(known_item), MapType(stored_item):
            return MapType(_cast(known_item, stored_item))
    return table


def digest(fields: FieldType) -> str:
    """Return a short name for a type: 16 hex characters, the same for the same type in any process."""
    return sha256(dumps(to_json(fields)).encode()).hexdigest()[:16]


def copy_cast(source: Path, fields: ObjectType, target: Path) -> None:
    """Write a data file again with other types, unless that was done before; it appears whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{escape(target.name)}.*"):
        if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
            left.unlink()
    part = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
    schema = pa.schema(list(arrow_type(fields)))
    with open_data_file(source) as reader, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        # A row group fits into the memory, which so many rows of several need not.
        for group in range(reader.num_row_groups):
            # Not `safe`: a long that a double cannot hold exactly is rounded, as the engines do.
            writer.write_table(reader.read_row_group(group).cast(schema, safe=False))
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(target)
