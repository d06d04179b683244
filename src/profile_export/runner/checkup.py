"""Whether a store and a lake agree: what one names and the other does not have. It changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from profile_export.lake.local import LocalLake, is_passing
from profile_export.runner.leftovers import unnamed
from profile_export.store.compactions import Compactions
from profile_export.store.drops import Drops
from profile_export.store.instance import Instances
from profile_export.store.named import Named, NamedFile


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


@dataclass(frozen=True, slots=True)
class Checkup:
    """Compares a store with a lake, also beside those that work with them."""

    instances: Instances
    named: Named
    compactions: Compactions
    drops: Drops
    lake: LocalLake

    async def run(self) -> Findings:
        """Look all over."""
        instance = await self.instances.get()
        of = await asyncio.to_thread(self.lake.instance)
        # Looked for first: what the store names is asked for when all of these could have been named.
        folders = await asyncio.to_thread(self.lake.untouched, timedelta(0))
        staged = set(await asyncio.to_thread(self.lake.staged))
        left = await unnamed(self.named, self.compactions, self.drops, folders)
        known = {*await self.named.folders(left), *await self.compactions.begun(timedelta(0))}
        known_uploads = await self.named.uploads(staged)
        files = await self.named.files()
        missing, other_size = await asyncio.to_thread(self._compared, files)
        return Findings(
            same_instance=(instance and instance.id) == of,
            files=len(files),
            missing=missing,
            other_size=other_size,
            unknown_folders=sorted(one for one in left if one not in known and not is_passing(one)),
            unknown_uploads=sorted(staged - known_uploads),
            staged=sorted(staged & known_uploads),
            trash=await asyncio.to_thread(self.lake.trash.held),
        )

    def _compared(self, files: Sequence[NamedFile]) -> tuple[list[str], list[str]]:
        missing, other_size = [], []
        for file in files:
            try:
                found = (self.lake.root / file.path).stat().st_size
            except FileNotFoundError:
                missing.append(file.path)
            else:
                if found != file.bytes:
                    other_size.append(file.path)
        return sorted(missing), sorted(other_size)
