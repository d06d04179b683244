"""One plot for all promises: jobs that make every kind of move while watchers come, go, and lose their servers."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from profile_export.app import server
from profile_export.domain import job as moves
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.runner import worker
from profile_export.store.db.tables import job_transitions
from profile_export.v1 import export_service_pb2 as es
from tests.databases import Place, engine_of
from tests.watch.history import Drain, History, Log, Move
from tests.watch.scripted import Script, Scripts
from tests.watch.servers import Servers
from tests.watch.watcher import Habits, Watcher

ORG = "promises"
CROWD = 50
LONGEST_SECONDS = 90
RACES = 3
RACERS = 5
LONG_TEXT = "No. " * 50_000
"""An error that no window of flow control holds: whoever does not read it holds its stream up at once."""
NARROW = (("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0))


@dataclass
class Recorded:
    """What a scenario left: histories, those of whom a stalled reader might have held up, and what really happened.

    It is not whole if something that the plot waited for never came.
    """

    is_whole: bool = True
    histories: list[History] = field(default_factory=list)
    stalled: list[History] = field(default_factory=list)
    beside_stalled: list[History] = field(default_factory=list)
    drains: list[Drain] = field(default_factory=list)
    logs: dict[int, Log] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    id: int
    script: Script


class Turns:
    """The pace of slow readers: a message for each turn of the plot, until its end."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self._is_over = False

    async def __call__(self) -> None:
        if not self._is_over:
            await self._next.wait()

    def next(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    def end(self) -> None:
        self._is_over = True
        self._next.set()


async def play(place: Place, data_dir: Path, seed: int) -> Recorded:
    """Play the plot on a store and record it. The same seed draws the same dice; the timing is the machine's."""
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(worker, "HEARTBEAT_SECONDS", 0.3)
        hurry.setattr(worker, "POLL_SECONDS", 0.1)
        hurry.setattr(moves, "FIRST_BACK_OFF", timedelta(milliseconds=20))
        # Nobody uploads or queries here: no child need load the libraries for that, which takes longer than the plot.
        hurry.setattr(server, "ingest", gc.isenabled)
        hurry.setattr(DuckDbEngine, "start", _stay_cold)
        scripts = Scripts()
        shared = isinstance(place, str)
        servers = Servers(data_dir, place if isinstance(place, str) else None, scripts, ORG)
        plot = _Plot(servers, scripts, seed, shared=shared)
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await plot.play()
        except TimeoutError:
            # Perhaps somebody was not woken: the promises are checked on what there is, and say so.
            plot.recorded.is_whole = False
        finally:
            await plot.stop()
    plot.recorded.logs = await _logs(place)
    return plot.recorded


async def _stay_cold(_engine: DuckDbEngine) -> None:
    """Start no child before there is something to do."""


class _Plot:
    def __init__(self, servers: Servers, scripts: Scripts, seed: int, *, shared: bool) -> None:
        self.recorded = Recorded()
        self._servers, self._scripts, self._seed, self._shared = servers, scripts, seed, shared
        self._dice = random.Random(seed)
        self._turns = Turns()
        self._watching: dict[asyncio.Task[History], Watcher] = {}

    async def play(self) -> None:
        await self._open()
        held = succeeding, failing, cancelled = [await self._create() for _ in range(3)]
        for job in held:
            self._surround(job)
        await self._advance(*held)
        await self._retry(succeeding, "Not yet.")
        await self._retry(failing, LONG_TEXT)
        await self._advance(*held)
        # Every worker is held now, so nobody claims what is made here.
        await self._cancel_before_a_crowd()
        for _ in range(RACES):
            await self._race()
        await self._restart(held)
        await self._advance(*held)
        await self._cancel(cancelled)
        await self._retry(succeeding, "Not yet either.")
        await self._advance(succeeding)
        succeeding.script.finish()
        await self._fail_beside_a_reader_that_stalls(failing)
        await asyncio.gather(*self._watching)
        await self._probe()

    async def stop(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._servers.stop()

    # --- Acts ---

    async def _open(self) -> None:
        """One server of three workers, or two that have as many together."""
        if self._shared:
            await self._servers.start("A", workers=2)
            await self._servers.start("B", workers=1)
        else:
            await self._servers.start("A", workers=3)

    async def _create(self) -> Job:
        caller = self._servers.caller(self._server())
        job = await caller.job(await caller.dataset("union"))
        return Job(job.id, self._scripts.of_batch[job.batch_id])

    async def _advance(self, *jobs: Job) -> None:
        """Have attempts report progress, and slow readers read a message after each."""
        for job in jobs:
            await job.script.running.wait()
            done = 0
            for _ in range(self._dice.randint(1, 4)):
                done += self._dice.randint(0, 200)
                job.script.advance(done)
                self._turns.next()

    async def _retry(self, job: Job, message: str) -> None:
        job.script.fail(message, retryable=True)
        self._turns.next()
        await job.script.running.wait()

    async def _cancel(self, job: Job) -> None:
        caller = self._servers.caller(self._server())
        await caller.exports.CancelJob(es.CancelJobRequest(job_id=job.id), metadata=caller.metadata)
        self._turns.next()

    async def _cancel_before_a_crowd(self) -> None:
        job = await self._create()
        self._surround(job)
        crowd = [self._watch(f"one of a crowd, {number}", job, Habits()) for number in range(CROWD)]
        await asyncio.gather(*(one.has_begun.wait() for one in crowd))
        await self._cancel(job)

    async def _race(self) -> None:
        """Cancel a job while its watchers are about to register, or to read."""
        job = await self._create()
        starts = [None, *(self._dice.choice([None, 0, 1]) for _ in range(RACERS))]
        racers = [
            self._watch(f"racer {number}", job, Habits(start=start)) for number, start in enumerate(starts)
        ]
        told_at_once = [racer for racer, start in zip(racers, starts, strict=True) if start != 1]
        await self._dice.choice(told_at_once).has_begun.wait()
        await self._cancel(job)

    async def _restart(self, jobs: Sequence[Job]) -> None:
        """Drain the first server while all jobs run, and start it anew."""
        self.recorded.drains.append(await self._servers.drain("A"))
        self._turns.next()
        await self._servers.start("A again", workers=2 if self._shared else 3)
        await asyncio.gather(*(job.script.running.wait() for job in jobs))

    async def _fail_beside_a_reader_that_stalls(self, job: Job) -> None:
        beside = {task: one for task, one in self._watching.items() if one.history.job_id == job.id}
        read_on = asyncio.Event()

        async def stall() -> None:
            await read_on.wait()

        stalled = self._watch("one that stalls", job, Habits(is_slow=True, pace=stall, options=NARROW))
        await stalled.is_answered.wait()
        await self._advance(job)
        await self._retry(job, "No.")
        await self._advance(job)
        job.script.fail("No, for the last time.", retryable=False)
        self._let_slow_ones_read_on()
        await asyncio.gather(*beside)
        stalled.history.slow_until = time.time()
        read_on.set()
        self.recorded.stalled.append(stalled.history)
        self.recorded.beside_stalled += [one.history for one in beside.values()]

    async def _probe(self) -> None:
        """Watch what is over from every revision, and from one too many."""
        ends = {one.history.job_id: one.history.revision or 0 for one in self._watching.values()}
        probes = [
            self._watch(f"probe from {start}", Job(job_id, Script()), Habits(start=start))
            for job_id, end in list(ends.items())[:4]
            for start in (None, *range(end + 2))
        ]
        assert probes
        await asyncio.gather(*self._watching)

    # --- Watchers ---

    def _let_slow_ones_read_on(self) -> None:
        self._turns.end()
        for one in self._watching.values():
            if one.paced_by is self._turns:
                one.history.slow_until = time.time()

    def _surround(self, job: Job) -> None:
        """Have watchers of all habits come to a job."""
        for name, habits in (
            ("one that stays", Habits()),
            ("one that stays, from the start", Habits(start=0)),
            ("one that breaks", Habits(unrest=10)),
            ("one that breaks, from the start", Habits(start=0, unrest=10)),
            ("one that forgets", Habits(start=0, unrest=10, hops=True)),
            ("a slow one", Habits(start=0, is_slow=True, pace=self._turns)),
            ("a slow one that breaks", Habits(is_slow=True, pace=self._turns, unrest=4)),
        ):
            self._watch(name, job, habits)

    def _watch(self, name: str, job: Job, habits: Habits) -> Watcher:
        watcher = Watcher(name, job.id, self._servers, habits, self._seed, ORG)
        self.recorded.histories.append(watcher.history)
        self._watching[asyncio.create_task(watcher.run())] = watcher
        return watcher

    def _server(self) -> str:
        return self._dice.choice(self._servers.names)


async def _logs(place: Place) -> dict[int, Log]:
    """Read what has happened to all jobs from the store itself."""
    engine = engine_of(place)
    logs: dict[int, Log] = {}
    query = select(job_transitions).order_by(job_transitions.c.job_id, job_transitions.c.revision)
    async with engine.connect() as connection:
        for row in await connection.execute(query):
            move = Move(
                row.revision,
                (row.from_state or "unspecified").upper(),
                row.to_state.upper(),
                row.attempt,
                row.reason,
                row.time.timestamp(),
            )
            logs[row.job_id] = (*logs.get(row.job_id, ()), move)
    await engine.dispose()
    return logs
