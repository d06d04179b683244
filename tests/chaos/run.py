"""A run of chaos: a house on either database, a load, a fire, and the checker's word at the end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, urlsplit

import asyncpg

from profile_export.client import Client
from tests.chaos.checker import began, end_of_attempt, faults
from tests.chaos.ending import Ending, read_ending, read_listed
from tests.chaos.fire import Cuts, Fire, Harm
from tests.chaos.house import Place, free_address
from tests.chaos.load import Load
from tests.chaos.points import OF_SERVERS, OF_WORKERS, Fuse
from tests.chaos.sources import prepare
from tests.chaos.view import STATES, View
from tests.system.line import Line

SERVERS, WORKERS = 2, 3
_QUIET_SECONDS = 180
_LOOK_SECONDS = 0.1
_THRIFTY = ("--threads", "1", "--log-level", "warning")


@dataclass(frozen=True)
class Plan:
    """How much is done to a house: random kills, and which of the named points."""

    seed: str
    kills: int
    points: Callable[[Fuse], bool] = lambda _: True
    until_even: bool = True
    clients: int = 8


@dataclass
class House:
    """The places, and what the house stands on."""

    places: Sequence[Place]
    data_dir: Path
    view: View
    cuts: Cuts | None = None

    @property
    def addresses(self) -> list[str]:
        return [place.address for place in self.places if place.serves]


@dataclass
class Outcome:
    harm: Harm
    ending: Ending
    faults: Sequence[str]


class PostgresCuts:
    """Cuts between each place's process, which has a line and a user of its own, and the database."""

    def __init__(
        self, admin: asyncpg.Connection, lines: Mapping[str, Line], users: Mapping[str, str]
    ) -> None:
        self._admin = admin
        self._lines = lines
        self._users = users

    async def terminate(self, place: Place) -> None:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
        await self._admin.execute(query, self._users[place.name])

    def cut(self, place: Place) -> None:
        self._lines[place.name].cut()

    def go_down(self, place: Place) -> None:
        self._lines[place.name].go_down()

    def come_up(self, place: Place) -> None:
        self._lines[place.name].come_up()


@asynccontextmanager
async def embedded(folder: Path, dice: Random) -> AsyncIterator[House]:
    """One process that does everything, on a SQLite file."""
    address = free_address(dice)
    data_dir = folder / "data"
    words = ["serve", "--data-dir", str(data_dir), "--grpc-address", address, "--workers", "2", *_THRIFTY]
    places = [Place("server", words, folder, address)]
    async with View(data_dir) as view, no_survivors(places):
        yield House(places, data_dir, view)


@asynccontextmanager
async def scaled_out(folder: Path, dice: Random, url: str) -> AsyncIterator[House]:
    """Servers and workers on one PostgreSQL database, which each reaches by a line of its own."""
    data_dir = folder / "data"
    found = urlsplit(url)
    socket = Path(parse_qs(found.query)["host"][0]) / ".s.PGSQL.5432"
    admin = await asyncpg.connect(url)
    places: list[Place] = []
    lines, users = {}, {}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(admin.close)
        view = await stack.enter_async_context(View(url))
        await stack.enter_async_context(no_survivors(places))
        for name in [*(f"server_{n}" for n in range(SERVERS)), *(f"worker_{n}" for n in range(WORKERS))]:
            line = lines[name] = await stack.enter_async_context(Line(socket))
            user = users[name] = f"{found.path.strip('/')}_{name}"
            await admin.execute(f"CREATE ROLE {user} SUPERUSER LOGIN")
            database = f"postgresql://{user}@{line.address}{found.path}?sslmode=disable"
            stands_on = ["--data-dir", str(data_dir), "--database-url", database, *_THRIFTY]
            if name.startswith("server"):
                address = free_address(dice)
                words = ["serve", *stands_on, "--grpc-address", address, "--workers", "0"]
                places.append(Place(name, words, folder, address, works=False))
            else:
                places.append(Place(name, ["worker", *stands_on], folder, serves=False))
        yield House(places, data_dir, view, PostgresCuts(admin, lines, users))


@asynccontextmanager
async def no_survivors(places: Sequence[Place]) -> AsyncIterator[None]:
    """Whatever goes wrong, leave no process."""
    try:
        yield
    finally:
        for place in places:
            if place.running:
                place.running.send(signal.SIGKILL)
                await place.running.over.wait()


async def burn(house: House, folder: Path, plan: Plan) -> Outcome:
    """Set a house on fire under load, wait until all is quiet again, and judge what is there."""
    dice = Random(plan.seed)
    server = house.places[0]
    await server.start()
    sources = await prepare(server.address, folder)
    await server.end()
    load = Load(sources, house.addresses, Random(dice.random()), plan.seed)
    fire = Fire(house.places, house.view, dice, house.cuts)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(plan.clients))
        await fire.at_points(lambda place: [fuse for fuse in fuses_of(place) if plan.points(fuse)])
        await fire.at_random(plan.kills, until_even=plan.until_even)
        load.stop()
        fire.harm.tell("the fire is out")
    fire.harm.tell("every job has ended")
    async with asyncio.timeout(_QUIET_SECONDS):
        while not await house.view.is_quiet():  # noqa: ASYNC110 - other processes make it so
            await asyncio.sleep(_LOOK_SECONDS)
    fire.harm.tell("all is swept")
    async with Client(server.address) as client:
        listed, visible = await read_listed(client, sources.destination)
    codes = await asyncio.gather(*(place.end() for place in house.places))
    ending = await read_ending(house.view, house.data_dir, load.told, listed, visible, folder / "journal")
    wrong = [*faults(ending), *fire.harm.unexplained, *(f"exit code {code}" for code in codes if code)]
    return Outcome(fire.harm, ending, wrong)


def fuses_of(place: Place) -> Sequence[Fuse]:
    return [*(OF_SERVERS if place.serves else ()), *(OF_WORKERS if place.works else ())]


def table(outcome: Outcome) -> str:
    """Say what was done and what became of it."""
    harm, ending = outcome.harm, outcome.ending
    ends = Counter(stored.job.state.value for stored in ending.jobs.values())
    attempts = Counter(stored.job.attempt for stored in ending.jobs.values())
    late = Counter(
        f"{write.doing}: {write.outcome}"
        for write in ending.writes
        if write.job in ending.jobs
        and (over := end_of_attempt(ending.jobs[write.job], write.attempt)) is not None
        and began(write) > over
        and write.doing != "beat"
    )
    lines = [
        f"{harm.at_random} kills at random moments, {harm.at_points.total()} kills and stops at named points",
        "",
        "jobs that were there at a kill, by state",
        *_counted({state: harm.by_state[state] for state in (*STATES, "none")}),
        "named points",
        *_counted(harm.at_points),
        "other harm",
        *_counted(harm.others),
        f"{len(ending.jobs)} jobs, {sum(told.repeated for told in ending.told)} calls repeated",
        *_counted(ends),
        "attempts that they took",
        *_counted({str(number): attempts[number] for number in sorted(attempts)}),
        "writes of former holders",
        *_counted(late),
        f"{len(outcome.faults)} faults",
        *(f"  {fault}" for fault in outcome.faults),
    ]
    return "\n".join(lines) + "\n"


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [*(f"  {name:<40} {count:>5}" for name, count in counts.items()), ""]
