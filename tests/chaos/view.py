"""What the store holds while it is under fire, read beside the processes that write it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import func, select

from profile_export.domain.job import JobState, Phase
from profile_export.store.db.database import database_time
from profile_export.store.db.postgresql import PostgresDatabase
from profile_export.store.db.sqlite import SqliteFile
from profile_export.store.db.tables import dropped_folders, job_stamps, jobs, leases
from tests.databases import Place

IN_PROCESSING = tuple(phase.value for phase in (Phase.PLAN, Phase.RESOLVE, Phase.RUN, Phase.COMMIT))
QUEUED, CANCELLING = "queue", "cancelling"
STATES = (QUEUED, *IN_PROCESSING, CANCELLING)
"""Where an unfinished job can stand."""


@dataclass(frozen=True)
class Seen:
    """Where the unfinished jobs stand: those that wait, and those that each process holds, by its id."""

    waiting: int
    held: Mapping[int, Sequence[str]]

    def holders_of(self, state: str) -> list[int]:
        return [pid for pid, states in self.held.items() if state in states]


class View:
    """A reader of the store, beside whoever has it open."""

    def __init__(self, place: Place) -> None:
        self._is_shared = isinstance(place, str)
        self.engine = (SqliteFile(place) if isinstance(place, Path) else PostgresDatabase(place)).reader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engine.dispose()

    async def look(self) -> Seen:
        stamps = job_stamps.alias()
        newest = select(func.max(stamps.c.key)).where(stamps.c.job_id == jobs.c.id).scalar_subquery()
        led = (
            select(jobs.c.state, leases.c.worker, job_stamps.c.phase)
            .join(leases, leases.c.job_id == jobs.c.id)
            .join(job_stamps, job_stamps.c.key == newest)
        )
        waiting = select(func.count()).select_from(jobs).where(jobs.c.state == JobState.NEW.value)
        held: dict[int, list[str]] = defaultdict(list)
        async with self.engine.begin() as connection:
            for row in await connection.execute(led):
                pid = int(row.worker.split("-")[0])
                held[pid].append(CANCELLING if row.state == JobState.CANCELLING else row.phase)
            return Seen((await connection.execute(waiting)).scalar_one(), held)

    async def is_led_by(self, pid: int) -> bool:
        """Tell whether a process leads a job: until its lease is over, or is taken where others are there to do so."""
        led = leases.c.worker.like(f"{pid}-%")
        async with self.engine.begin() as connection:
            query = select(func.count()).select_from(leases).where(led)
            if not self._is_shared:
                query = query.where(leases.c.expire_time > await database_time(connection))
            return (await connection.execute(query)).scalar_one() > 0

    async def is_quiet(self) -> bool:
        """Tell whether every job has ended, and the sweeper has been wherever an attempt has written."""
        final = [state.value for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)]
        unfinished = select(func.count()).select_from(jobs).where(jobs.c.state.not_in(final))
        unswept = (
            select(func.count()).select_from(dropped_folders).where(dropped_folders.c.batch_key.is_not(None))
        )
        async with self.engine.begin() as connection:
            return not any(
                [(await connection.execute(query)).scalar_one() for query in (unfinished, unswept)]
            )
