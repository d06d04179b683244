"""What the store names on the disk, and what it once named: only that is ever removed without being asked for twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from profile_export.domain.batch import BatchState
from profile_export.store.batches import is_seen
from profile_export.store.database import Database, slices, whole
from profile_export.store.tables import batches, compactions, datasets, files, uploads


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
    .where(batches.c.state == BatchState.SUCCEEDED.value, is_seen())
)


class Named:
    """Names of folders and of uploads' bytes, of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @whole
    async def kept_folders(self) -> Sequence[str]:
        """Return the folders of all batches that need theirs: for files that count or will, or for refused rows."""
        refused = select(uploads.c.batch_key).where(uploads.c.rejected_rows > 0)
        needed = batches.c.state.in_((BatchState.SUCCEEDED.value, BatchState.LOADING.value)) | (
            (batches.c.state == BatchState.FAILED.value) & batches.c.key.in_(refused)
        )
        async with self.database.read() as connection:
            found = await connection.execute(select(batches.c.folder).where(needed, is_seen()))
            return list(found.scalars())

    @whole
    async def kept_uploads(self) -> Sequence[str]:
        """Return under which names the bytes of uploads are kept whose batches do not count yet."""
        query = (
            select(uploads.c.staged_as)
            .join(batches, batches.c.key == uploads.c.batch_key)
            .where(batches.c.state == BatchState.LOADING.value, is_seen())
        )
        async with self.database.read() as connection:
            return list((await connection.execute(query)).scalars())

    @whole
    async def folders(self, among: Collection[str]) -> set[str]:
        """Return which of some folders are those of batches, whatever has become of these."""
        found: set[str] = set()
        async with self.database.read() as connection:
            for some in slices(among):
                query = select(batches.c.folder).where(batches.c.folder.in_(some))
                found.update((await connection.execute(query)).scalars())
        return found

    @whole
    async def uploads(self, among: Collection[str]) -> set[str]:
        """Return which of some names are those of uploads' bytes, whatever has become of these."""
        found: set[str] = set()
        async with self.database.read() as connection:
            for some in slices(among):
                query = select(uploads.c.staged_as).where(uploads.c.staged_as.in_(some))
                found.update((await connection.execute(query)).scalars())
        return found

    @whole
    async def knows_any(self, dataset_ids: Collection[str], staged: Collection[str]) -> bool:
        """Say whether any of some datasets, or of some uploads, is one of the store's."""
        if await self.uploads(staged):
            return True
        async with self.database.read() as connection:
            for some in slices(dataset_ids):
                query = select(datasets.c.id).where(datasets.c.id.in_(some)).limit(1)
                if (await connection.execute(query)).first():
                    return True
        return False

    @whole
    async def names_files(self) -> bool:
        """Say whether there is any file that somebody may come to read."""
        async with self.database.read() as connection:
            return (await connection.execute(_COUNTING.limit(1))).first() is not None

    @whole
    async def open_folders(self) -> Sequence[OpenFolder]:
        """Return the folders of all batches that are being loaded."""
        loading = batches.c.state == BatchState.LOADING.value
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

    @whole
    async def files(self) -> Sequence[NamedFile]:
        """Return the files of all batches that count, and those that their rows were merged into."""
        merged = select(compactions.c.path, compactions.c.bytes)
        async with self.database.read() as connection:
            found = (await connection.execute(_COUNTING)).all()
            found = [*found, *(await connection.execute(merged)).all()]
        return [NamedFile(row.path, row.bytes) for row in found]
