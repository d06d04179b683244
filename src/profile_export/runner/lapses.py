"""Ends what time has ended, whoever holds it: no job stays in limbo because its worker hangs or is gone."""

from __future__ import annotations

import structlog

from profile_export.runner.background import repeat
from profile_export.runner.keeper import LeaseKeeper
from profile_export.store.lapses import Lapses

_POLL_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class LapseSweeper:
    """Looks for lapses; every server has one, whether or not it runs jobs."""

    def __init__(self, lapses: Lapses, keeper: LeaseKeeper) -> None:
        self._lapses, self._keeper = lapses, keeper

    async def run(self) -> None:
        """Look until cancelled."""
        await repeat(self.step, poll_seconds=_POLL_SECONDS)

    async def step(self) -> bool:
        """End what is over. A worker that still runs such an attempt learns of it as of every change, and stops."""
        ended = await self._lapses.end(self._keeper.keeps)
        for job in ended:
            _log.warning("lapsed", job_id=job.id, attempt=job.attempt, state=job.state.value)
        return bool(ended)
