"""The Iceberg mirror: one table per dataset over our own files, in a catalog of its own. It blocks.

The store is the truth and a table follows it. Every change is one compare-and-set: it is decided on the snapshot that
the caller looked at, and the catalog takes it only if the table still stands there. PyIceberg's own retry is off,
since it would repeat an old decision on a new snapshot. After a conflict or an unknown outcome, look and decide anew.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from glob import escape
from hashlib import sha256
from itertools import pairwise
from json import dumps
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationError,
)
from pyiceberg.expressions import In
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots

from profile_export.domain.catalog.batches import (
    ABOUT_FILE,
    BATCH_ID,
    FORMER_NAMESPACE,
    MirrorConflictError,
    MirroredBatch,
    MirroredDataset,
    MirrorError,
    TableState,
    TypesChangedError,
)
from profile_export.domain.schemas.types import (
    EMPTY,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
    to_json,
    union_objects,
)
from profile_export.lake.data_files import arrow_type, footer_of, open_data_file, stored_fields, sync

CATALOG = "profile_export"
_MOST_LEVELS = 100
"""Of a Parquet schema, which Arrow reads by default, and PyIceberg through it."""
MAX_SNAPSHOTS = 100
MAX_TAGS = 100
"""How many batches have a tag; the newest keep theirs."""
TAG_PREFIX = "batch-"
"""So that no batch's tag is called as the main branch is."""
# What a commit under way has written is not referenced yet; nothing younger than this is removed.
_COMMIT_SECONDS = 3600
_ABANDONED_SECONDS = 600
"""A process that copies writes all the time: a copy not written to for so long was left by a killed process."""
_WRITTEN = {".avro", ".json", ".parquet"}
_PROPERTIES = {
    TableProperties.COMMIT_NUM_RETRIES: "0",
    # Bounds of `_batch_id` tell whose a file is. Those of other columns tell little: files lie sorted by a hash.
    TableProperties.DEFAULT_WRITE_METRICS_MODE: "counts",
    f"{TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX}.{BATCH_ID}": "full",
    TableProperties.MANIFEST_MERGE_ENABLED: "true",
    TableProperties.MANIFEST_MIN_MERGE_COUNT: "20",
    TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "100",
    TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED: "true",
}


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    fields: ObjectType


