"""Follows the batches of mirrored datasets into their Iceberg tables. No job waits for it or fails because of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar, TypeVarTuple, Unpack

import structlog

from profile_export.application.ports import Elsewhere, Lake, MirrorTables
from profile_export.domain.catalog.batches import (
    MirrorConflictError,
    MirroredBatch,
    MirrorError,
    TableState,
    TypesChangedError,
)
from profile_export.processes.messages import ChildDiedError, TooExpensiveError
from profile_export.store.files.mirrors import LEASE_TTL, MirrorLostError, Mirrors, MirrorWork

_log = structlog.get_logger(__name__)
_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Changes one table after the other until it is told to stop."""

    poll_seconds = 5.0
    """How often the mirror also looks by itself, for tables whose back-off is over or that are to be checked."""

    name: str
    """Unlike that of any other mirror."""
    mirrors: Mirrors
    tables: MirrorTables
    elsewhere: Elsewhere
    """Where tables are changed: a commit is a second of Python that would hold up whoever shares it."""
    lake: Lake
    check_every: timedelta
    """How often to look at a table that nothing is to be done to, and to expire its snapshots."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Once it is set, nothing more is begun."""

    async def step(self) -> bool:
        """Do what is due to one table; False if none was due."""
        work = await self.mirrors.claim(self.name)
        if work is None:
            return False
        log = _log.bind(dataset_id=work.dataset.id)
        doing = asyncio.create_task(self._carry_out(work))
        try:
            while not doing.done():
                await asyncio.wait([doing], timeout=LEASE_TTL.total_seconds() / 3)
                if not doing.done():
                    await self.mirrors.renew(work)
            await doing
        except MirrorLostError:
            await asyncio.gather(doing, return_exceptions=True)
            log.warning("mirror_lost")
        except MirrorConflictError:
            log.warning("mirror_conflict")
            await self.mirrors.release(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is written down and tried again
            await self._give_up(work, error)
        return True

    async def _give_up(self, work: MirrorWork, error: Exception) -> None:
        if self.stopping.is_set():
            await self.mirrors.release(work)
            return
        unexpected = None
        if isinstance(error, TooExpensiveError):
            message = f"It took more than {error}."
        elif isinstance(error, MirrorError | ChildDiedError):
            message = str(error)
        else:
            message = f"{type(error).__name__}; the server's log has it."
            unexpected = error
        _log.error("mirror_failed", dataset_id=work.dataset.id, reason=message, exc_info=unexpected)
        try:
            await self.mirrors.failed(work, message)
        except MirrorLostError:
            _log.warning("mirror_lost", dataset_id=work.dataset.id)

    async def _carry_out(self, work: MirrorWork) -> None:
        if work.drop:
            await self._do(self.tables.drop, work.dataset)
            await self.mirrors.dropped(work)
            return
        # The table first and the store second: what is decided then is at least as new as what the table holds.
        state = await self._do(self.tables.look, work.dataset)
        if state is None or state.snapshot_id != work.snapshot_id:
            await self._rebuild(work, state)
            return
        try:
            if work.add or work.remove:
                async with self.lake.readable(_paths(work.add)):
                    state = await self._do(self.tables.sync, work.dataset, state, work.add, work.remove)
        except TypesChangedError:
            await self._rebuild(work, state)
            return
        if work.check:
            state = await self._do(self.tables.clean, work.dataset)
        await self._end(work, state)

    async def _rebuild(self, work: MirrorWork, state: TableState | None) -> None:
        """Make the table hold all that counts: it is gone, or stands elsewhere, or needs other types."""
        work = await self.mirrors.everything(work)
        async with self.lake.readable(_paths(work.add)):
            state = await self._do(self.tables.rebuild, work.dataset, state, work.add)
        await self._end(work, state)

    async def _do(self, work: Callable[[Unpack[_Arguments]], _Result], *args: *_Arguments) -> _Result:
        return await self.elsewhere.run(_call, partial(work, *args))

    async def _end(self, work: MirrorWork, state: TableState | None) -> None:
        await self.mirrors.done(work, state, self.check_every)
        _log.info("mirrored", dataset_id=work.dataset.id, added=len(work.add), removed=len(work.remove))


def _paths(batches: Sequence[MirroredBatch]) -> Iterator[str]:
    return (path for batch in batches for path in batch.files)


def _call(work: partial[_Result]) -> _Result:
    return work()
