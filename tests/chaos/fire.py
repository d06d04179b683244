"""The fire: who is killed, stopped or cut off, and when. Every decision is the dice's."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tests.chaos.house import Place, Running, first
from tests.chaos.points import Fuse, How, Needs
from tests.chaos.view import QUEUED, STATES, View

_LOOK_SECONDS = 0.004
"""So often the store is read while a moment is waited for: the shortest phases last some milliseconds."""
_POINT_SECONDS = 60.0
_STATE_SECONDS = 15.0
_TRIES = 4
_DEATHS, _AIMED = 0.8, 0.6
"""How much of the harm at random moments is death, and how much of that seeks out a state that few jobs died in."""
LEAST_OF_EACH = 10
IDLE = "none"


class Cuts(Protocol):
    """Ways to cut a process off its database."""

    async def terminate(self, place: Place) -> None:
        """End its connections at the database."""
        ...

    def cut(self, place: Place) -> None:
        """Break its connections on the way."""
        ...

    def go_down(self, place: Place) -> None:
        """Break them, and let no new one through."""
        ...

    def come_up(self, place: Place) -> None:
        """Let new ones through again."""
        ...


@dataclass
class Harm:
    """What was done so far, and what nobody did and happened nevertheless."""

    at_random: int = 0
    by_state: Counter[str] = field(default_factory=Counter)
    at_points: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def tell(self, what: str) -> None:
        """Say what happens as it happens: the way to what led to a fault."""
        sys.stdout.write(f"{time.monotonic() - self.began:8.1f} s  {what}\n")
        sys.stdout.flush()

    def suspect(self, what: str) -> None:
        """Note what nobody did."""
        self.tell(what)
        self.unexplained.append(what)

    @property
    def rarest(self) -> str:
        """The state in which fewest jobs have lost their process."""
        return min(STATES, key=lambda state: self.by_state[state])

    @property
    def is_even(self) -> bool:
        """Whether jobs of every state have lost their process often enough."""
        return all(self.by_state[state] >= LEAST_OF_EACH for state in STATES)


class Fire:
    """Harms the places of a house, as the dice have it."""

    def __init__(self, places: Sequence[Place], view: View, dice: Random, cuts: Cuts | None) -> None:
        self._places = places
        self._view = view
        self._dice = dice
        self._cuts = cuts
        self.harm = Harm()

    # --- Named points ---

    async def at_points(self, fuses_of: Callable[[Place], Sequence[Fuse]]) -> None:
        """Let processes come to each of these points; no place has one before, and none has one afterwards."""
        queues: dict[tuple[Fuse, ...], list[tuple[Fuse, int]]] = {}
        async with asyncio.TaskGroup() as group:
            for place in self._places:
                fuses = tuple(fuses_of(place))
                # Places that come to the same points share them.
                queue = queues.setdefault(fuses, [(fuse, _TRIES) for fuse in fuses])
                group.create_task(self._burn_all(place, queue))

    async def _burn_all(self, place: Place, queue: list[tuple[Fuse, int]]) -> None:
        while queue:
            fuse, tries = queue.pop(0)
            running = await place.start(fuse)
            if await self._burns(place, running, fuse):
                self.harm.at_points[fuse.name] += 1
                self.harm.tell(f"{place.name}: {fuse.name}")
            elif tries > 1:
                queue.append((fuse, tries - 1))
                self.harm.tell(f"{place.name} did not come to {fuse.point}")
            else:
                self.harm.suspect(f"{place.name} never came to {fuse.point}")
        # Others may still need somebody there to take their jobs over, or to answer.
        await place.start()

    async def _burns(self, place: Place, running: Running, fuse: Fuse) -> bool:
        """Wait until the process comes to its point, and do what the fuse leaves to do; False if it does not."""
        if fuse.needs is Needs.TO_BE_DRAINED and await self._until(
            lambda: self._holds(running), _POINT_SECONDS
        ):
            running.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_POINT_SECONDS):
                await first(running.at_the_point, running.over)
        # It may have died before it was heard.
        if running.at_the_point.is_set() or running.process.exitcode == -signal.SIGKILL:
            if fuse.how is How.KILL:
                await running.over.wait()
                await self._count(place, running)
            else:
                await self._until_lease_is_over(running)
                running.send(signal.SIGCONT)
                await self._retire(running)
            return True
        await self._retire(running)
        return False

    async def _retire(self, running: Running) -> None:
        running.send(signal.SIGTERM)
        await running.over.wait()
        if running.process.exitcode:
            self.harm.suspect(f"a process ended with exit code {running.process.exitcode}")

    # --- Random moments ---

    async def at_random(self, kills: int, *, until_even: bool) -> None:
        """Kill so often at random moments, and harm otherwise in between; all places have a process."""
        async with asyncio.TaskGroup() as keepers:
            out = asyncio.Event()
            for place in self._places:
                keepers.create_task(self._keep(place, out))
            async with asyncio.TaskGroup() as group:
                while self.harm.at_random < kills or (until_even and not self.harm.is_even):
                    if self._dice.random() < _DEATHS:
                        await self._kill()
                    else:
                        await self._harm_otherwise(group)
            out.set()

    async def _keep(self, place: Place, out: asyncio.Event) -> None:
        """Have a process there: start one whenever one is over."""
        while True:
            running = place.running
            if running is None or running.judged.is_set():
                running = await place.start()
            await first(running.over, out)
            if not running.over.is_set():
                return
            if running.hit:
                await self._count(place, running)
            elif running.process.exitcode:
                what = "ended" if running.ready.is_set() else "did not start"
                self.harm.suspect(f"{place.name} {what}: exit code {running.process.exitcode}")
            running.judged.set()

    async def _kill(self) -> None:
        place = await (self._in_rarest_state() if self._dice.random() < _AIMED else self._some_time())
        running = place.running if place else None
        if running and not running.over.is_set():
            running.hit = True
            running.send(signal.SIGKILL)
            await running.judged.wait()
            self.harm.at_random += 1

    async def _in_rarest_state(self) -> Place | None:
        """Wait until a process holds a job of the state of which there were fewest, and choose it."""
        state = self.harm.rarest
        found: list[Place] = []

        async def look() -> bool:
            seen = await self._view.look()
            pids = seen.holders_of(state)
            for place in self._hittable():
                assert place.running
                if place.running.pid in pids or (state == QUEUED and seen.waiting and place.serves):
                    found.append(place)
            return bool(found)

        await self._until(look, _STATE_SECONDS)
        return self._dice.choice(found) if found else None

    async def _some_time(self) -> Place | None:
        """Wait for no matter how long, and choose any process, also one that is just starting."""
        await asyncio.sleep(self._dice.uniform(0, 2))
        alive = [one for one in self._places if one.running and not one.running.over.is_set()]
        return self._dice.choice([one for one in alive if one.running and not one.running.stopped] or [None])

    def _hittable(self) -> list[Place]:
        return [place for place in self._places if place.running and place.running.may_be_hit]

    async def _harm_otherwise(self, group: asyncio.TaskGroup) -> None:
        """Do something that does not kill; what lasts a lease's time goes on beside further harm."""
        workers = [place for place in self._hittable() if place.works]
        if not workers:
            await asyncio.sleep(_LOOK_SECONDS)
            return
        place = self._dice.choice(workers)
        running = place.running
        assert running
        ways: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("stopped past its lease", lambda: self._stop(group, running)),
            ("told to stop", lambda: self._drain(running)),
        ]
        if cuts := self._cuts:
            ways += [
                ("cut off by the database", lambda: cuts.terminate(place)),
                ("cut off on the way", lambda: _at_once(cuts.cut, place)),
                ("cut off past its lease", lambda: self._cut_off(group, cuts, place, running)),
            ]
        name, harm = self._dice.choice(ways)
        self.harm.others[name] += 1
        self.harm.tell(f"{place.name}: {name}")
        await harm()

    async def _stop(self, group: asyncio.TaskGroup, running: Running) -> None:
        running.stopped = True
        running.send(signal.SIGSTOP)

        async def go_on() -> None:
            await self._until_lease_is_over(running)
            running.stopped = False
            running.send(signal.SIGCONT)

        group.create_task(go_on())

    async def _drain(self, running: Running) -> None:
        running.send(signal.SIGTERM)
        await running.judged.wait()

    async def _cut_off(self, group: asyncio.TaskGroup, cuts: Cuts, place: Place, running: Running) -> None:
        running.stopped = True
        cuts.go_down(place)

        async def come_up() -> None:
            await self._until_lease_is_over(running)
            cuts.come_up(place)
            running.stopped = False

        group.create_task(come_up())

    # --- What the store says ---

    async def _count(self, place: Place, running: Running) -> None:
        """Count a kill by the states of the jobs that the process has left."""
        seen = await self._view.look()
        states = {*seen.held.get(running.pid, ())}
        if place.serves and seen.waiting:
            states.add(QUEUED)
        self.harm.by_state.update(states or {IDLE})
        self.harm.tell(f"{place.name}: killed, jobs left: {', '.join(sorted(states)) or IDLE}")

    async def _holds(self, running: Running) -> bool:
        return running.over.is_set() or running.pid in (await self._view.look()).held

    async def _until_lease_is_over(self, running: Running) -> None:
        """Wait until nothing is held by a process any more, as far as others are there to take it."""

        async def is_over() -> bool:
            return running.over.is_set() or not await self._view.is_led_by(running.pid)

        await self._until(is_over)

    async def _until(self, asked: Callable[[], Awaitable[bool]], seconds: float = math.inf) -> bool:
        """Ask until the answer is yes, but not for ever."""
        over = time.monotonic() + seconds
        while not (yes := await asked()) and time.monotonic() < over:  # noqa: ASYNC110 - others make it so
            await asyncio.sleep(_LOOK_SECONDS)
        return yes


async def _at_once(harm: Callable[[Place], None], place: Place) -> None:
    harm(place)