class IcebergMirror:
    """The mirror's tables, each in its tenant's namespace of the catalog, under `iceberg` in the data directory.

    A snapshot that adds batches has a tag for each of them, which goes with it.

    The catalog is a file there too or, for several servers, in the PostgreSQL database that a URL names. A snapshot is
    kept until it has not been the newest one for `keep`, but never more than `MAX_SNAPSHOTS` of them. One of these goes
    to other processes as it is.
    """

    def __init__(self, data_dir: Path, keep: timedelta, database_url: str | None = None) -> None:
        self._lake = (data_dir / "lake").resolve()
        self._folder = (data_dir / "iceberg").resolve()
        self._keep = keep
        self._catalog_uri = (
            f"postgresql+psycopg://{database_url.partition('://')[2]}"
            if database_url
            else f"sqlite:///{self._folder / 'catalog.sqlite'}"
        )

    def look(self, dataset: MirroredDataset) -> TableState | None:
        """Return the state of the table; None if there is none, or its metadata are not where they should be."""
        with self._catalog(dataset) as catalog:
            table = self._load(catalog, dataset)
            return None if table is None else _state_of(table)

    def sync(
        self,
        dataset: MirroredDataset,
        base: TableState,
        add: Sequence[MirroredBatch],
        remove: Collection[str],
    ) -> TableState:
        """Add batches that the table does not hold and take others out, in one commit.

        Args:
            dataset: Whose table.
            base: The state that the decision was made on.
            add: Batches in the order in which they count.
            remove: Ids of batches to take out; those that the table does not hold are passed over.

        Raises:
            MirrorConflictError: The table has moved on from `base`.
            TypesChangedError: As it says.
            MirrorError: A file is not as the store says.
        """
        with self._catalog(dataset) as catalog:
            table = self._standing_at(catalog, dataset, base)
            found = self._read(add)
            known = _columns_of(table)
            try:
                fields = _union([known, *(file.fields for file in found)])
            except TypeConflictError as conflict:
                raise TypesChangedError from conflict
            if not _can_read(fields, known):
                raise TypesChangedError
            gone = _files_of(table, remove)
            change = _Change(fields, gone, self._placed(dataset, fields, found), add)
            _commit(table, dataset, change)
            if len(table.snapshots()) > MAX_SNAPSHOTS:
                self._clean(dataset, table)
            return _state_of(table)

    def rebuild(
        self, dataset: MirroredDataset, base: TableState | None, batches: Sequence[MirroredBatch]
    ) -> TableState | None:
        """Make the table hold exactly these batches, whatever it holds; it is made if there is none.

        Files that stay are left where they are, unless a column gets a type that Iceberg does not widen to: then all
        files are added anew in one commit, those that have it in an older type as copies in the mirror's folder, and
        older snapshots go, because their columns would be looked for under the new ones.

        Args:
            dataset: Whose table.
            base: The state that was looked at before `batches` were read; None if there was no table.
            batches: All that the table is to hold, in the order in which they count.

        Returns:
            None if there is no table and no file to make one for.

        Raises:
            MirrorConflictError: The table has moved on from `base`.
            MirrorError: A file is not as the store says, or two batches have types that do not go together.
        """
        with self._catalog(dataset) as catalog:
            found = self._read(batches)
            try:
                fields = _union(file.fields for file in found)
            except TypeConflictError as conflict:
                message = f"Its batches do not fit into one table. {conflict.message}"
                raise MirrorError(message) from conflict
            if base is not None:
                table = self._standing_at(catalog, dataset, base)
            elif found:
                table = self._create(catalog, dataset, fields)
            else:
                return None
            known = _columns_of(table)
            with suppress(TypeConflictError):  # with batches that have gone since: they bind nobody
                fields = union_objects(known, fields)
            held = [task.file for task in table.scan().plan_files()]
            wanted = self._placed(dataset, fields, found)
            if _can_read(fields, known):
                times = Counter(file.file_path for file in held)
                right = {path for path in wanted if times[path] == 1}
                gone = [file for file in held if file.file_path not in right]
                missing = [path for path in wanted if path not in right]
                # A file that is copied is found by the end of its place, as one that lies where it was written.
                lacking = [batch for batch in batches if any(path.endswith(batch.files) for path in missing)]
                _commit(table, dataset, _Change(fields, gone, missing, lacking))
            else:
                _commit(table, dataset, _Change(fields, held, wanted, batches, anew=True))
            return _state_of(table)

    def clean(self, dataset: MirroredDataset) -> TableState | None:
        """Expire snapshots, and remove what nothing names any more; None if there is no table.

        Raises:
            MirrorConflictError: The table has moved on meanwhile.
        """
        with self._catalog(dataset) as catalog:
            table = self._load(catalog, dataset)
            if table is None:
                return None
            self._clean(dataset, table)
            return _state_of(table)

    def drop(self, dataset: MirroredDataset) -> None:
        """Drop the table with its folder, whether or not there is one; the lake's files stay."""
        with self._catalog(dataset) as catalog:
            for name in (_identifier(dataset), _former_identifier(dataset)):
                with suppress(NoSuchTableError):
                    catalog.drop_table(name)
        shutil.rmtree(self._folder / dataset.id, ignore_errors=True)

    @contextmanager
    def _catalog(self, dataset: MirroredDataset) -> Iterator[SqlCatalog]:
        # PyIceberg reads locations as URIs and cuts them there.
        if set("?#") & set(str(self._folder)):
            message = f"{self._folder} cannot hold Iceberg tables: there is a '?' or '#' in its path."
            raise MirrorError(message)
        self._folder.mkdir(parents=True, exist_ok=True)
        catalog = SqlCatalog(CATALOG, uri=self._catalog_uri)
        try:
            tenant = {"org": dataset.org, "sandbox": dataset.sandbox}
            catalog.create_namespace_if_not_exists(dataset.namespace, tenant)
            yield catalog
        except (CommitFailedException, NoSuchTableError, TableAlreadyExistsError) as error:
            raise MirrorConflictError from error
        finally:
            catalog.close()

    def _load(self, catalog: SqlCatalog, dataset: MirroredDataset) -> Table | None:
        try:
            try:
                return catalog.load_table(_identifier(dataset))
            except NoSuchTableError:
                return catalog.rename_table(_former_identifier(dataset), _identifier(dataset))
        except (NoSuchTableError, FileNotFoundError, ValidationError):
            # Dropped; or its folder was deleted, moved with the data directory, or torn by a power cut.
            return None

    def _standing_at(self, catalog: SqlCatalog, dataset: MirroredDataset, base: TableState) -> Table:
        table = self._load(catalog, dataset)
        if table is None:
            raise MirrorConflictError
        found = _state_of(table)
        if (found.uuid, found.snapshot_id) != (base.uuid, base.snapshot_id):
            raise MirrorConflictError
        return table

    def _create(self, catalog: SqlCatalog, dataset: MirroredDataset, fields: ObjectType) -> Table:
        if self._load(catalog, dataset) is not None:
            raise MirrorConflictError
        with suppress(NoSuchTableError):
            catalog.drop_table(_identifier(dataset))  # its metadata are gone
        return catalog.create_table(
            _identifier(dataset),
            _arrow_schema(fields),
            f"file://{self._folder / dataset.id}",
            properties=_PROPERTIES | _whose(dataset, ()),
        )

    def _read(self, batches: Sequence[MirroredBatch]) -> list[_File]:
        """Read the footers of all files that hold rows."""
        found: list[_File] = []
        for batch in batches:
            for path in batch.files:
                footer = footer_of(self._lake / path)
                if footer.num_rows:
                    _check_batch(footer, path, batch.batch_id)
                    fields = stored_fields(footer.schema.to_arrow_schema())
                    _check_levels(fields, batch.batch_id)
                    found.append(_File(path, fields))
        return found

    def _placed(self, dataset: MirroredDataset, fields: ObjectType, found: Sequence[_File]) -> list[str]:
        """Return the locations of files as the table can read them: in place, or as copies that are made now."""
        locations: list[str] = []
        for file in found:
            place = self._lake / file.path
            if not _can_read(fields, file.fields):
                cast = _cast_fields(fields, file.fields)
                source, place = place, self._folder / dataset.id / "data" / _digest(cast) / file.path
                _copy_cast(source, cast, place)
            locations.append(f"file://{place}")
        return locations

    def _clean(self, dataset: MirroredDataset, table: Table) -> None:
        kept = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number or 0)
        until = (time.time() - self._keep.total_seconds()) * 1000
        too_many = len(kept) - MAX_SNAPSHOTS // 2 if len(kept) > MAX_SNAPSHOTS else 0
        expired = [
            snapshot.snapshot_id
            for number, (snapshot, successor) in enumerate(pairwise(kept))
            if successor.timestamp_ms <= until or number < too_many
        ]
        if expired:
            transaction = table.transaction()
            _expire(transaction, expired)
            transaction.commit_transaction()
        named = _named_by(table)
        before = time.time() - max(_COMMIT_SECONDS, self._keep.total_seconds())
        # Only what a commit writes: whatever else is there was put there by somebody.
        for place in (self._folder / dataset.id).rglob("*"):
            if (
                place.suffix in _WRITTEN
                and place.is_file()
                and f"file://{place}" not in named
                and place.stat().st_mtime < before
            ):
                place.unlink()


