"""What processes that died have left on the disk: the store does not name it, and nobody will come to."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from profile_export.ingest.loading import Loading
from profile_export.lake.local import LocalLake
from profile_export.runner.background import repeat
from profile_export.store.batches import Batches
from profile_export.store.compactions import Compactions
from profile_export.store.drops import Drops

_POLL_SECONDS = 1800.0
_UNDER_WAY = timedelta(hours=1)
"""The longest that a process at work leaves files untouched which the store does not name yet."""
_log = structlog.get_logger(__name__)


class Leftovers:
    """Left-over folders of batches, and bytes of uploads."""

    def __init__(
        self, batches: Batches, compactions: Compactions, drops: Drops, loading: Loading, lake: LocalLake
    ) -> None:
        self._batches, self._compactions, self._drops = batches, compactions, drops
        self._loading, self._lake = loading, lake

    async def run(self) -> None:
        """Clear up beside others that are at work, until cancelled."""
        await repeat(self.step, poll_seconds=_POLL_SECONDS)

    async def step(self) -> bool:
        """Clear up what nobody can be at work on any more."""
        await self.clear(_UNDER_WAY)
        return False

    async def clear(self, untouched: timedelta) -> None:
        """Remove what nothing names and nobody has touched for so long; zero only if nobody else is at work."""
        # Looked for first: what the store names is asked for when all of these could have been named.
        folders = await asyncio.to_thread(self._lake.untouched, untouched)
        staged = await asyncio.to_thread(self._lake.staged)
        kept = {
            *await self._batches.kept_folders(),
            *await self._compactions.folders(),
            *await self._drops.folders(),
        }
        # A name of one step keeps all folders of that dataset.
        left = [folder for folder in folders if not {folder, folder.split("/")[0]} & kept]
        for folder in left:
            await asyncio.to_thread(self._lake.remove, folder)
        if left:
            _log.info("left_overs_removed", folders=len(left))
        await self._loading.clear_away(set(staged) - set(await self._batches.kept_uploads()))
