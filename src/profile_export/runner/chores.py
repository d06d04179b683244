"""Chores: what is done again and again beside the jobs. Each class says what it does and how often.

No lease is needed where a transaction takes what is due, or where doing it twice does no harm. Only the mirror, which
changes tables outside the database, has leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple, Protocol

import structlog

from profile_export.application.loading import Loading
from profile_export.application.ports import Lake, MergeFiles
from profile_export.domain.errors import UnavailableError
from profile_export.domain.export.plan import WrittenFile
from profile_export.processes.messages import TooExpensiveError
from profile_export.runner.keeper import LeaseKeeper
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.files.snapshots import Compactions, Merge
from profile_export.store.jobs.changes import Changes
from profile_export.store.jobs.expiries import Expiries, Timeouts

_LEAST_SECONDS = 1.0
"""How long changes gather before they are looked at: a hundred in a second are one look, and jobs go first."""
_REST_SECONDS, _MOST_REST_SECONDS = 600.0, 86_400.0
_MERGED_FILE = "00000.parquet"
_log = structlog.get_logger(__name__)


async def first_of(*waits: asyncio.Future[None] | Coroutine[None, None, object], seconds: float) -> None:
    """Wait until one of these happens or the time is over. A future goes on, a coroutine is dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait, task in zip(waits, tasks, strict=True):
            if wait is not task:
                task.cancel()


class Chore(Protocol):
    """Work that comes due by the clock, and some of it when batches have come, too."""

    poll_seconds: float
    """How long it rests where nothing is waiting."""

    async def step(self) -> bool:
        """Do some of it; say whether more is waiting."""


async def keep_at(
    chore: Chore, batches: Wakeups | None = None, *, until: asyncio.Event | None = None
) -> None:
    """Do a chore until cancelled, or until told to begin no further step; with `batches`, also when some have come."""
    with batches.of_batches() if batches else nullcontext() as changed:
        await repeat(chore.step, poll_seconds=chore.poll_seconds, changed=changed, until=until)