def _check_levels(fields: ObjectType, batch_id: str) -> None:
    if _levels(fields) > _MOST_LEVELS:
        message = (
            f"The batch '{batch_id}' has fields within each other on more levels than readers of Iceberg tables take: "
            "export without them, for such a table."
        )
        raise MirrorError(message)


def _levels(kind: FieldType) -> int:
    """Count the levels of a Parquet schema; an array or a map has two."""
    match kind:
        case ObjectType(fields):
            return 1 + max(map(_levels, fields.values()), default=0)
        case ArrayType(inner) | MapType(inner):
            return 2 + _levels(inner)
    return 1


def _check_batch(footer: pq.FileMetaData, path: str, batch_id: str) -> None:
    """Refuse a file whose statistics do not say that all its rows are the batch's: no filter by batch would find it.

    Raises:
        MirrorError: As said.
    """
    [column] = [at for at in range(footer.num_columns) if footer.schema.column(at).path == BATCH_ID]
    for group in range(footer.num_row_groups):
        told = footer.row_group(group).column(column).statistics
        if told is None or not told.has_min_max or {told.min, told.max} != {batch_id} or told.null_count:
            message = f"The file '{path}' does not say that its rows are of the batch '{batch_id}'."
            raise MirrorError(message)


def _union(types: Iterable[ObjectType]) -> ObjectType:
    return reduce(union_objects, types, EMPTY)


