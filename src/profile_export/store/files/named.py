"""What the store names on the disk, and what it once named: only that is ever removed without being asked for twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select

from profile_export.domain.catalog.batches import BatchState
from profile_export.store.db.database import Store, slices, uninterruptible
from profile_export.store.db.tables import batches, compactions, datasets, files, uploads
from profile_export.store.files.batches import is_seen


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
    .where(batches.c.state == BatchState.SUCCEEDED, is_seen())
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
            found = await connection.execute(select(batches.c.folder).where(needed, is_seen()))
            return list(found.scalars())

    @uninterruptible
    async def kept_uploads(self) -> Sequence[str]:
        """Return under which names the bytes of uploads are kept whose batches do not count yet."""
        query = (
            select(uploads.c.staged_as)
            .join(batches, batches.c.key == uploads.c.batch_key)
            .where(batches.c.state == BatchState.LOADING, is_seen())
        )
        async with self.database.read() as connection:
            return list(await connection.scalars(query))

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
        found: set[str] = set()
        async with self.database.read() as connection:
            for some in slices(among):
                found.update(await connection.scalars(select(column).where(column.in_(some))))
        return found

    @uninterruptible
    async def names_files(self) -> bool:
        """Say whether there is any file that somebody may come to read."""
        async with self.database.read() as connection:
            return (await connection.execute(_COUNTING.limit(1))).first() is not None

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
            rows = (await connection.execute(query)).all()
            for names in (sent, written):
                for key, name in await connection.execute(names.where(loading)):
                    named[key].add(name)
        return [OpenFolder(row.folder, frozenset(named[row.key]), row.job_id is not None) for row in rows]

    @uninterruptible
    async def files(self) -> Sequence[NamedFile]:
        """Return the files of all batches that count, and those that their rows were merged into."""
        merged = select(compactions.c.path, compactions.c.bytes)
        async with self.database.read() as connection:
            found = (await connection.execute(_COUNTING)).all()
            found = [*found, *(await connection.execute(merged)).all()]
        return [NamedFile(row.path, row.bytes) for row in found]
