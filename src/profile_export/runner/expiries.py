"""Retention: lets go of what has been kept as long as somebody has said."""

from __future__ import annotations

from datetime import timedelta

import structlog

from profile_export.runner.background import repeat
from profile_export.store.changes import Changes
from profile_export.store.expiries import Expiries

_POLL_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class ExpirySweeper:
    """Looks for what has become old enough; every server has one, whether or not it runs jobs.

    Args:
        expiries: What retention ends.
        changes: What watches of all jobs can go back to.
        job_retention: How long finished jobs are kept. None: for ever.
        watch_history: How far back watches can go.
    """

    def __init__(
        self, expiries: Expiries, changes: Changes, job_retention: timedelta | None, watch_history: timedelta
    ) -> None:
        self._expiries = expiries
        self._changes = changes
        self._job_retention = job_retention
        self._watch_history = watch_history

    async def run(self) -> None:
        """Look until cancelled."""
        await repeat(self.step, poll_seconds=_POLL_SECONDS)

    async def step(self) -> bool:
        """Let go of some of what is due; the disk is the sweeper's, which finds there what a crash left for it."""
        batches = await self._expiries.expire_batches()
        jobs = await self._expiries.expire_jobs(self._job_retention) if self._job_retention else ()
        forgotten = await self._expiries.forget_jobs()
        await self._changes.forget(self._watch_history)
        if batches or jobs:
            _log.info("expired", batches=batches, jobs=jobs)
        return bool(batches or jobs or forgotten)