# --- Types of a table and of its files ---


def _can_read(table: FieldType, file: FieldType) -> bool:
    """Whether Iceberg lets a table of one type read a file of the other: fields may lack, decimals have fewer digits.

    All other widening of ours (long to double, long to decimal, decimal to double, more digits after the point) is
    none of Iceberg's.
    """
    match table, file:
        case ObjectType(known), ObjectType(stored):
            return all(name in known and _can_read(known[name], member) for name, member in stored.items())
        case (ArrayType(known_item), ArrayType(stored_item)) | (MapType(known_item), MapType(stored_item)):
            return _can_read(known_item, stored_item)
        case DecimalType(), DecimalType():
            return table.scale == file.scale and table.precision >= file.precision
    return table == file


def _cast_fields(table: ObjectType, file: ObjectType) -> ObjectType:
    """Return the file's own fields, no more, with the types that the table has for them."""
    return ObjectType({name: _cast(table.fields[name], member) for name, member in file.fields.items()})


def _cast(table: FieldType, file: FieldType) -> FieldType:
    match table, file:
        case ObjectType(), ObjectType():
            return _cast_fields(table, file)
        case ArrayType(known_item), ArrayType(stored_item):
            return ArrayType(_cast(known_item, stored_item))
        case MapType(known_item), MapType(stored_item):
            return MapType(_cast(known_item, stored_item))
    return table


def _digest(fields: FieldType) -> str:
    """Return a short name for a type: 16 hex characters, the same for the same type in any process."""
    return sha256(dumps(to_json(fields)).encode()).hexdigest()[:16]


