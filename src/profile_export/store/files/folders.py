"""Folders and files that the store names on the disk, and dropped folders, which leave it once nobody can read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from sqlalchemy import ColumnElement, delete, exists, select

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.job import LEASE_TTL
from profile_export.store.catalog.tenants import is_kept
from profile_export.store.db.database import MOST_AT_ONCE, Database, Store, database_time, uninterruptible
from profile_export.store.db.tables import (
    UNFINISHED,
    batches,
    compactions,
    datasets,
    dropped_folders,
    files,
    jobs,
    mirrored_batches,
    uploads,
)
from profile_export.store.db.transactions import Transaction, slices
from profile_export.store.files.mirrors import named_by_mirror


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A folder in which an attempt at an export has written that has ended, and the files in it that stay."""

    folder: str
    kept: Sequence[str]


class DroppedFolders(Store):
    """Dropped folders of all tenants."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # The folders that unfinished jobs have pinned, by the jobs' ids: a plan never changes.
        self._pinned: dict[int, frozenset[str]] = {}

    @uninterruptible
    async def due(self, grace: timedelta) -> Sequence[str]:
        """Return the folders that may leave the disk now: dropped that long ago, and named by no one.

        Those of attempts are not among them, see `left_behind`.
        """
        async with self.database.read() as connection:
            before = await database_time(connection) - grace
            query = select(dropped_folders.c.folder).where(
                dropped_folders.c.batch_key.is_(None),
                dropped_folders.c.drop_time <= before,
                ~_named_by_mirror(),
            )
            folders = await connection.values(query.order_by(dropped_folders.c.drop_time))
            pinned = await self._pinned_folders(connection) if folders else set()
        return [folder for folder in folders if folder not in pinned]

    async def _pinned_folders(self, connection: Transaction) -> set[str]:
        """Return every folder that has a file of an unfinished job's plan in it, however deep."""
        ids = await connection.values(select(jobs.c.id).where(UNFINISHED, jobs.c.plan.is_not(None)))
        self._pinned = {job_id: self._pinned[job_id] for job_id in ids if job_id in self._pinned}
        for job_id in ids:
            if job_id not in self._pinned:
                plan = await connection.value(select(jobs.c.plan).where(jobs.c.id == job_id))
                self._pinned[job_id] = _folders_of(plan)
        return set().union(*self._pinned.values())

    @uninterruptible
    async def left_behind(self) -> Sequence[LeftBehind]:
        """Return where attempts have written that ended a lease's time ago: by then every worker has stopped.

        What the batch names stays: a later attempt goes on from the files of recorded ranges.
        """
        async with self.database.read() as connection:
            before = await database_time(connection) - LEASE_TTL
            query = select(dropped_folders).where(
                dropped_folders.c.batch_key.is_not(None), dropped_folders.c.drop_time <= before
            )
            due = await connection.all(query.order_by(dropped_folders.c.drop_time))
            return [
                LeftBehind(
                    row.folder,
                    await connection.values(select(files.c.path).where(files.c.batch_key == row.batch_key)),
                )
                for row in due
            ]

    @uninterruptible
    async def folders(self) -> Sequence[str]:
        """Return all folders that have been dropped, that may still be there, and that somebody may be reading."""
        async with self.database.read() as connection:
            query = select(dropped_folders.c.folder).where(dropped_folders.c.batch_key.is_(None))
            return await connection.values(query)

    @uninterruptible
    async def forget(self, folders: Collection[str]) -> None:
        """Forget folders that have left the disk."""
        for some in slices(folders, MOST_AT_ONCE):
            async with self.database.write() as connection:
                await connection.execute(delete(dropped_folders).where(dropped_folders.c.folder.in_(some)))


async def drop(connection: Transaction, folders: Collection[str]) -> None:
    """Give folders up, in the transaction after which nothing new can come to need them.

    They are those of batches or compacted files, relative to the lake's root, and never used again.
    """
    await drop_written(connection, dict.fromkeys(folders))


async def drop_datasets(connection: Transaction, delete_times: Mapping[str, datetime]) -> None:
    """Give the folders of whole datasets up, by the datasets' ids; nobody has begun to read them since these times."""
    rows = [{"folder": folder, "drop_time": time} for folder, time in delete_times.items()]
    await connection.insert_new(dropped_folders, rows)


async def drop_written(connection: Transaction, folders: Mapping[str, int | None]) -> None:
    """Give up folders that attempts at exports wrote in, each with the key of its batch, whose files alone are read."""
    if folders:
        now = await database_time(connection)
        rows = [
            {"folder": folder, "drop_time": now, "batch_key": batch_key}
            for folder, batch_key in folders.items()
        ]
        await connection.insert_new(dropped_folders, rows)


