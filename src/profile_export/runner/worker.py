"""A worker: claims a job, carries out its plan, ends it in exactly one way, and puts the receipt beside its files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import structlog

from profile_export.application.ports import Engine, EngineAttempt, Lake
from profile_export.domain.catalog.batches import DataFile, attempt_folder
from profile_export.domain.errors import DomainError, FailedPreconditionError, UnavailableError
from profile_export.domain.export.plan import (
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    WrittenFile,
    plan_export,
    takes_long,
)
from profile_export.domain.export.receipt import RECEIPT_FILE
from profile_export.domain.job import JobError, JobState, Pace, Phase, Progress, Resolved
from profile_export.domain.system_faults import DISK_FULL, system_fault
from profile_export.processes.turns import compute_if, computed_for
from profile_export.runner.chores import first_of
from profile_export.runner.keeper import TRUSTED_SECONDS, LeaseKeeper
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.files.batches import Receipts
from profile_export.store.files.snapshots import Snapshots
from profile_export.store.jobs.attempts import Attempts, Claim, LeaseLostError, RangeDone

_log = structlog.get_logger(__name__)


class ReceiptWriter:
    """Writes every receipt that is not on the disk yet, whoever made it: a former process may have died before."""

    def __init__(self, receipts: Receipts, lake: Lake) -> None:
        self._receipts = receipts
        self._lake = lake
        # One at a time: two workers of one server would write the same file.
        self._writing = asyncio.Lock()

    async def write_all(self) -> None:
        """Write what is to be written; what the lake refuses is logged, and tried again at the next call.

        It is noted after it is safe on the disk: after a crash in between the same bytes are written once more.
        """
        written = []
        async with self._writing:
            for one in await self._receipts.unwritten():
                try:
                    await asyncio.to_thread(self._lake.write, one.path, one.document)
                except OSError:
                    _log.warning("receipt_not_written", path=one.path, exc_info=True)
                else:
                    written.append(one.batch_key)
            if written:
                await self._receipts.note_written(written)


HEARTBEAT_SECONDS = 1.0
POLL_SECONDS = 1.0
_T = TypeVar("_T")


class Places:
    """The jobs that a process runs at once: some of any tenant, and one more of a tenant that runs none.

    So nobody waits for the whole of a job only because all places are another's.
    """

    def __init__(self, attempts: Attempts, of_any_tenant: int) -> None:
        self._attempts, self._of_any_tenant = attempts, of_any_tenant
        self._taken = 0
        self._claiming = asyncio.Lock()

    @property
    def number(self) -> int:
        """How many there are; none where no job is to be run."""
        return self._of_any_tenant and self._of_any_tenant + 1

    async def claim(self, worker: str) -> Claim | None:
        """Take a job for a place; None if there is none for it. Whoever got one leaves the place when it is done."""
        # One after the other: what one worker takes decides what the next may.
        async with self._claiming:
            claim = await self._attempts.claim(worker, newcomers_only=self._taken >= self._of_any_tenant)
            if claim:
                self._taken += 1
        return claim

    def leave(self) -> None:
        """Free a place."""
        self._taken -= 1


@dataclass(frozen=True, slots=True)
class Worker:
    """Runs one job after the other until it is told to stop."""

    name: str
    places: Places
    attempts: Attempts
    keeper: LeaseKeeper
    snapshots: Snapshots
    wakeups: Wakeups
    engines: Mapping[str, Engine]
    lake: Lake
    receipts: ReceiptWriter
    stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def stop_claiming(self) -> None:
        """Claim no further job, and give the current one back."""
        self.stopping.set()

    async def run(self) -> None:
        """Claim and carry out jobs until told to stop."""
        with self.wakeups.of_due_jobs() as due:
            while not self.stopping.is_set():
                due.clear()
                claim = await _answer(self.places.claim(self.name))
                if claim:
                    try:
                        await self._carry_out(claim)
                    finally:
                        self.places.leave()
                else:
                    # Polling backs the wake-ups up, and finds jobs whose back-off is over.
                    await first_of(due.wait(), self.stopping.wait(), seconds=POLL_SECONDS)

    async def _carry_out(self, claim: Claim) -> None:
        """Run the attempt beside its heartbeat; whatever ends it, the job moves on or is given back.

        Where even that fails, the lease runs out, and whoever looks for timeouts moves the job.
        """
        attempt = _Attempt(claim, self)
        log = _log.bind(job_id=claim.job.id, attempt=claim.fence.attempt)
        log.info("attempt_started")
        work = asyncio.create_task(attempt.run())
        try:
            asked_to_end = await self._watch_over(work, attempt)
        except LeaseLostError:
            # Its own commit gives the lease up, and returns a little later; it is refused if another has the job.
            asked_to_end = attempt.progress.phase is not Phase.COMMIT
            if asked_to_end:
                log.warning("attempt_given_up", lease="lost")
        except TimeoutError:
            log.warning("attempt_given_up", lease="not renewed")
            asked_to_end = True
        if asked_to_end:
            work.cancel()
        await asyncio.wait([work])
        try:
            try:
                await self._end(claim, attempt, work)
            except LeaseLostError:
                log.warning("lease_lost")
                await self.attempts.leave(claim.fence)
        except Exception:
            log.exception("attempt_not_ended")

    async def _watch_over(self, work: asyncio.Task[None], attempt: _Attempt) -> bool:
        """Beat until the work is done; True if it has to end before, for a cancel or because this worker stops.

        Raises:
            LeaseLostError: The job is not this worker's any more.
            TimeoutError: It may not be any more: no heartbeat has come through for too long.
        """
        fence = attempt.claim.fence
        trusted_until = attempt.claim.begun + TRUSTED_SECONDS
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + HEARTBEAT_SECONDS
        with self.wakeups.of_job(fence.job_id) as changed:
            async with self.keeper.holding(fence, trusted_until) as held:
                while not work.done():
                    if self.stopping.is_set():
                        return True
                    changed.clear()
                    if (asked := loop.time()) >= next_beat:
                        next_beat = asked + HEARTBEAT_SECONDS
                        state = await _answer(self.attempts.heartbeat(fence, attempt.progress))
                        if state:
                            held.beat(asked)
                    else:
                        state = await _answer(self.attempts.state_of(fence))
                    if state is JobState.CANCELLING:
                        return True
                    remaining = max(0.0, next_beat - loop.time())
                    await first_of(changed.wait(), self.stopping.wait(), work, seconds=remaining)
        return False

    async def _end(self, claim: Claim, attempt: _Attempt, work: asyncio.Task[None]) -> None:
        """Make the one move that ends the attempt, and remove the files that the move leaves without an owner."""
        fence = claim.fence
        error = None if work.cancelled() else work.exception()
        if isinstance(error, LeaseLostError):
            raise error
        if error is None and not work.cancelled():
            await self.receipts.write_all()
            for folder in claim.folders.values():
                kept = [*(file.path for file in attempt.committed), f"{folder}/{RECEIPT_FILE}"]
                await asyncio.to_thread(self.lake.keep_only, folder, kept)
            return
        try:
            if await self.attempts.state_of(fence) is JobState.CANCELLING:
                await self.attempts.let_go(fence)
            elif error is None:
                await self.attempts.release(fence)
                return
            else:
                job = await self.attempts.end_with_error(fence, attempt.describe(error))
                if not job.is_final:
                    return
        except FailedPreconditionError:
            # A cancel came between the look and the move.
            await self.attempts.let_go(fence)
        for folder in claim.folders.values():
            await asyncio.to_thread(self.lake.remove, folder)


class _Attempt:
    """One attempt at a job: what it has reached, and the work itself."""

    def __init__(self, claim: Claim, worker: Worker) -> None:
        self.claim = claim
        self.progress = Progress(Phase.PLAN, claim.fence.attempt, 0, 0)
        self.committed: Sequence[DataFile] = ()
        self._done_before, self._pace = 0, Pace(0, time.monotonic())
        self._attempts, self._snapshots = worker.attempts, worker.snapshots
        self._engines, self._lake = worker.engines, worker.lake

    @property
    def _engine(self) -> Engine:
        name = self.claim.job.bound.engine
        if name not in self._engines:
            raise EngineFailedError("ENGINE_UNKNOWN", f"This worker has no engine '{name}'.", retryable=True)
        return self._engines[name]

    async def run(self) -> None:
        """Plan, resolve, run range by range, commit."""
        claim = self.claim
        plan = claim.plan or await self._planned()
        await self._begin(Phase.RESOLVE, plan)
        number = claim.fence.attempt
        folders = {batch: attempt_folder(folder, number) for batch, folder in claim.folders.items()}
        places = [self._lake.staging(folder) for folder in folders.values()]
        of_segments = places if plan.segment_batches else ()
        async with (
            self._lake.readable(plan.paths),
            self._engine.attempt(plan, self._lake.root, places[0], self._advance, of_segments) as attempt,
        ):
            facts = await attempt.resolve()
            recorded = (one for one in plan.ranges() if one.index in claim.recorded)
            done = sum(plan.rows_in(key_range) for key_range in recorded)
            resolved = Resolved(facts.rows_moved, facts.peak_memory_bytes, facts.findings)
            await self._begin(Phase.RUN, done=done, resolved=resolved)
            await self._run_ranges(plan, attempt, folders)
        await self._begin(Phase.COMMIT)
        self.committed = await self._attempts.commit(claim.fence)

    async def _planned(self) -> ExportPlan:
        job = self.claim.job
        snapshot = await self._snapshots.take(self.claim.tenant)
        # Not the whole attempt is the tenant's: its writes would wait in the tenant's queue, and the worker with them.
        with computed_for(self.claim.tenant):
            return await compute_if(
                takes_long(snapshot, job.bound.request.fields),
                plan_export,
                job.bound,
                snapshot,
                job.batch_id,
                job.segment_batches,
                self._engine.values_per_range,
                job.id,
            )

    async def _run_ranges(self, plan: ExportPlan, attempt: EngineAttempt, folders: Mapping[str, str]) -> None:
        for key_range in plan.ranges():
            if key_range.index not in self.claim.recorded:
                result = await attempt.run(key_range)
                files: dict[str, list[DataFile]] = {}
                for file in result.files:
                    files.setdefault(file.batch_id, []).append(_data_file(file, folders[file.batch_id]))
                paths = [file.path for of_batch in files.values() for file in of_batch]
                await asyncio.to_thread(self._lake.publish, paths)
                done = RangeDone(key_range.index, files, result.counts, result.peak_memory_bytes)
                await self._attempts.record_range(self.claim.fence, done, self.progress)

    async def _begin(
        self, phase: Phase, plan: ExportPlan | None = None, done: int = 0, resolved: Resolved | None = None
    ) -> None:
        """Begin a phase, of which an earlier attempt may have `done` something, with what the last one brought."""
        rows = plan.rows if plan else self.progress.estimated
        self.progress = Progress(phase, self.claim.fence.attempt, done, rows)
        self._done_before, self._pace = done, Pace(done, time.monotonic())
        await self._attempts.begin_phase(self.claim.fence, self.progress, plan, resolved)

    def _advance(self, engine: EngineProgress) -> None:
        done = max(self._done_before + engine.done, self.progress.done)
        estimated = max(engine.estimated, done)
        self._pace.seen(done, time.monotonic())
        # Only while ranges run is the rest of the phase that of the job.
        rest = self._pace.rest(estimated) if self.progress.phase is Phase.RUN else None
        self.progress = replace(
            self.progress,
            done=done,
            estimated=estimated,
            rows_per_second=self._pace.per_second,
            rest=rest,
        )

    def describe(self, error: BaseException) -> JobError:
        """Say what went wrong, as data; what nobody foresaw is logged and told without its text."""
        phase, number = self.progress.phase.value, self.claim.fence.attempt
        match error:
            case EngineDiedError():
                return JobError(error.code, str(error), "engine", retryable=True, attempt=number)
            case EngineFailedError():
                return JobError(error.code, str(error), "engine", retryable=error.retryable, attempt=number)
            case UnavailableError():
                return JobError(error.reason, error.message, "store", retryable=True, attempt=number)
            case DomainError():
                return JobError(error.reason, error.message, phase, retryable=False, attempt=number)
            case OSError():
                fault = system_fault(error)
                way_out = fault.way_out if fault else "See to the disk, and to who may write there"
                message = f"The lake refused: {error.strerror}. {way_out}, then export again."
                code = DISK_FULL if fault and fault.reason == DISK_FULL else "LAKE_FAILED"
                return JobError(code, message, "lake", retryable=True, attempt=number)
            case _:
                _log.error("attempt_failed", job_id=self.claim.job.id, attempt=number, exc_info=error)
                message = "An internal error ended the attempt; the server's log has it."
                return JobError("INTERNAL", message, phase, retryable=False, attempt=number)


def _data_file(file: WrittenFile, folder: str) -> DataFile:
    return DataFile(Path(file.name).name, f"{folder}/{file.name}", file.rows, file.bytes, file.sha256)


async def _answer(asked: Awaitable[_T]) -> _T | None:
    """Return the store's answer; None if the store fails now, since it may be back before the lease is over.

    Raises:
        LeaseLostError: The answer is that.
    """
    try:
        return await asked
    except LeaseLostError:
        raise
    except UnavailableError as error:
        _log.warning("store_failed", reason=error.reason)
        return None
    except Exception:  # noqa: BLE001 - whatever is the matter with the store, it is asked again
        _log.exception("store_failed")
        return None
