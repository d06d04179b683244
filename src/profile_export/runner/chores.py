"""Chores: what time ends, what retention ends, uploads nobody goes on with, and files nobody needs any more."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from profile_export.application.ports import Lake
from profile_export.application.uploads.loading import Loading
from profile_export.runner.keeper import LeaseKeeper
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.leases import Timeouts

_log = structlog.get_logger(__name__)


class TimeoutSweeper:
    """Looks for timeouts; every server has one, whether or not it runs jobs."""

    poll_seconds = 1.0

    def __init__(self, timeouts: Timeouts, keeper: LeaseKeeper) -> None:
        self._timeouts, self._keeper = timeouts, keeper

    async def step(self) -> bool:
        """End what is over. A worker that still runs such an attempt learns of it as of every change, and stops."""
        ended = await self._timeouts.end(self._keeper.keeps)
        for job in ended:
            _log.warning("lapsed", job_id=job.id, attempt=job.attempt, state=job.state.value)
        return bool(ended)


class ExpirySweeper:
    """Looks for what has become old enough; every server has one, whether or not it runs jobs.

    Args:
        expiries: What retention ends.
        changes: What watches of all jobs can go back to.
        job_retention: How long finished jobs are kept. None: for ever.
        watch_history: How far back watches can go.
    """

    poll_seconds = 60.0

    def __init__(
        self, expiries: Expiries, changes: Changes, job_retention: timedelta | None, watch_history: timedelta
    ) -> None:
        self._expiries = expiries
        self._changes = changes
        self._job_retention = job_retention
        self._watch_history = watch_history

    async def step(self) -> bool:
        """Let go of some of what is due; the disk is the sweeper's, which finds there what a crash left for it."""
        batches = await self._expiries.expire_batches()
        jobs = await self._expiries.expire_jobs(self._job_retention) if self._job_retention else ()
        forgotten = await self._expiries.forget_jobs()
        await self._changes.forget(self._watch_history)
        if batches or jobs:
            _log.info("expired", batches=batches, jobs=jobs)
        return bool(batches or jobs or forgotten)


class StaleUploadSweeper:
    """Looks for batches that have been silent for too long; every server has one.

    Args:
        expiries: What time ends.
        loading: What takes back what was uploaded.
        kept_for: How long a batch that is not complete may be silent.
    """

    poll_seconds = 60.0

    def __init__(self, expiries: Expiries, loading: Loading, kept_for: timedelta) -> None:
        self._expiries = expiries
        self._loading = loading
        self._kept_for = kept_for

    async def step(self) -> bool:
        """Give up some of what is due. What a crash leaves on the disk is found as left over, under the same names."""
        given_up = await self._expiries.expire_uploads(self._kept_for)
        await self._loading.clear_away(given_up.staged)
        if given_up.batches:
            _log.info("uploads_given_up", batches=given_up.batches)
        return bool(given_up.batches)


class Sweeper:
    """Removes what has been dropped.

    Args:
        dropped: The folders that have been dropped.
        lake: Where files live.
        grace: How long a download may take that began before the drop.
    """

    poll_seconds = 5.0

    def __init__(self, dropped: DroppedFolders, lake: Lake, grace: timedelta) -> None:
        self._dropped = dropped
        self._lake = lake
        self._grace = grace

    async def step(self) -> bool:
        """Remove what is due; a folder is forgotten after it is gone, so a crash between the two does no harm."""
        gone = []
        for folder in await self._dropped.due(self._grace):
            await asyncio.to_thread(self._lake.remove, folder)
            if await asyncio.to_thread(self._lake.exists, folder):
                _log.warning("not_removed", folder=folder)
            else:
                gone.append(folder)
        for left in await self._dropped.left_behind():
            try:
                await asyncio.to_thread(self._lake.keep_only, left.folder, left.kept)
            except OSError:
                _log.warning("not_removed", folder=left.folder, exc_info=True)
            else:
                gone.append(left.folder)
        if gone:
            await self._dropped.forget(gone)
            _log.info("swept", folders=len(gone))
        return False