def _exactly(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with other types; MirrorError where a value would lose digits (S27)."""
    try:
        return rows.cast(schema)
    except pa.ArrowInvalid as loss:
        message = f"Its batches do not fit into one table: a number of one would lose digits beside another ({loss})."
        raise MirrorError(message) from None


def _copy_cast(source: Path, fields: ObjectType, target: Path) -> None:
    """Write a data file again with other types, unless that was done before; it appears whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{escape(target.name)}.*"):
        if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
            left.unlink()
    part = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
    schema = _arrow_schema(fields)
    with open_data_file(source) as reader, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        # A row group fits into the memory, which so many rows of several need not.
        for group in range(reader.num_row_groups):
            writer.write_table(_exactly(reader.read_row_group(group), schema))
    sync(part)
    part.replace(target)


# --- Commits ---


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a table in one commit.

    `fields` are its columns afterwards. `gone` are files to take out, whole: their rows are not looked at. `added` are
    the locations of files that it does not hold, or that are `gone`, and `batches` those that they are of. With `anew`
    columns may change their types, and older snapshots go.
    """

    fields: ObjectType
    gone: Sequence[DataFile]
    added: Sequence[str]
    batches: Sequence[MirroredBatch]
    anew: bool = False


def _commit(table: Table, dataset: MirroredDataset, change: _Change) -> None:
    """Change a table, which is refreshed, in one commit; make none where nothing changes."""
    known = _columns_of(table)
    transaction = table.transaction()
    if change.fields != known:
        _evolve(transaction, known, change.fields)
    if change.gone:
        with transaction.update_snapshot().overwrite() as taken_out:
            for file in change.gone:
                taken_out.delete_data_file(file)
    if change.added:
        transaction.add_files(list(change.added), check_duplicate_files=False)
    if change.anew:
        _expire(transaction, [snapshot.snapshot_id for snapshot in table.snapshots()])
    if change.gone or change.added:
        _tag(transaction, change.batches)
        transaction.set_properties(_whose(dataset, change.batches))
    transaction.commit_transaction()


def _expire(transaction: Transaction, snapshot_ids: Sequence[int]) -> None:
    """Let snapshots go, none of them the newest, with all that is called by them."""
    if not snapshot_ids:
        return
    going = set(snapshot_ids)
    named = [name for name, ref in transaction.table_metadata.refs.items() if ref.snapshot_id in going]
    with ManageSnapshots(transaction) as names:
        for name in named:
            names.remove_tag(name)
    ExpireSnapshots(transaction).by_ids(list(snapshot_ids)).commit()


def _tag(transaction: Transaction, batches: Sequence[MirroredBatch]) -> None:
    """Call the newest snapshot by the batches that it has added; the oldest tags go where they are too many."""
    metadata = transaction.table_metadata
    snapshot_id = metadata.current_snapshot_id
    if snapshot_id is None:
        return
    wanted = [f"{TAG_PREFIX}{batch.batch_id}" for batch in batches][-MAX_TAGS:]
    numbers = {one.snapshot_id: one.sequence_number or 0 for one in metadata.snapshots}
    held = [name for name in metadata.refs if name != MAIN_BRANCH and name not in wanted]
    held.sort(key=lambda name: numbers[metadata.refs[name].snapshot_id])
    with ManageSnapshots(transaction) as names:
        for name in held[: max(0, len(held) + len(wanted) - MAX_TAGS)]:
            names.remove_tag(name)
        for name in wanted:
            names.create_tag(snapshot_id, name)


def _whose(dataset: MirroredDataset, batches: Sequence[MirroredBatch]) -> dict[str, str]:
    """Return the properties that say whose table it is, and which of these batches, and of which job, is its newest."""
    told = {
        "dataset-id": dataset.id,
        "dataset-name": dataset.name,
        "org": dataset.org,
        "sandbox": dataset.sandbox,
    }
    if batches:
        newest = batches[-1]
        job = "" if newest.job_id is None else str(newest.job_id)
        told |= {"last-batch-id": newest.batch_id, "last-job-id": job}
    return {f"{ABOUT_FILE}{name}": value for name, value in told.items()}


def _identifier(dataset: MirroredDataset) -> tuple[str, str]:
    return dataset.namespace, dataset.table


def _former_identifier(dataset: MirroredDataset) -> tuple[str, str]:
    return FORMER_NAMESPACE, dataset.table


def _columns_of(table: Table) -> ObjectType:
    """Return the columns of a table."""
    return stored_fields(table.schema().as_arrow())


def _files_of(table: Table, batch_ids: Collection[str]) -> list[DataFile]:
    """Return the files of these batches, those that the table holds."""
    # Not typed as it is called: mypy takes the signature from pydantic.
    of_them = In(BATCH_ID, batch_ids)  # type: ignore[call-arg, arg-type]  # as said
    return [task.file for task in table.scan(row_filter=of_them).plan_files()] if batch_ids else []


def _named_by(table: Table) -> set[str]:
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


def _state_of(table: Table) -> TableState:
    """Return the state of a table, on which the next commit is decided."""
    newest = table.current_snapshot()
    numbers = [snapshot.sequence_number or 0 for snapshot in table.snapshots()]
    return TableState(
        uuid=str(table.metadata.table_uuid),
        snapshot_id=None if newest is None else newest.snapshot_id,
        sequence_number=max(numbers, default=0),
        oldest_sequence_number=min(numbers, default=0),
        snapshots=len(numbers),
        metadata_location=table.metadata_location,
    )


def _arrow_schema(fields: ObjectType) -> pa.Schema:
    """Return columns as Arrow has them, all of them optional."""
    return pa.schema(list(arrow_type(fields)))


def _evolve(transaction: Transaction, known: ObjectType, fields: ObjectType) -> None:
    replaced = [
        name
        for name, column in known.fields.items()
        if name not in fields.fields or not _can_read(fields.fields[name], column)
    ]
    if replaced:
        with transaction.update_schema(allow_incompatible_changes=True) as change:
            for name in replaced:
                change.delete_column(name)
    with transaction.update_schema() as change:
        change.union_by_name(_arrow_schema(fields))
    # Our files have no field ids: columns are found by name, under the names as they are now.
    names = transaction.table_metadata.schema().name_mapping.model_dump_json()
    transaction.set_properties({TableProperties.DEFAULT_NAME_MAPPING: names})
