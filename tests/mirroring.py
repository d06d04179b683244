"""A store and a lake with mirrored datasets, without a server: batches come and go, and mirrors follow when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import StaticTable
from sqlalchemy import update

from profile_export.domain.catalog.batches import (
    DataFile,
    IngestedFile,
    MirroredDataset,
    MirrorStatus,
    NamespaceUse,
    UploadStart,
)
from profile_export.domain.catalog.datasets import DatasetChange, NewDataset, SchemaRef, Tenant
from profile_export.domain.schemas.types import EMPTY
from profile_export.lake.iceberg import IcebergMirror
from profile_export.lake.local import LocalLake
from profile_export.runner.mirror import Mirror
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database, database_time
from profile_export.store.db.tables import batches
from profile_export.store.files.batches import Batches
from profile_export.store.files.folders import DroppedFolders, Named
from profile_export.store.files.mirrors import LEASE_TTL, Mirrors
from profile_export.store.files.uploads import Uploads
from profile_export.store.jobs.expiries import Expiries
from tests.databases import Place

TENANT = Tenant()
RECORD = SchemaRef("https://ns.adobe.com/xdm/context/profile")
HOUR = timedelta(hours=1)
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Threads:
    """Where a mirror works that a test starts quickly."""

    async def run(self, work: Callable[[_Task], _Result], task: _Task) -> _Result:
        return await asyncio.to_thread(work, task)


class World:
    """One data directory, with the store in it or elsewhere. `keep` and `lease` are those of its mirrors."""

    def __init__(
        self,
        data_dir: Path,
        place: Place | None = None,
        keep: timedelta = HOUR,
        lease: timedelta = LEASE_TTL,
    ) -> None:
        self.data_dir = data_dir
        self.database = Database(place or data_dir)
        self.lake = LocalLake(data_dir)
        self.keep = keep
        self.catalog_url = place if isinstance(place, str) else None
        self.tables = IcebergMirror(data_dir, keep, self.catalog_url)
        self.mirrors = Mirrors(self.database, lease)
        self.wakeups = self.database.wakeups

    def mirror(self, name: str = "mirror") -> Mirror:
        tables = IcebergMirror(self.data_dir, self.keep, self.catalog_url)
        return Mirror(name, self.mirrors, tables, Threads(), self.lake, HOUR)

    async def follow(self) -> None:
        """Do all that is due."""
        mirror = self.mirror()
        while await mirror.step():
            pass

    async def dataset(self, dataset_id: str, *, iceberg: bool = True) -> str:
        new = NewDataset("d", "", RECORD, {}, (), iceberg=iceberg)
        made, _ = await Catalog(self.database).create_dataset(TENANT, new, dataset_id, "")
        return made.id

    async def batch(
        self, dataset_id: str, batch_id: str, rows: Sequence[Mapping[str, Any]] = ({"a": "x"},)
    ) -> None:
        """Commit a batch of one file; of none if there are no rows."""
        folder = f"{dataset_id}/{batch_id}"
        start = UploadStart(dataset_id, batch_id, "1", "json_lines")
        await Uploads(self.database).open_upload(TENANT, start, folder, staged_as=batch_id)
        found = []
        if rows:
            place = self.data_dir / "lake" / folder / "0.parquet"
            place.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist([{"_batch_id": batch_id, **row} for row in rows]), place)
            found = [DataFile("0.parquet", f"{folder}/0.parquet", len(rows), place.stat().st_size, "")]
        nobody = NamespaceUse()
        facts = IngestedFile(folder, tuple(found), 0, len(rows), EMPTY, nobody, nobody, (), batch_id, 0)
        await Uploads(self.database).commit_batch(TENANT, batch_id, {"1": facts})

    async def revert(self, batch_id: str) -> None:
        await Batches(self.database).revert(TENANT, batch_id, "")

    async def expire(self, dataset_id: str, batch_id: str) -> None:
        """Let a batch become older than its dataset keeps them."""
        await Catalog(self.database).update_dataset(TENANT, dataset_id, DatasetChange(batch_retention=HOUR))
        async with self.database.write() as connection:
            old = {"ingest_time": await database_time(connection) - HOUR}
            await connection.execute(update(batches).where(batches.c.id == batch_id).values(old))
        await Expiries(self.database).expire_batches()

    async def status(self, dataset_id: str) -> MirrorStatus:
        return (await Mirrors(self.database).of([dataset_id]))[dataset_id]

    async def folders(self) -> list[str]:
        """The folders of batches that may not leave the disk, without the dataset's."""
        dropped = DroppedFolders(self.database)
        counting = await Named(self.database).kept_folders()
        staying = {*counting, *await dropped.folders()} - set(await dropped.due(timedelta()))
        return sorted(folder.split("/")[1] for folder in staying)

    def mirrored(self, dataset_id: str) -> MirroredDataset:
        return MirroredDataset(dataset_id, "d", TENANT.org, TENANT.sandbox)

    def held(self, dataset_id: str) -> list[str]:
        """The batch of every row in the table."""
        state = self.tables.look(self.mirrored(dataset_id))
        if state is None:
            return []
        rows = StaticTable.from_metadata(state.metadata_location).scan(selected_fields=("_batch_id",))
        return sorted(rows.to_arrow().column("_batch_id").to_pylist())
