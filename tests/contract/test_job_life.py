"""Jobs driven in random orders, by callers, workers, former workers and time, against a model of DESIGN §5."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy import Column, Connection, Row, Table, create_engine, delete, select, text

from profile_export.domain import job as job_rules
from profile_export.domain.catalog.batches import BatchState, DataFile
from profile_export.domain.errors import AlreadyExistsError, FailedPreconditionError
from profile_export.domain.export.plan import ExportCounts, ExportPlan, plan_export
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import FINAL_STATES, Job, JobError, JobState, JobView, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.store.db.tables import (
    batches,
    dropped_folders,
    files,
    job_ranges,
    job_stamps,
    job_transitions,
    jobs,
    leases,
    receipts,
)
from profile_export.store.jobs import attempts as attempts_of_store
from profile_export.store.jobs import expiries as timeouts_of_store
from profile_export.store.jobs.attempts import Claim, Fence, LeaseLostError, RangeDone
from profile_export.store.jobs.expiries import Timeouts
from profile_export.store.jobs.jobs import NewJob
from tests.contract.job_model import Model
from tests.contract.test_store import TENANT, UNION, Store
from tests.databases import Place

T = TypeVar("T")
HOUR = timedelta(hours=1)
PICKS = st.integers(0, 5)
ROWS = 3
MOST_JOBS = 4
TIMES = {
    jobs: ("create_time", "update_time", "end_time", "deadline", "not_before"),
    job_transitions: ("time",),
    job_stamps: ("time",),
    leases: ("expire_time",),
}
TABLES = (jobs, job_transitions, job_stamps, leases, job_ranges, batches, files, receipts, dropped_folders)
# Plans and receipts take long to read.
LOOKED_AT = {
    table: [column for column in table.c if column.name not in {"bound", "plan", "notes", "receipt"}]
    for table in TABLES
}
PHASES = (Phase.RESOLVE, Phase.RUN, Phase.COMMIT)
REFUSALS = (LeaseLostError, FailedPreconditionError, AlreadyExistsError)
HOLDER_DOES = (
    "heartbeat",
    "state_of",
    "begin_phase",
    "record_range",
    "commit",
    "retry",
    "fail",
    "release",
    "let_go",
)
ANYBODY_DOES = ("cancel", "claim", "lapse")


def step(what: str, weight: int, /, **arguments: st.SearchStrategy[Any]) -> list[st.SearchStrategy[Any]]:
    return [st.tuples(st.just(what), st.fixed_dictionaries(arguments))] * weight


STEPS = st.one_of(
    *step("create", 2, request_id=st.sampled_from(["", "a", "b"]), limit=st.sampled_from([None, 1, 2])),
    *step("claim", 4, who=PICKS),
    *step("cancel", 1, which=PICKS),
    *step("work", 3, which=PICKS, commits=st.booleans()),
    *step("hold", 3, what=st.sampled_from(HOLDER_DOES), which=PICKS),
    *step("come_back_too_late", 3, which=PICKS),
    *step("time_passes", 4, passed=st.integers(1, 2), beats=st.booleans(), ends=st.booleans()),
    *step("lose_all", 1),
    *step(
        "two_at_once",
        4,
        what=st.sampled_from(HOLDER_DOES),
        which=PICKS,
        beside=st.sampled_from(ANYBODY_DOES + HOLDER_DOES),
        whose=PICKS,
        held_first=st.booleans(),
    ),
)


@dataclass(frozen=True)
class Call:
    """The same call of the store and of the model."""

    of_store: Callable[[], Awaitable[Any]]
    of_model: Callable[[Model], Any]


class Processes:
    """Those who use a store, each with a `Database` of its own where the database lets it have one."""

    def __init__(self, place: Place, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.caller = Store(place)
        shared = self.caller.database.is_shared
        self.worker = Store(place) if shared else self.caller
        self.timeouts = Timeouts(self.worker.database)
        self.destination = ""
        # SQLite's rows are looked at without threads, which takes a fifth of the time.
        self._file = create_engine(f"sqlite:///{place}/store.sqlite") if isinstance(place, Path) else None

    def on_tables(self, work: Callable[[Connection], T]) -> T:
        """Do something with the tables themselves."""
        if self._file:
            with self._file.begin() as connection:
                return work(connection)
        return self.runner.run(self._on_shared_tables(work))

    async def _on_shared_tables(self, work: Callable[[Connection], T]) -> T:
        async with self.caller.database.write() as connection:
            return await connection.run_sync(work)

    async def open(self) -> None:
        for store in {self.caller, self.worker}:
            await store.database.open()
        self.destination = await self.caller.dataset(UNION)

    async def close(self) -> None:
        if self._file:
            self._file.dispose()
        for store in {self.caller, self.worker}:
            await store.database.close()

    def forget_all_jobs(self) -> None:
        def forget(connection: Connection) -> None:
            for table in reversed(TABLES):
                connection.execute(delete(table))

        self.on_tables(forget)

    def hours_pass(self, passed: int) -> None:
        """Move all that has happened back: nobody could tell that from waiting."""
        micros = passed * HOUR // timedelta(microseconds=1)

        def move(connection: Connection) -> None:
            for table, columns in TIMES.items():
                earlier = ", ".join(f"{column} = {column} - {micros}" for column in columns)
                connection.execute(text(f"UPDATE {table.name} SET {earlier}"))

        self.on_tables(move)


class JobLife(RuleBasedStateMachine):
    """Whoever may touch a job does, in any order; what the store answers and holds is what the model says.

    A rule that finds nobody to act does nothing. It is no precondition, since what comes next must not depend on which
    of two calls the store let win.
    """

    def __init__(self, runner: asyncio.Runner, processes: Processes) -> None:
        super().__init__()
        self.runner, self.processes = runner, processes
        self.model = Model()
        self.claims: dict[Fence, Claim] = {}
        self.plans: dict[int, ExportPlan] = {}
        self.numbers = count(1)

    @initialize()
    def begin(self) -> None:
        self.processes.forget_all_jobs()
        self.create("", None)
        self.claim(0)

    # One rule: hypothesis leaves out some of several at random, and most that can go wrong takes all of them.
    @rule(step=STEPS)
    def go_on(self, step: tuple[str, dict[str, Any]]) -> None:
        what, arguments = step
        getattr(self, what)(**arguments)

    # --- What happens ---

    def create(self, request_id: str, limit: int | None) -> None:
        if len(self.model.jobs) == MOST_JOBS:
            return
        batch_id = f"batch-{next(self.numbers)}"
        max_run_time = None if limit is None else limit * HOUR
        request = ExportRequest(self.processes.destination, max_run_time=max_run_time)
        folders = {batch_id: f"{self.processes.destination}/{batch_id}"}
        new = NewJob(BoundRequest(request, BUILT_IN_POLICY), request_id, folders)

        answer = self.runner.run(outcome(created(self.processes.caller.jobs.create(TENANT, new))))

        made = answer[0] if isinstance(answer, tuple) else -1
        assert answer == self.model.create(made, batch_id, request_id, limit)

    def claim(self, who: int) -> None:
        self.one(self.call("claim", who))

    def cancel(self, which: int) -> None:
        self.one(self.call("cancel", which))

    def work(self, which: int, *, commits: bool) -> None:
        """Do what most attempts do: a range is recorded, and perhaps it was the last."""
        for what in ("begin_phase", "record_range", *(("commit",) if commits else ())):
            self.hold(what, which)

    def hold(self, what: str, which: int) -> None:
        if self.model.held:
            self.one(self.call(what, which))

    def come_back_too_late(self, which: int) -> None:
        """Whoever has held a job, and does not any more, is refused whatever he wants to write."""
        former = [fence for fence in self.claims if fence not in self.model.held]
        if former:
            before = self.everything()
            for what in HOLDER_DOES:
                self.one(self.write(what, former[which % len(former)]))
            assert self.everything() == before

    def time_passes(self, passed: int, *, beats: bool, ends: bool) -> None:
        """Let hours pass, in which leases and run times end; somebody may beat, and somebody look for what is over."""
        self.processes.hours_pass(passed)
        self.model.now += passed
        if beats:
            self.hold("heartbeat", 0)
        if ends:
            self.one(self.call("lapse", 0))

    def lose_all(self) -> None:
        self.one(self.call("lose_all", 0))

    def two_at_once(self, what: str, which: int, beside: str, whose: int, *, held_first: bool) -> None:
        """Two calls at the same moment end as if one had come after the other."""
        if not self.model.held:
            return
        calls = [self.call(what, which), self.call(beside, whose)]
        if not held_first:
            calls.reverse()

        async def both() -> list[Any]:
            return await asyncio.gather(*(outcome(call.of_store()) for call in calls))

        ended = (*self.runner.run(both()), self.seen())

        possible = []
        for order in ((0, 1), (1, 0)):
            model = deepcopy(self.model)
            expected = {number: calls[number].of_model(model) for number in order}
            possible.append((expected[0], expected[1], self.shown(model)))
            if possible[-1] == ended:
                self.model = model
        assert ended in possible

    # --- What holds after each step ---

    @invariant()
    def the_store_holds_what_the_model_says(self) -> None:
        assert self.seen() == self.shown(self.model)

    def teardown(self) -> None:
        """Look at every job as callers do."""
        self.runner.run(self.look_as_callers_do())

    async def look_as_callers_do(self) -> None:
        succeeded = []
        for job_id, model in self.model.jobs.items():
            view, log = await self.processes.caller.jobs.transitions_after(TENANT, job_id, 0)
            job = view.job
            assert job.revision == len(log)
            assert [entry.revision for entry in log] == list(range(1, len(log) + 1))
            assert [entry.from_state for entry in log] == [None, *(entry.to_state for entry in log[:-1])]
            assert [entry.to_state in FINAL_STATES for entry in log[:-1]] == [False] * (len(log) - 1)
            assert (log[-1].to_state, log[-1].time, job.is_final) == (
                job.state,
                job.update_time,
                job.state in FINAL_STATES,
            )
            spent = sum(
                ((phase.end_time or view.until) - phase.start_time for phase in view.phases), timedelta()
            )
            assert spent == view.until - job.create_time
            if job.state is JobState.SUCCEEDED:
                succeeded.append(model.batch_id)
        assert sorted(await self.processes.caller.succeeded()) == sorted(succeeded)

    # --- How the two are driven and compared ---

    def one(self, call: Call) -> None:
        assert self.runner.run(outcome(call.of_store())) == call.of_model(self.model)

    def call(self, what: str, pick: int) -> Call:
        """Write down a call by its name: of the holder of one of the jobs, or of anybody."""
        caller = self.processes.caller
        match what:
            case "cancel":
                job_id, by = (
                    list(self.model.jobs)[pick % len(self.model.jobs)],
                    f"caller {next(self.numbers)}",
                )
                return Call(
                    lambda: state_of(caller.jobs.cancel(TENANT, job_id, by, "")),
                    lambda model: model.cancel(job_id, by),
                )
            case "claim":
                return Call(
                    lambda: self.claimed(f"worker {pick}"), lambda model: model.claim(f"worker {pick}")
                )
            case "lapse":
                return Call(lambda: ids_of(self.processes.timeouts.end()), Model.lapse)
            case "lose_all":
                return Call(lambda: ids_of(self.processes.timeouts.lose_all()), Model.lose_all)
            case _:
                return self.write(what, self.model.held[pick % len(self.model.held)])

    def write(self, what: str, fence: Fence) -> Call:
        """Write down what the holder of a job, or whoever takes himself for it, calls."""
        attempts, number = self.processes.worker.attempts, next(self.numbers)
        progress = Progress(Phase.RUN, fence.attempt, number, number)
        phase, plan = PHASES[number % len(PHASES)], self.plans[fence.job_id]
        begun, done = replace(progress, phase=phase), range_done(self.claims[fence].job.batch_id, number)
        error = JobError(what.upper(), "It went wrong.", "engine", what == "retry", fence.attempt)
        went_wrong = Call(
            lambda: nothing_of(attempts.end_with_error(fence, error)),
            lambda model: model.end_with_error(fence, error.code, retryable=error.retryable),
        )
        return {
            "heartbeat": Call(
                lambda: attempts.heartbeat(fence, progress), lambda model: model.heartbeat(fence)
            ),
            "state_of": Call(lambda: attempts.state_of(fence), lambda model: model.state_of(fence)),
            "begin_phase": Call(
                lambda: attempts.begin_phase(fence, begun, plan),
                lambda model: model.begin_phase(fence, phase),
            ),
            "record_range": Call(
                lambda: attempts.record_range(fence, done, progress),
                lambda model: model.record_range(fence, number),
            ),
            "commit": Call(lambda: nothing_of(attempts.commit(fence)), lambda model: model.commit(fence)),
            "retry": went_wrong,
            "fail": went_wrong,
            "release": Call(lambda: attempts.release(fence), lambda model: model.release(fence)),
            "let_go": Call(lambda: attempts.let_go(fence), lambda model: model.let_go(fence)),
        }[what]

    async def claimed(self, worker: str) -> Any:
        claim = await self.processes.worker.attempts.claim(worker)
        if claim is None:
            return None
        self.claims[claim.fence] = claim
        if claim.plan is None:
            snapshot = await self.processes.worker.snapshots.take(TENANT)
            self.plans[claim.job.id] = plan_export(claim.job.bound, snapshot, claim.job.batch_id)
        else:
            assert claim.plan == self.plans[claim.job.id]
        return claim.fence, claim.recorded, claim.plan is not None

    def shown(self, model: Model) -> dict[int, dict[str, Any]]:
        """The model's jobs, as `seen` tells those of the store."""
        return {
            job_id: {
                "state": job.state,
                "attempt": job.attempt,
                "log": [(number, *entry) for number, entry in enumerate(job.log, 1)],
                "revision": len(job.log),
                "errors": job.errors,
                "cancelled_by": job.cancelled_by,
                "not_before": None if job.not_before is None else job.not_before - model.now,
                "lease": None if job.holder is None else (job.holder, job.lease_end - model.now),
                "stamps": job.stamps,
                "ranges": job.ranges,
                "files": job.files,
                "written": job.written,
                "batch": job.batch,
                "receipt": job.planned and job.state is JobState.SUCCEEDED,
                "ended": job.state in FINAL_STATES,
            }
            for job_id, job in model.jobs.items()
        }

    def seen(self) -> dict[int, dict[str, Any]]:
        """What the tables hold of every job."""
        now = datetime.now(UTC)
        found = self.processes.on_tables(rows_of(LOOKED_AT))
        batch_of = {row.job_id: row for row in found[batches]}
        log, stamps, ranges, named = (defaultdict[int, list[Any]](list) for _ in range(4))
        for row in found[job_transitions]:
            log[row.job_id].append(
                (row.revision, JobState(row.from_state) if row.from_state else None, JobState(row.to_state))
            )
        for row in found[job_stamps]:
            stamps[row.job_id].append((row.attempt, Phase(row.phase)))
        for row in found[job_ranges]:
            ranges[row.job_id].append(row.range_index)
        for row in found[files]:
            named[row.batch_key].append(int(row.name))
        held = {
            row.job_id: (Fence(row.job_id, row.attempt, row.worker), hours(row.expire_time - now))
            for row in found[leases]
        }
        proved = {row.batch_key for row in found[receipts]}
        return {
            row.id: {
                "state": JobState(row.state),
                "attempt": row.attempt,
                "log": log[row.id],
                "revision": row.revision,
                "errors": [error.code for error in row.errors],
                "cancelled_by": row.cancellation.requested_by if row.cancellation else None,
                "not_before": None if row.not_before is None else hours(row.not_before - now),
                "lease": held.get(row.id),
                "stamps": stamps[row.id],
                "ranges": set(ranges[row.id]),
                "files": set(named[batch_of[row.id].key]),
                "written": row.metrics.files_written,
                "batch": BatchState(batch_of[row.id].state),
                "receipt": batch_of[row.id].key in proved,
                "ended": row.end_time is not None,
            }
            for row in found[jobs]
        }

    def everything(self) -> dict[Table, Sequence[Row[Any]]]:
        """Every row that a call about a job could change."""
        return self.processes.on_tables(rows_of({table: list(table.c) for table in TABLES}))