def _named_by_mirror() -> ColumnElement[bool]:
    """Say of a dropped folder that a kept snapshot of a mirror may name files in it."""
    batch = exists().where(batches.c.folder == dropped_folders.c.folder, named_by_mirror())
    dataset = exists().where(mirrored_batches.c.dataset_id == dropped_folders.c.folder)
    return batch | dataset


def _folders_of(plan: ExportPlan) -> frozenset[str]:
    paths = (file.path for source in plan.sources for part in source.parts for file in part.files)
    return frozenset(str(folder) for path in paths for folder in PurePosixPath(path).parents)


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """The folder of a batch that is being loaded.

    `named` is what of it the batch has so far, relative to the lake's root: files of an export, which `of_job` tells,
    and folders of uploads.
    """

    folder: str
    named: frozenset[str]
    of_job: bool


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A data file that somebody may come to read."""

    path: str
    bytes: int


_COUNTING = (
    select(files.c.path, files.c.bytes)
    .join(batches, batches.c.key == files.c.batch_key)
    .where(batches.c.state == BatchState.SUCCEEDED, is_kept())
)


class Named(Store):
    """Names of folders and of uploads' bytes, of all tenants."""

    @uninterruptible
    async def kept_folders(self) -> Sequence[str]:
        """Return the folders of all batches that need theirs: for files that count or will, or for refused rows."""
        refused = select(uploads.c.batch_key).where(uploads.c.rejected_rows > 0)
        needed = batches.c.state.in_((BatchState.SUCCEEDED, BatchState.LOADING)) | (
            (batches.c.state == BatchState.FAILED) & batches.c.key.in_(refused)
        )
        async with self.database.read() as connection:
            return await connection.values(select(batches.c.folder).where(needed, is_kept()))

    @uninterruptible
    async def kept_uploads(self) -> Sequence[str]:
        """Return under which names the bytes of uploads are kept whose batches do not count yet."""
        query = (
            select(uploads.c.staged_as)
            .join(batches, batches.c.key == uploads.c.batch_key)
            .where(batches.c.state == BatchState.LOADING, is_kept())
        )
        async with self.database.read() as connection:
            return await connection.values(query)

    async def folders(self, among: Collection[str]) -> set[str]:
        """Return which of some folders are those of batches, whatever has become of these."""
        return await self._known(batches.c.folder, among)

    async def uploads(self, among: Collection[str]) -> set[str]:
        """Return which of some names are those of uploads' bytes, whatever has become of these."""
        return await self._known(uploads.c.staged_as, among)

    async def knows_any(self, dataset_ids: Collection[str], staged: Collection[str]) -> bool:
        """Say whether any of some datasets, or of some uploads, is one of the store's."""
        return bool(await self.uploads(staged) or await self._known(datasets.c.id, dataset_ids))

    @uninterruptible
    async def _known(self, column: ColumnElement[str], among: Collection[str]) -> set[str]:
        async with self.database.read() as connection:
            return {row[0] for row in await connection.among(select(column), column, among)}

    @uninterruptible
    async def names_files(self) -> bool:
        """Say whether there is any file that somebody may come to read."""
        async with self.database.read() as connection:
            return await connection.first(_COUNTING.limit(1)) is not None

    @uninterruptible
    async def open_folders(self) -> Sequence[OpenFolder]:
        """Return the folders of all batches that are being loaded."""
        loading = batches.c.state == BatchState.LOADING
        query = select(batches.c.key, batches.c.folder, batches.c.job_id).where(loading)
        sent = select(uploads.c.batch_key, uploads.c.folder).join(
            batches, batches.c.key == uploads.c.batch_key
        )
        written = select(files.c.batch_key, files.c.path).join(batches, batches.c.key == files.c.batch_key)
        named: dict[int, set[str]] = defaultdict(set)
        async with self.database.read() as connection:
            rows = await connection.all(query)
            for names in (sent, written):
                for key, name in await connection.execute(names.where(loading)):
                    named[key].add(name)
        return [OpenFolder(row.folder, frozenset(named[row.key]), row.job_id is not None) for row in rows]

    @uninterruptible
    async def files(self) -> Sequence[NamedFile]:
        """Return the files of all batches that count, and those that their rows were merged into."""
        merged = select(compactions.c.path, compactions.c.bytes)
        async with self.database.read() as connection:
            found = await connection.all(_COUNTING)
            found = [*found, *await connection.all(merged)]
        return [NamedFile(row.path, row.bytes) for row in found]