async def repeat(
    step: Callable[[], Awaitable[bool]],
    *,
    poll_seconds: float,
    changed: asyncio.Event | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Take steps until cancelled, or until told to begin no further one.

    Args:
        step: Does some of the work; says whether more is waiting. One that fails is logged and taken again later.
        poll_seconds: How long to wait where nothing is waiting or a step has failed.
        changed: Ends the wait early.
        until: Ends the wait and the work.
    """
    wake, stop = changed or asyncio.Event(), until or asyncio.Event()
    while not stop.is_set():
        wake.clear()
        try:
            more = await step()
        except UnavailableError as error:
            # Every step says so until it is back: without a stack trace each.
            _log.warning("background_failed", work=step.__qualname__, reason=error.reason)
            more = False
            wake.clear()
        except Exception:  # noqa: BLE001 - whatever it is, the server lives on and the next step may do
            _log.exception("background_failed", work=step.__qualname__)
            more = False
            wake.clear()
        if not more:
            await first_of(wake.wait(), stop.wait(), seconds=poll_seconds)
            await first_of(stop.wait(), seconds=_LEAST_SECONDS)


@dataclass(frozen=True, slots=True)
class TimeoutChore:
    """Looks for timeouts; every server has one, whether or not it runs jobs."""

    poll_seconds = 1.0

    timeouts: Timeouts
    keeper: LeaseKeeper

    async def step(self) -> bool:
        """End what is over. A worker that still runs such an attempt learns of it as of every change, and stops."""
        ended = await self.timeouts.end(self.keeper.keeps)
        for job in ended:
            _log.warning("timed_out", job_id=job.id, attempt=job.attempt, state=job.state.value)
        return bool(ended)


@dataclass(frozen=True, slots=True)
class ExpiryChore:
    """Looks for what has become old enough; every server has one, whether or not it runs jobs."""

    poll_seconds = 60.0

    expiries: Expiries
    changes: Changes
    job_retention: timedelta | None
    """How long finished jobs are kept. None: for ever."""
    watch_history: timedelta
    """How far back watches of all jobs can go."""

    async def step(self) -> bool:
        """Expire some of what is due. `Sweeper` removes the files, and finds those, too, that a crash left to it."""
        batches = await self.expiries.expire_batches()
        datasets = await self.expiries.purge_datasets()
        jobs = await self.expiries.expire_jobs(self.job_retention) if self.job_retention else ()
        forgotten = await self.expiries.forget_jobs()
        await self.changes.forget(self.watch_history)
        if batches or datasets or jobs:
            _log.info("expired", batches=batches, datasets=datasets, jobs=jobs)
        return bool(batches or datasets or jobs or forgotten)


@dataclass(frozen=True, slots=True)
class StaleUploadChore:
    """Looks for batches that have been silent for too long; every server has one."""

    poll_seconds = 60.0

    expiries: Expiries
    loading: Loading
    kept_for: timedelta
    """How long a batch that is not complete may be silent."""

    async def step(self) -> bool:
        """Give up some of what is due. What a crash leaves on the disk is found as left over, under the same names."""
        given_up = await self.expiries.expire_uploads(self.kept_for)
        await self.loading.clear_away(given_up.staged)
        if given_up.batches:
            _log.info("uploads_given_up", batches=given_up.batches)
        return bool(given_up.batches)


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Removes what has been dropped."""

    poll_seconds = 5.0

    dropped: DroppedFolders
    lake: Lake
    grace: timedelta
    """How long a download may take that began before the drop."""

    async def step(self) -> bool:
        """Remove what is due; a folder is forgotten after it is gone, so a crash between the two does no harm."""
        gone = []
        for folder in await self.dropped.due(self.grace):
            await asyncio.to_thread(self.lake.remove, folder)
            if await asyncio.to_thread(self.lake.exists, folder):
                _log.warning("not_removed", folder=folder)
            else:
                gone.append(folder)
        for left in await self.dropped.left_behind():
            try:
                await asyncio.to_thread(self.lake.keep_only, left.folder, left.kept)
            except OSError:
                _log.warning("not_removed", folder=left.folder, exc_info=True)
            else:
                gone.append(left.folder)
        if gone:
            await self.dropped.forget(gone)
            _log.info("swept", folders=len(gone))
        return False


class _Rest(NamedTuple):
    seconds: float
    until: float


@dataclass(frozen=True, slots=True)
class Compactor:
    """Merges small batches' files behind their rows, one merge at a time. What is cut off is begun anew by the next."""

    poll_seconds = 60.0

    compactions: Compactions
    lake: Lake
    merge_files: MergeFiles
    new_id: Callable[[], str]
    resting: dict[str, _Rest] = field(default_factory=dict, init=False)
    """Datasets whose last merges failed, so that others get their turn."""

    async def step(self) -> bool:
        """Make the next merge; False if there was none to make."""
        await self.compactions.dissolve()
        now = asyncio.get_running_loop().time()
        merge = await self.compactions.next_merge(
            [dataset_id for dataset_id, rest in self.resting.items() if rest.until > now]
        )
        if merge is None:
            return False
        try:
            await self._carry_out(merge, f"{merge.dataset_id}/{self.new_id()}")
        except TooExpensiveError as error:
            seconds = self._rest(merge.dataset_id)
            _log.warning(
                "not_compacted",
                dataset_id=merge.dataset_id,
                reason=f"It took more than {error}.",
                again_in_seconds=seconds,
            )
        except Exception:
            self._rest(merge.dataset_id)
            raise
        else:
            self.resting.pop(merge.dataset_id, None)
        return True

    def _rest(self, dataset_id: str) -> float:
        """Leave a dataset alone for a while, each time for longer; return for how many seconds."""
        rest = self.resting.get(dataset_id)
        seconds = min(2 * rest.seconds, _MOST_REST_SECONDS) if rest else _REST_SECONDS
        self.resting[dataset_id] = _Rest(seconds, asyncio.get_running_loop().time() + seconds)
        return seconds

    async def _carry_out(self, merge: Merge, folder: str) -> None:
        await self.compactions.begin(folder)
        try:
            file = await self._merged(merge, folder)
        except Exception:
            await self._give_up(folder)
            raise
        # A commit that is cancelled goes on to its end, so from here on only its answer says whose the folder is. What
        # has only begun then is cleared up at the next start.
        if await self.compactions.commit(merge, folder, file):
            _log.info("compacted", dataset_id=merge.dataset_id, runs=len(merge.runs), rows=file.rows)
        else:
            await self._give_up(folder)

    async def _give_up(self, folder: str) -> None:
        await asyncio.to_thread(self.lake.remove, folder)
        await self.compactions.give_up([folder])

    async def _merged(self, merge: Merge, folder: str) -> WrittenFile:
        paths = [path for run in merge.runs for path in run.paths]
        async with self.lake.readable(paths):
            sources = tuple(self.lake.root / path for path in paths)
            file = await self.merge_files(sources, self.lake.staging(folder) / _MERGED_FILE)
        await asyncio.to_thread(self.lake.publish, [f"{folder}/{_MERGED_FILE}"])
        return file
