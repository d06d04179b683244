"""The supervisor of child processes: whose turn it is, what work may take, and how it ends."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from profile_export.domain.catalog.batches import RowError
from profile_export.domain.errors import DomainError, FailedPreconditionError, InvalidArgumentError
from profile_export.domain.schemas.xdm_places import SchemaInvalidError
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import RowsRefusedError
from profile_export.processes.messages import (
    NO_LIMITS,
    Ask,
    ChildDiedError,
    Hold,
    Limits,
    Run,
    Say,
    TooExpensiveError,
    WorkFailedError,
)
from profile_export.processes.supervisor import Pool, Supervisor, WarmChildren
from profile_export.processes.turns import FairTurns
from tests.contract.ingesting import CRM, Uploader

SECOND = Limits(seconds=1)


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


@pytest_asyncio.fixture(scope="module")
async def pool() -> AsyncIterator[Pool]:
    supervisor = Supervisor()
    yield Pool(supervisor, most=2, warm_for=ingest)
    await supervisor.close()


# --- Work, as a child imports it ---


def pid(_task: object) -> int:
    return os.getpid()


def opened_for_reading(path: Path) -> str:
    return path.read_text()


def spin(_task: object) -> NoReturn:
    while True:
        pass


class ReadGuest:
    """Is made when somebody has opened a pipe and closed it again."""

    def __init__(self, path: Path, _say: Say) -> None:
        path.read_text()

    def answer(self, _request: object) -> int:
        return os.getpid()


def spin_from(began: Path) -> NoReturn:
    began.touch()
    spin(None)


def hold_the_interpreter_from(began: Path) -> int:
    began.touch()
    return hold_the_interpreter(None)


def hold_the_interpreter(_task: object) -> int:
    return len(str(7 ** (10**8)))  # one instruction of minutes, in which no other thread runs


def grow(step: int) -> NoReturn:
    held = []
    while True:
        held.append(b"x" * step)


def take_at_once(size: int) -> int:
    return len(bytearray(size))


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def end_with_words(count: int) -> None:
    print("terminate called", "\u2620" * count, file=sys.stderr, flush=True)  # noqa: T201 - the words
    end_by(signal.SIGABRT)


def fail_with(error: BaseException) -> NoReturn:
    raise error


class UnportableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Panic(BaseException):
    pass


def fail_unportably(kind: str) -> NoReturn:
    raise UnportableError(1, 2) if kind == "exception" else Panic("of an extension")


def lambda_of(_task: object) -> Any:
    return lambda: None


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@asynccontextmanager
async def blocked(path: Path, pool: Pool, whose: object = None) -> AsyncIterator[asyncio.Task[str]]:
    """Work that is known to be under way, and goes on to its end behind the context unless something ends it."""
    os.mkfifo(path)
    working = asyncio.create_task(pool.run(opened_for_reading, path, whose))
    # Opening a pipe for writing waits until the child has it open for reading: then it is at work.
    with await asyncio.to_thread(path.open, "wb"):
        yield working
    with suppress(ChildDiedError, asyncio.CancelledError):
        await working


def is_gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


# --- What comes back ---


async def test_an_upload_is_ingested_in_a_child_process(uploader: Uploader, pool: Pool) -> None:
    result = await pool.run(ingest, uploader.task([{"crmId": "1"}], CRM))

    assert uploader.values(result) == [{"crmId": "1"}]
    assert await pool.run(pid, None) != os.getpid()


async def test_children_stay_warm(pool: Pool) -> None:
    assert await pool.run(pid, None) == await pool.run(pid, None)


async def test_a_refusal_comes_back_whole(uploader: Uploader, pool: Pool) -> None:
    with pytest.raises(RowsRefusedError) as refused:
        await pool.run(ingest, uploader.task([{"n": 1}, {"crmId": "1", "a": [1, "x"]}], CRM))

    assert [error.row for error in refused.value.rows] == [1, 2]
    assert refused.value.rows[1].message == "The field 'a[]' is string, but it is known as double."


@pytest.mark.parametrize(
    "error",
    [
        SchemaInvalidError("/a", "type", "it is not.", "d"),
        FailedPreconditionError("A_B", "Not now.", metadata={"id": "7"}),
        InvalidArgumentError.of_field("f", "is wrong.", path="x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refusal_of_the_domain_comes_back_as_it_was_raised(pool: Pool, error: DomainError) -> None:
    with pytest.raises(type(error)) as raised:
        await pool.run(fail_with, error)

    came = raised.value
    assert (came.reason, came.message, came.metadata) == (error.reason, error.message, error.metadata)
    assert came.violations == error.violations
    assert vars(came).keys() - vars(error).keys() == {"__notes__"}


@pytest.mark.parametrize("kind", ["exception", "panic"])
async def test_what_cannot_travel_is_told_in_words(pool: Pool, kind: str) -> None:
    with pytest.raises(WorkFailedError) as raised:
        await pool.run(fail_unportably, kind)

    assert str(raised.value) in {"UnportableError: 1 and 2", "Panic: of an extension"}
    assert "fail_unportably" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("work", "task"), [(lambda_of, None), (nested, 100_000)], ids=["no name", "too deep"]
)
async def test_a_result_that_cannot_travel_is_an_error_and_the_child_lives_on(
    pool: Pool, work: Any, task: Any
) -> None:
    before = await pool.run(pid, None)

    with pytest.raises(Exception, match=r"pickle|recursion"):
        await pool.run(work, task)

    assert await pool.run(pid, None) == before


async def test_a_child_stands_back_as_far_as_it_is_told() -> None:
    supervisor = Supervisor()

    assert await Pool(supervisor, niceness=7).run(os.nice, 0) == os.nice(0) + 7
    await supervisor.close()


def test_a_refusal_survives_the_way_between_processes() -> None:
    error = RowsRefusedError((RowError(3, "JSON_INVALID", "The row is not JSON."),), 7)

    copy = pickle.loads(pickle.dumps(error))

    assert (copy.rows, copy.rejected_rows) == (error.rows, 7)
    assert str(copy) == "row 3: The row is not JSON."


# --- Limits ---


@pytest.mark.parametrize(
    ("work", "task", "limits", "told"),
    [
        pytest.param(spin, None, Limits(seconds=0.2), "0 seconds", id="by the clock"),
        pytest.param(time.sleep, 60, Limits(seconds=0.2), "0 seconds", id="asleep"),
        pytest.param(spin, None, Limits(cpu_seconds=0.2), "0 seconds of processor time", id="processor"),
        pytest.param(
            hold_the_interpreter,
            None,
            Limits(cpu_seconds=0.2),
            "0 seconds of processor time",
            id="one instruction",
        ),
        pytest.param(grow, 10**6, Limits(memory_bytes=10**8), "100 MB of memory", id="memory"),
        pytest.param(take_at_once, 10**12, Limits(memory_bytes=10**8), "100 MB of memory", id="all at once"),
    ],
)
async def test_work_that_takes_too_much_is_ended_and_says_of_what(
    pool: Pool, work: Any, task: Any, limits: Limits, told: str
) -> None:
    with pytest.raises(TooExpensiveError, match=f"^{told}$"):
        await pool.run(work, task, None, limits)

    assert await pool.run(len, "next") == 4


@pytest.mark.slow  # the system counts in whole seconds
async def test_the_system_ends_what_uses_the_processor_while_nobody_can_look(
    pool: Pool, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    await pool.run(pid, None)  # imports what the work is of, which takes longer than it may
    working = asyncio.create_task(pool.run(spin_from, began, None, Limits(cpu_seconds=0.1)))
    while not began.exists():  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)

    time.sleep(4)  # noqa: ASYNC251 - the loop is held up, which is the point

    with pytest.raises(TooExpensiveError, match="processor time"):
        await working


async def test_what_one_piece_of_work_used_is_not_counted_against_the_next(pool: Pool) -> None:
    limits = Limits(seconds=60, cpu_seconds=1, memory_bytes=10**9)
    await pool.run(pid, None)  # imports what the work is of
    for _ in range(4):
        await pool.run(_use_the_processor, 0.3, None, limits)


def _use_the_processor(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


async def test_a_child_that_is_ended_when_its_work_was_just_done_works_for_nobody_else() -> None:
    supervisor = Supervisor()
    children = WarmChildren(supervisor, most=1, ready=None, reserve_after=60)
    work = Run(pid, None, NO_LIMITS)

    async with children.one() as ended:
        await ended.ask(work)
        ended.end_for(TooExpensiveError("1 second"))

    async with children.one() as other:
        assert await other.ask(work) != ended.process_id
    await supervisor.close()


@pytest.mark.parametrize("number", [1, 2])
async def test_callers_who_do_not_wait_for_a_child_leave_one_that_is_starting(
    tmp_path: Path, number: int
) -> None:
    supervisor, path = Supervisor(), tmp_path / "pipe"
    os.mkfifo(path)
    children = WarmChildren(supervisor, most=1, ready=Hold(ReadGuest, path), reserve_after=60)

    for _ in range(number):
        impatient = asyncio.create_task(children.one().__aenter__())
        while not children.all:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
    async with asyncio.timeout(10):
        while not children.all:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0)
    (starting,) = children.all
    with await asyncio.to_thread(path.open, "wb"):
        pass

    async with children.one() as child:
        assert child is starting
        assert await child.ask(Ask(None)) == child.process_id
    await supervisor.close()


# --- Ends ---


@pytest.mark.parametrize(
    ("number", "is_crash"),
    [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGSEGV, True), (signal.SIGABRT, True)],
)
async def test_a_child_that_dies_ends_its_work_alone_and_says_whether_it_broke(
    tmp_path: Path, pool: Pool, number: signal.Signals, *, is_crash: bool
) -> None:
    async with blocked(tmp_path / "pipe", pool, "another") as other:
        with pytest.raises(ChildDiedError, match="has ended") as died:
            await pool.run(end_by, int(number), "one")

        assert died.value.is_crash == is_crash
        assert await pool.run(len, "next", "one") == 4
        assert not other.done()
    assert await other == ""


async def test_the_last_words_of_a_child_are_a_line_of_the_log_however_many_they_are(pool: Pool) -> None:
    with capture_logs() as said, pytest.raises(ChildDiedError):
        await pool.run(end_with_words, 1_000_000)

    assert {(line["event"], line["log_level"]) for line in said} == {("child_said", "warning")}
    assert said[0]["text"].startswith("terminate called")
    assert sum(len(line["text"]) for line in said) < 100_000


async def test_work_whose_caller_is_cancelled_is_ended(tmp_path: Path, pool: Pool) -> None:
    before = await pool.run(pid, None)
    async with blocked(tmp_path / "pipe", pool) as working:
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    assert is_gone(before)
    assert await pool.run(len, "next") == 4


async def test_a_supervisor_that_is_closed_ends_everything_in_the_middle(tmp_path: Path) -> None:
    supervisor = Supervisor()
    mine = Pool(supervisor)
    at_work = await mine.run(pid, None)
    async with blocked(tmp_path / "pipe", mine) as working:
        await supervisor.close()

        with pytest.raises(ChildDiedError):
            await working
    assert is_gone(at_work)
    with pytest.raises(ChildDiedError):
        await mine.run(pid, None)


@pytest.mark.parametrize("is_at_work", [True, False], ids=["at work", "idle"])
def test_a_child_ends_with_its_parent(tmp_path: Path, *, is_at_work: bool) -> None:
    program = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from profile_export.processes.supervisor import Pool, Supervisor\n"
        "from tests.contract.test_processes import hold_the_interpreter_from, pid\n"
        "async def main():\n"
        "    pool = Pool(Supervisor())\n"
        "    print(await pool.run(pid, None), flush=True)\n"
        "    for began in map(Path, sys.argv[1:]):\n"
        "        working = asyncio.create_task(pool.run(hold_the_interpreter_from, began))\n"
        "        while not began.exists(): await asyncio.sleep(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", program, *([tmp_path / "began"] if is_at_work else [])],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    child = int(parent.stdout)

    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(child)
        ended, _, _ = select.select([descriptor], [], [], 20)
        os.close(descriptor)
        assert ended


# --- Whose turn it is ---


class Row:
    """Those who wait for a place, and the order in which they got one."""

    def __init__(self, places: int) -> None:
        self.turns = FairTurns(places)
        self.got: list[str] = []
        self.ends: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, *names: str) -> None:
        for name in names:
            self.tasks.append(asyncio.create_task(self._take(name)))
        await settle()

    async def _take(self, name: str) -> None:
        async with self.turns.taken(name[0]):
            self.got.append(name)
            end = asyncio.Event()
            self.ends[name] = [end]
            await end.wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name][0].set()
            await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_has_none_goes_first_and_all_go_round_robin() -> None:
    row = Row(1)
    await row.join("a1", "a2", "a3", "b1", "c1", "b2")

    for _ in range(5):
        await row.end(row.got[-1])

    assert row.got == ["a1", "b1", "c1", "a2", "b2", "a3"]
    await row.end("a3")


@pytest.mark.parametrize("places", [2, 3, 8])
async def test_nobody_takes_the_last_place_beside_his_own(places: int) -> None:
    row = Row(places)
    await row.join(*(f"a{number}" for number in range(20)))
    assert len(row.got) == places - 1

    await row.join("b1")
    assert row.got[-1] == "b1"

    await row.end("b1")
    assert len(row.got) == places
    while len(row.ends) < 21 or any(not end.is_set() for [end] in row.ends.values()):
        await row.end(*(name for name, [end] in tuple(row.ends.items()) if not end.is_set()))
    assert len(row.got) == 21


async def test_who_leaves_the_row_or_his_place_makes_room() -> None:
    row = Row(1)
    await row.join("a1", "b1", "c1")

    row.tasks[1].cancel()
    row.tasks[0].cancel()
    await settle()

    assert row.got == ["a1", "c1"]
    await row.end("c1")
    await row.join("d1")
    assert row.got[-1] == "d1"
    await row.end("d1")


async def test_a_slow_file_of_one_tenant_does_not_keep_anothers_waiting(
    uploader: Uploader, pool: Pool, tmp_path: Path
) -> None:
    task = uploader.task([{"crmId": "1"}], CRM)
    async with blocked(tmp_path / "pipe", pool, "slow"):
        more = [asyncio.create_task(pool.run(pid, None, "slow")) for _ in range(20)]
        await settle()

        result = await pool.run(ingest, replace(task, folder=tmp_path / "other"), "quick")

        assert result.rows == 1
        assert not any(one.done() for one in more)
    await asyncio.gather(*more)
