"""Finds files that the store does not name, and names in the store whose files are not there.

What a row once named, or what was made for one call, leaves the disk at once. Everything else goes to the trash: that
the store does not know it may be the store's fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from profile_export.application.loading import Loading
from profile_export.application.ports import Lake
from profile_export.domain.export.plan import ESTIMATES, MADE_NAME, MAPPINGS
from profile_export.domain.export.receipt import RECEIPT_FILE
from profile_export.store.db.database import Instances
from profile_export.store.files.folders import DroppedFolders, Named, NamedFile
from profile_export.store.files.snapshots import Compactions

_UNDER_WAY = timedelta(hours=1)
"""For how long a process at work may leave files unmodified before the store names them."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoreAndLake:
    """What a store knows of a lake, and the lake."""

    instances: Instances
    named: Named
    compactions: Compactions
    dropped: DroppedFolders
    lake: Lake

    async def unnamed(self, folders: Collection[str]) -> list[str]:
        """Return those of some folders that the store does not need."""
        named = await self.named.kept_folders()
        kept = {*named, *await self.compactions.folders(), *await self.dropped.folders()}
        # A name of one step keeps all folders of that dataset.
        return [folder for folder in folders if not {folder, folder.split("/")[0]} & kept]


class Leftovers:
    """Clears up left-over folders of batches, and bytes of uploads; empties the trash after `keep_trash`."""

    poll_seconds = 1800.0

    def __init__(self, both: StoreAndLake, loading: Loading, keep_trash: timedelta) -> None:
        self._both, self._loading, self._keep_trash = both, loading, keep_trash
        self._lake, self._named = both.lake, both.named

    async def step(self) -> bool:
        """Clear up what nobody can be at work on any more."""
        await self.clear(_UNDER_WAY)
        return await self.empty_trash()

    async def empty_trash(self) -> bool:
        """Remove for good what the trash has kept for long enough."""
        gone = await asyncio.to_thread(self._lake.empty_trash, datetime.now(UTC), self._keep_trash)
        if gone:
            _log.info("trash_emptied", folders=gone)
        return False

    async def clear(self, untouched: timedelta) -> None:
        """Clear up what the store does not name and nobody has modified for `untouched`.

        Pass zero only when no other process shares the lake.
        """
        instance = await self._both.instances.get()
        of = await asyncio.to_thread(self._lake.instance)
        if instance is None or of != instance.id:
            # Another database has the lake now, and nothing in it is ours to judge.
            _log.error("lake_of_another_database", instance=of)
            return
        # Looked for first: what the store names is asked for when all of these could have been named.
        folders = await asyncio.to_thread(self._lake.untouched, untouched)
        staged = await asyncio.to_thread(self._lake.staged)
        unknown = await self._clear_folders(folders, untouched)
        unknown += await self._within_open(untouched)
        unknown_staged = await self._clear_staged(staged)
        await asyncio.to_thread(self._lake.set_aside, unknown, unknown_staged)

    async def _clear_folders(self, folders: Collection[str], untouched: timedelta) -> list[str]:
        """Remove those that a row once named; return those that none did."""
        compactions, left = self._both.compactions, await self._both.unnamed(folders)
        begun = await compactions.begun(untouched)
        known = {*begun, *await self._named.folders(left)}
        gone = [folder for folder in left if folder in known or _is_passing(folder)]
        for folder in gone:
            await asyncio.to_thread(self._lake.remove, folder)
        if gone:
            _log.info("left_overs_removed", folders=len(gone))
        if over := [folder for folder in begun if not await asyncio.to_thread(self._lake.exists, folder)]:
            await compactions.give_up(over)
        under_way = {*await compactions.begun(timedelta(0)), *gone}
        return [folder for folder in left if folder not in under_way]

    async def _within_open(self, untouched: timedelta) -> list[str]:
        """Return what lies in the folders of batches that are being loaded, and is nothing of theirs.

        A batch that has counted already, as the receipt beside its files tells, is of a store that knew more than this
        one: a backup has taken its place.
        """
        found: list[str] = []
        for folder in await self._named.open_folders():
            within = await self._within(folder.folder, untouched)
            if folder.of_job:
                if (receipt := f"{folder.folder}/{RECEIPT_FILE}") not in within:
                    continue
                # Its files lie in the folders of attempts.
                within = [receipt, *await self._within(f"{folder.folder}/*", untouched)]
            found += (path for path in within if path not in folder.named)
        return found

    async def _within(self, folder: str, untouched: timedelta) -> Sequence[str]:
        return await asyncio.to_thread(self._lake.untouched_within, folder, untouched)

    async def _clear_staged(self, staged: Collection[str]) -> list[str]:
        """Remove the bytes that a row once named; return under which names there are others."""
        left = set(staged) - set(await self._named.kept_uploads())
        known = await self._named.uploads(left)
        await self._loading.clear_away(known)
        return sorted(left - known)


def _is_passing(folder: str) -> bool:
    """Say of a folder that it was made for the time of one call."""
    top, _, name = folder.partition("/")
    return top in {ESTIMATES, MAPPINGS} and MADE_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found; paths are relative to the lake, names of uploads to `uploads/` and of the trash to `trash/`.

    `staged` are bytes of uploads that are being sent, and with what is in the trash no reason to worry.
    """

    same_instance: bool
    files: int
    missing: Sequence[str]
    other_size: Sequence[str]
    unknown_folders: Sequence[str]
    unknown_uploads: Sequence[str]
    staged: Sequence[str]
    trash: Sequence[str]

    @property
    def agree(self) -> bool:
        """Whether nothing is amiss."""
        amiss = (self.missing, self.other_size, self.unknown_folders, self.unknown_uploads)
        return self.same_instance and not any(amiss)


async def check_up(both: StoreAndLake) -> Findings:
    """Compare a store with a lake all over, also beside those that work with them."""
    instance = await both.instances.get()
    of = await asyncio.to_thread(both.lake.instance)
    # Looked for first: what the store names is asked for when all of these could have been named.
    folders = await asyncio.to_thread(both.lake.untouched, timedelta(0))
    staged = set(await asyncio.to_thread(both.lake.staged))
    left = await both.unnamed(folders)
    known = {*await both.named.folders(left), *await both.compactions.begun(timedelta(0))}
    known_uploads = await both.named.uploads(staged)
    files = await both.named.files()
    missing, other_size = await asyncio.to_thread(_compared, both.lake, files)
    return Findings(
        same_instance=(instance and instance.id) == of,
        files=len(files),
        missing=missing,
        other_size=other_size,
        unknown_folders=sorted(one for one in left if one not in known and not _is_passing(one)),
        unknown_uploads=sorted(staged - known_uploads),
        staged=sorted(staged & known_uploads),
        trash=await asyncio.to_thread(both.lake.trash),
    )


def _compared(lake: Lake, files: Sequence[NamedFile]) -> tuple[list[str], list[str]]:
    missing, other_size = [], []
    for file in files:
        try:
            found = lake.size(file.path)
        except FileNotFoundError:
            missing.append(file.path)
        else:
            if found != file.bytes:
                other_size.append(file.path)
    return sorted(missing), sorted(other_size)
