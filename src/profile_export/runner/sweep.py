"""The sweeper: removes from the disk what has been dropped, when nobody can be reading or writing it any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from profile_export.runner.background import repeat
from profile_export.runner.ports import Lake
from profile_export.store.drops import Drops

_POLL_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class Sweeper:
    """Removes what has been dropped.

    Args:
        drops: What has been dropped.
        lake: Where files live.
        grace: How long a download may take that began before the drop.
    """

    def __init__(self, drops: Drops, lake: Lake, grace: timedelta) -> None:
        self._drops = drops
        self._lake = lake
        self._grace = grace

    async def run(self) -> None:
        """Sweep until cancelled."""
        await repeat(self.step, poll_seconds=_POLL_SECONDS)

    async def step(self) -> bool:
        """Remove what is due; a folder is forgotten after it is gone, so a crash between the two does no harm."""
        gone = []
        for folder in await self._drops.due(self._grace):
            await asyncio.to_thread(self._lake.remove, folder)
            if self._lake.folder(folder).exists():
                _log.warning("not_removed", folder=folder)
            else:
                gone.append(folder)
        for left in await self._drops.left_behind():
            try:
                await asyncio.to_thread(self._lake.keep_only, left.folder, left.kept)
            except OSError:
                _log.warning("not_removed", folder=left.folder, exc_info=True)
            else:
                gone.append(left.folder)
        if gone:
            await self._drops.forget(gone)
            _log.info("swept", folders=len(gone))
        return False
