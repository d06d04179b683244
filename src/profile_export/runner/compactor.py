"""The compactor: merges small batches' files behind their rows, one merge at a time, behind everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from profile_export.application.ports import Lake, MergeFiles
from profile_export.domain.export.plan import WrittenFile
from profile_export.processes.messages import TooExpensiveError
from profile_export.runner.background import repeat
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.files.snapshots import Compactions, Merge

_POLL_SECONDS = 60.0
_REST_SECONDS, _MOST_REST_SECONDS = 600.0, 86_400.0
_FILE_NAME = "00000.parquet"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Rest:
    seconds: float
    until: float


class Compactor:
    """Compacts all datasets that need it.

    Args:
        compactions: What is compacted, and what should be.
        wakeups: Say when batches have come.
        lake: Where files live.
        merge_files: Merges files into one, elsewhere.
        new_id: Makes names of folders.
    """

    def __init__(
        self,
        compactions: Compactions,
        wakeups: Wakeups,
        lake: Lake,
        merge_files: MergeFiles,
        new_id: Callable[[], str],
    ) -> None:
        self._compactions = compactions
        self._wakeups = wakeups
        self._lake = lake
        self._merge_files = merge_files
        self._new_id = new_id
        # Datasets whose last merges failed, so that others get their turn.
        self._resting: dict[str, _Rest] = {}

    async def run(self) -> None:
        """Compact until cancelled; what it was at then is begun anew by the next."""
        with self._wakeups.of_batches() as changed:
            await repeat(self.step, poll_seconds=_POLL_SECONDS, changed=changed)

    async def step(self) -> bool:
        """Make the next merge; False if there was none to make."""
        await self._compactions.dissolve()
        now = asyncio.get_running_loop().time()
        merge = await self._compactions.next_merge(
            [dataset_id for dataset_id, rest in self._resting.items() if rest.until > now]
        )
        if merge is None:
            return False
        try:
            await self._carry_out(merge, f"{merge.dataset_id}/{self._new_id()}")
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
            self._resting.pop(merge.dataset_id, None)
        return True

    def _rest(self, dataset_id: str) -> float:
        """Leave a dataset alone for a while, each time for longer; return for how many seconds."""
        rest = self._resting.get(dataset_id)
        seconds = min(2 * rest.seconds, _MOST_REST_SECONDS) if rest else _REST_SECONDS
        self._resting[dataset_id] = _Rest(seconds, asyncio.get_running_loop().time() + seconds)
        return seconds

    async def _carry_out(self, merge: Merge, folder: str) -> None:
        await self._compactions.begin(folder)
        try:
            file = await self._merged(merge, folder)
        except Exception:
            await self._give_up(folder)
            raise
        # A commit that is cancelled goes on to its end, so from here on only its answer says whose the folder is. What
        # has only begun then is cleared up at the next start.
        if await self._compactions.commit(merge, folder, file):
            _log.info("compacted", dataset_id=merge.dataset_id, segments=len(merge.segments), rows=file.rows)
        else:
            await self._give_up(folder)

    async def _give_up(self, folder: str) -> None:
        await asyncio.to_thread(self._lake.remove, folder)
        await self._compactions.give_up([folder])

    async def _merged(self, merge: Merge, folder: str) -> WrittenFile:
        paths = [path for segment in merge.segments for path in segment.paths]
        async with self._lake.readable(paths):
            sources = tuple(self._lake.root / path for path in paths)
            file = await self._merge_files(sources, self._lake.staging(folder) / _FILE_NAME)
        await asyncio.to_thread(self._lake.publish, [f"{folder}/{_FILE_NAME}"])
        return file
