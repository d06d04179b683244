"""One Iceberg table: how it is changed in one step, what it names, and where it stands."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
from pyiceberg.expressions import In
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.update.snapshot import ExpireSnapshots

from profile_export.domain.columns import BATCH_ID
from profile_export.domain.mirror import TableState
from profile_export.domain.schema import ObjectType
from profile_export.lake.arrow_types import arrow_type, stored_fields
from profile_export.lake.mirror_types import can_read


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