def rows_of(
    columns: Mapping[Table, list[Column[Any]]],
) -> Callable[[Connection], dict[Table, Sequence[Row[Any]]]]:
    def rows(connection: Connection) -> dict[Table, Sequence[Row[Any]]]:
        return {
            table: connection.execute(select(*chosen).order_by(*table.primary_key)).all()
            for table, chosen in columns.items()
        }

    return rows


def range_done(batch_id: str, number: int) -> RangeDone:
    file = DataFile(str(number), f"x/{number}", ROWS, 300, "ab")
    return RangeDone(number, {batch_id: [file]}, ExportCounts(profiles_exported=ROWS), 1)


def hours(left: timedelta) -> int:
    """The clock of the machine goes on a little between a call and the look at what it did."""
    return round(left / HOUR)


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call returned, or the class of the error that it was refused with."""
    try:
        return await call
    except REFUSALS as refusal:
        return type(refusal)


async def nothing_of(call: Awaitable[Any]) -> None:
    await call


async def created(call: Awaitable[tuple[JobView, bool]]) -> tuple[int, bool]:
    view, replayed = await call
    return view.job.id, replayed


async def state_of(call: Awaitable[JobView]) -> JobState:
    return (await call).job.state


async def ids_of(call: Awaitable[Sequence[Job]]) -> list[int]:
    return sorted(job.id for job in await call)


@pytest.fixture
def hours_of_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and back-offs of an hour: what ends them is a step of the machine, however slow the computer."""
    monkeypatch.setattr(attempts_of_store, "LEASE_TTL", HOUR)
    monkeypatch.setattr(timeouts_of_store, "LEASE_TTL", HOUR)
    monkeypatch.setattr(job_rules, "FIRST_BACK_OFF", HOUR)


@pytest.fixture
def drive(place: Place, hours_of_lease: None) -> Iterator[Callable[[int, int], None]]:
    """What runs the machine so many times, for so many steps each."""
    # A loop of its own: the machine's steps are no coroutines, and each waits for what it does.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        processes = Processes(place, runner)
        runner.run(processes.open())

        def run(examples: int, steps: int) -> None:
            run_machine(
                lambda: JobLife(runner, processes),  # type: ignore[arg-type] # whatever makes one will do
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    suppress_health_check=[HealthCheck.too_slow],
                    phases=[HypothesisPhase.generate],
                ),
            )

        yield run
        runner.run(processes.close())


def test_jobs_live_as_the_model_says(drive: Callable[[int, int], None]) -> None:
    drive(6, 25)


@pytest.mark.slow
def test_jobs_live_as_the_model_says_for_long(drive: Callable[[int, int], None]) -> None:
    drive(8, 40)
