"""The load: clients that create jobs, cancel some of them, and watch each to its end, whatever happens to servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import TypeVar

from profile_export.client import Client, ClientError, ExportJob, JobTransition, WatchJobResponse
from tests.chaos.house import first
from tests.chaos.sources import Kind, Sources, within

_T = TypeVar("_T")
WITH_LIMIT, CANCELLED, WHILE_IT_RUNS, ASKED_TWICE = 0.15, 0.4, 0.7, 0.1
"""How many jobs have a max_run_time, how many are cancelled, how many of those while an attempt runs, and how many are
asked for twice though the answer came."""
_PATIENCE = timedelta(minutes=3)
# What a call answers whose server has gone or has lost its database: asked again, it is the same call.
_TRY_AGAIN = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@dataclass
class Told:
    """What one client was told of one job."""

    request_id: str
    kind: Kind
    limited: bool = False
    job_ids: list[int] = field(default_factory=list)
    repeated: int = 0
    cancel_asked: bool = False
    cancel_accepted: bool = False
    transitions: list[JobTransition] = field(default_factory=list)
    ended: ExportJob | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, message: WatchJobResponse) -> None:
        self.transitions += message.transitions
        if self.transitions and self.transitions[-1].attempt:
            self.begun.set()
        if message.HasField("job"):
            self.ended = message.job
            self.over.set()


class Load:
    """Clients, each with one job after the other until told to stop.

    Args:
        sources: What is exported.
        addresses: Of the servers; a client asks whichever it likes.
        random: Decides what is asked and when it is cancelled.
        name: Keeps the request ids apart from those of other loads.
    """

    def __init__(self, sources: Sources, addresses: Sequence[str], random: Random, name: str) -> None:
        self._sources = sources
        self._addresses = addresses
        self._random = random
        self._name = name
        self._stop = asyncio.Event()
        self.told: list[Told] = []

    def stop(self) -> None:
        """Begin no further job."""
        self._stop.set()

    async def run(self, clients: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._ask_again_and_again())

    async def _ask_again_and_again(self) -> None:
        while not self._stop.is_set():
            told = Told(
                f"{self._name}-{len(self.told)}", self._random.choice([*self._sources.kinds.values()])
            )
            self.told.append(told)
            await self._one(told)

    async def _one(self, told: Told) -> None:
        dice = self._random.random()
        spec = told.kind.spec
        if dice < WITH_LIMIT:
            told.limited = True
            spec = within(told.kind, timedelta(seconds=self._random.uniform(0.5, 12)))
        job_id = (
            await self._until_answered(told, lambda client: client.create_job(spec, told.request_id))
        ).job.id
        told.job_ids.append(job_id)
        if self._random.random() < ASKED_TWICE:
            again = await self._until_answered(told, lambda client: client.create_job(spec, told.request_id))
            told.job_ids.append(again.job.id)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch(told, job_id))
            if dice > 1 - CANCELLED:
                await self._cancel_some_time(told, job_id, watch)

    async def _cancel_some_time(self, told: Told, job_id: int, watch: asyncio.Task[None]) -> None:
        """Cancel at a random moment, most often one at which an attempt runs."""
        if self._random.random() < WHILE_IT_RUNS:
            await first(told.begun, told.over)
        await asyncio.wait([watch], timeout=self._random.uniform(0, 0.5))
        told.cancel_asked = True
        try:
            await self._until_answered(told, lambda client: client.cancel_job(job_id))
        except ClientError as error:
            if error.reason != "JOB_FINISHED":
                raise
        else:
            told.cancel_accepted = True

    async def _watch(self, told: Told, job_id: int) -> None:
        async with Client(self._random.choice(self._addresses), patience=_PATIENCE) as client:
            while told.ended is None:
                seen = told.transitions[-1].revision if told.transitions else 0
                try:
                    async for message in client.watch_job(job_id, seen):
                        told.hear(message)
                except ClientError as error:
                    # A server that was not there at the first call is not waited for.
                    if error.code not in _TRY_AGAIN:
                        raise
                    await asyncio.sleep(0.1)

    async def _until_answered(self, told: Told, ask: Callable[[Client], Awaitable[_T]]) -> _T:
        while True:
            async with Client(self._random.choice(self._addresses)) as client:
                try:
                    return await ask(client)
                except ClientError as error:
                    if error.code not in _TRY_AGAIN:
                        raise
                    told.repeated += 1
            await asyncio.sleep(0.1)
