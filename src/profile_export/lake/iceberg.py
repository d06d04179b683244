"""The Iceberg mirror: one table per dataset over our own files, in a catalog of its own. It blocks.

The store is the truth and a table follows it. Every change is one compare-and-set: it is decided on the snapshot that
the caller looked at, and the catalog takes it only if the table still stands there. PyIceberg's own retry is off,
since it would repeat an old decision on a new snapshot. After a conflict or an unknown outcome, look and decide anew.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationError,
)
from pyiceberg.table import Table, TableProperties

from profile_export.domain.catalog.batches import (
    BATCH_ID,
    MIRROR_NAMESPACE,
    MirrorConflictError,
    MirroredBatch,
    MirrorError,
    TableState,
    TypesChangedError,
    mirror_table,
)
from profile_export.domain.schemas.types import EMPTY, ObjectType, TypeConflictError, union_objects
from profile_export.lake.data_files import footer_of, stored_fields
from profile_export.lake.iceberg_table import (
    arrow_schema,
    can_read,
    cast_fields,
    columns_of,
    commit,
    copy_cast,
    digest,
    files_of,
    named_by,
    snapshot_id_of,
    state_of,
)

CATALOG = "profile_export"
MAX_SNAPSHOTS = 100
# What a commit under way has written is not referenced yet; nothing younger than this is removed.
_COMMIT_SECONDS = 3600
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
    """The mirror's tables, named `profile_export.d_<dataset id>`, under `iceberg` in the data directory.

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

    def look(self, dataset_id: str) -> TableState | None:
        """Return where the table stands; None if there is none, or its metadata are not where they should be."""
        with self._catalog() as catalog:
            table = self._load(catalog, dataset_id)
            return None if table is None else state_of(table)

    def sync(
        self, dataset_id: str, base: TableState, add: Sequence[MirroredBatch], remove: Collection[str]
    ) -> TableState:
        """Add batches that the table does not hold and take others out, in one commit.

        Args:
            dataset_id: Whose table.
            base: The state that the decision was made on.
            add: Batches in the order in which they count.
            remove: Ids of batches to take out; those that the table does not hold are passed over.

        Raises:
            MirrorConflictError: The table has moved on from `base`.
            TypesChangedError: As it says.
            MirrorError: A file is not as the store says.
        """
        with self._catalog() as catalog:
            table = self._standing_at(catalog, dataset_id, base)
            found = self._read(add)
            known = columns_of(table)
            try:
                fields = _union([known, *(file.fields for file in found)])
            except TypeConflictError as conflict:
                raise TypesChangedError from conflict
            if not can_read(fields, known):
                raise TypesChangedError
            gone = files_of(table, remove)
            commit(table, fields, gone, self._placed(dataset_id, fields, found))
            if len(table.snapshots()) > MAX_SNAPSHOTS:
                self._clean(dataset_id, table)
            return state_of(table)

    def rebuild(
        self, dataset_id: str, base: TableState | None, batches: Sequence[MirroredBatch]
    ) -> TableState | None:
        """Make the table hold exactly these batches, whatever it holds; it is made if there is none.

        Files that stay are left where they are, unless a column gets a type that Iceberg does not widen to: then all
        files are added anew in one commit, those that have it in an older type as copies in the mirror's folder, and
        older snapshots go, because their columns would be looked for under the new ones.

        Args:
            dataset_id: Whose table.
            base: The state that was looked at before `batches` were read; None if there was no table.
            batches: All that the table is to hold, in the order in which they count.

        Returns:
            None if there is no table and no file to make one for.

        Raises:
            MirrorConflictError: The table has moved on from `base`.
            MirrorError: A file is not as the store says, or two batches have types that do not go together.
        """
        with self._catalog() as catalog:
            found = self._read(batches)
            try:
                fields = _union(file.fields for file in found)
            except TypeConflictError as conflict:
                message = f"Its batches do not fit into one table. {conflict.message}"
                raise MirrorError(message) from conflict
            if base is not None:
                table = self._standing_at(catalog, dataset_id, base)
            elif found:
                table = self._create(catalog, dataset_id, fields)
            else:
                return None
            known = columns_of(table)
            with suppress(TypeConflictError):  # with batches that have gone since: they bind nobody
                fields = union_objects(known, fields)
            held = [task.file for task in table.scan().plan_files()]
            wanted = self._placed(dataset_id, fields, found)
            if can_read(fields, known):
                times = Counter(file.file_path for file in held)
                right = {path for path in wanted if times[path] == 1}
                gone = [file for file in held if file.file_path not in right]
                commit(table, fields, gone, [path for path in wanted if path not in right])
            else:
                commit(table, fields, held, wanted, anew=True)
            return state_of(table)

    def clean(self, dataset_id: str) -> TableState | None:
        """Expire snapshots, and remove what nothing names any more; None if there is no table.

        Raises:
            MirrorConflictError: The table has moved on meanwhile.
        """
        with self._catalog() as catalog:
            table = self._load(catalog, dataset_id)
            if table is None:
                return None
            self._clean(dataset_id, table)
            return state_of(table)

    def drop(self, dataset_id: str) -> None:
        """Drop the table with its folder, whether or not there is one; the lake's files stay."""
        with self._catalog() as catalog, suppress(NoSuchTableError):
            catalog.drop_table(mirror_table(dataset_id))
        shutil.rmtree(self._folder / dataset_id, ignore_errors=True)

    @contextmanager
    def _catalog(self) -> Iterator[SqlCatalog]:
        # PyIceberg reads locations as URIs and cuts them there.
        if set("?#") & set(str(self._folder)):
            message = f"{self._folder} cannot hold Iceberg tables: there is a '?' or '#' in its path."
            raise MirrorError(message)
        self._folder.mkdir(parents=True, exist_ok=True)
        catalog = SqlCatalog(CATALOG, uri=self._catalog_uri)
        try:
            catalog.create_namespace_if_not_exists(MIRROR_NAMESPACE)
            with _decided():
                yield catalog
        finally:
            catalog.close()

    def _load(self, catalog: SqlCatalog, dataset_id: str) -> Table | None:
        try:
            return catalog.load_table(mirror_table(dataset_id))
        except (NoSuchTableError, FileNotFoundError, ValidationError):
            # Dropped; or its folder was deleted, moved with the data directory, or torn by a power cut.
            return None

    def _standing_at(self, catalog: SqlCatalog, dataset_id: str, base: TableState) -> Table:
        table = self._load(catalog, dataset_id)
        if table is None or (str(table.metadata.table_uuid), snapshot_id_of(table)) != (
            base.uuid,
            base.snapshot_id,
        ):
            raise MirrorConflictError
        return table

    def _create(self, catalog: SqlCatalog, dataset_id: str, fields: ObjectType) -> Table:
        if self._load(catalog, dataset_id) is not None:
            raise MirrorConflictError
        with suppress(NoSuchTableError):
            catalog.drop_table(mirror_table(dataset_id))  # its metadata are gone
        return catalog.create_table(
            mirror_table(dataset_id),
            arrow_schema(fields),
            f"file://{self._folder / dataset_id}",
            properties=_PROPERTIES,
        )

    def _read(self, batches: Sequence[MirroredBatch]) -> list[_File]:
        """Read the footers of all files that hold rows."""
        found: list[_File] = []
        for batch in batches:
            for path in batch.files:
                footer = footer_of(self._lake / path)
                if footer.num_rows:
                    _check_batch(footer, path, batch.batch_id)
                    found.append(_File(path, stored_fields(footer.schema.to_arrow_schema())))
        return found

    def _placed(self, dataset_id: str, fields: ObjectType, found: Sequence[_File]) -> list[str]:
        """Return the locations of files as the table can read them: in place, or as copies that are made now."""
        locations: list[str] = []
        for file in found:
            place = self._lake / file.path
            if not can_read(fields, file.fields):
                cast = cast_fields(fields, file.fields)
                source, place = place, self._folder / dataset_id / "data" / digest(cast) / file.path
                copy_cast(source, cast, place)
            locations.append(f"file://{place}")
        return locations

    def _clean(self, dataset_id: str, table: Table) -> None:
        kept = sorted(table.snapshots(), key=lambda snapshot: snapshot.sequence_number or 0)
        until = (time.time() - self._keep.total_seconds()) * 1000
        too_many = len(kept) - MAX_SNAPSHOTS // 2 if len(kept) > MAX_SNAPSHOTS else 0
        expired = [
            snapshot.snapshot_id
            for number, (snapshot, successor) in enumerate(pairwise(kept))
            if successor.timestamp_ms <= until or number < too_many
        ]
        if expired:
            table.maintenance.expire_snapshots().by_ids(expired).commit()
        named = named_by(table)
        before = time.time() - max(_COMMIT_SECONDS, self._keep.total_seconds())
        # Only what a commit writes: whatever else is there was put there by somebody.
        for place in (self._folder / dataset_id).rglob("*"):
            if (
                place.suffix in _WRITTEN
                and place.is_file()
                and f"file://{place}" not in named
                and place.stat().st_mtime < before
            ):
                place.unlink()


@contextmanager
def _decided() -> Iterator[None]:
    try:
        yield
    except (CommitFailedException, NoSuchTableError, TableAlreadyExistsError) as error:
        raise MirrorConflictError from error


def _check_batch(footer: pq.FileMetaData, path: str, batch_id: str) -> None:
    """Refuse a file that does not say, in its statistics, that all its rows are the batch's: nothing would find it.

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
