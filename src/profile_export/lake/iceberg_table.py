"""One Iceberg table: its types, how it is changed in one step, what it names, where it stands."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Sequence
from glob import escape
from hashlib import sha256
from json import dumps
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.expressions import In
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.update.snapshot import ExpireSnapshots

from profile_export.domain.catalog.batches import BATCH_ID, TableState
from profile_export.domain.schemas.types import (
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    to_json,
)
from profile_export.lake.data_files import arrow_type, open_data_file, stored_fields

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


def commit(
    table: Table, fields: ObjectType, gone: Sequence[DataFile], added: Sequence[str], *, anew: bool = False
) -> None:
    """Change a table's columns and files in one step; nothing to change is no step.

    Args:
        table: It is refreshed.
        fields: Its columns afterwards.
        gone: Files to take out, whole: their rows are not looked at.
        added: Locations of files that it does not hold, or that are `gone`.
        anew: Columns may change their types, and older snapshots go.
    """
    known = columns_of(table)
    transaction = table.transaction()
    if fields != known:
        _evolve(transaction, known, fields)
    if gone:
        with transaction.update_snapshot().overwrite() as taken_out:
            for file in gone:
                taken_out.delete_data_file(file)
    if added:
        transaction.add_files(list(added), check_duplicate_files=False)
    if anew and table.snapshots():
        ExpireSnapshots(transaction).by_ids([snapshot.snapshot_id for snapshot in table.snapshots()]).commit()
    transaction.commit_transaction()


def columns_of(table: Table) -> ObjectType:
    """Return the columns of a table."""
    return stored_fields(table.schema().as_arrow())


def files_of(table: Table, batch_ids: Collection[str]) -> list[DataFile]:
    """Return the files of these batches, those that the table holds."""
    # Not typed as it is called: mypy takes the signature from pydantic.
    of_them = In(BATCH_ID, batch_ids)  # type: ignore[call-arg, arg-type]  # as said
    return [task.file for task in table.scan(row_filter=of_them).plan_files()] if batch_ids else []


def named_by(table: Table) -> set[str]:
    """Return the locations of all that the table's kept snapshots and metadata name."""
    named = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    manifests: dict[str, ManifestFile] = {}
    for snapshot in table.snapshots():
        named.add(snapshot.manifest_list)
        manifests |= {manifest.manifest_path: manifest for manifest in snapshot.manifests(table.io)}
    for location, manifest in manifests.items():
        named.add(location)
        named |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io)}
    return named


def snapshot_id_of(table: Table) -> int | None:
    """Return the newest snapshot; None while there is none."""
    snapshot = table.current_snapshot()
    return None if snapshot is None else snapshot.snapshot_id


def state_of(table: Table) -> TableState:
    """Return where a table stands."""
    numbers = [snapshot.sequence_number or 0 for snapshot in table.snapshots()]
    return TableState(
        uuid=str(table.metadata.table_uuid),
        snapshot_id=snapshot_id_of(table),
        sequence_number=max(numbers, default=0),
        oldest_sequence_number=min(numbers, default=0),
        snapshots=len(numbers),
        metadata_location=table.metadata_location,
    )


def arrow_schema(fields: ObjectType) -> pa.Schema:
    """Return columns as Arrow has them, all of them optional."""
    return pa.schema(list(arrow_type(fields)))


def _evolve(transaction: Transaction, known: ObjectType, fields: ObjectType) -> None:
    replaced = [
        name
        for name, column in known.fields.items()
        if name not in fields.fields or not can_read(fields.fields[name], column)
    ]
    if replaced:
        with transaction.update_schema(allow_incompatible_changes=True) as change:
            for name in replaced:
                change.delete_column(name)
    with transaction.update_schema() as change:
        change.union_by_name(arrow_schema(fields))
    # Our files have no field ids: columns are found by name, under the names as they are now.
    names = transaction.table_metadata.schema().name_mapping.model_dump_json()
    transaction.set_properties({TableProperties.DEFAULT_NAME_MAPPING: names})
