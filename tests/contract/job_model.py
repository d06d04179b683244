"""A model of what DESIGN §5 says of jobs: small, without a database, with a clock that only tests move, in hours.

Its calls return what those of the store return, or the class of the error that they raise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.errors import AlreadyExistsError, FailedPreconditionError
from profile_export.domain.job import JobState, Phase
from profile_export.store.jobs.attempts import Fence, LeaseLostError

NEW, PROCESSING, CANCELLING = JobState.NEW, JobState.PROCESSING, JobState.CANCELLING
SUCCEEDED, FAILED, CANCELLED = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED
# The arrows of the drawing. From a final state there is none.
ARROWS = {
    (NEW, PROCESSING),
    (NEW, CANCELLED),
    (NEW, FAILED),
    (PROCESSING, NEW),
    (PROCESSING, SUCCEEDED),
    (PROCESSING, FAILED),
    (PROCESSING, CANCELLING),
    (CANCELLING, CANCELLED),
}
BATCHES = {SUCCEEDED: BatchState.SUCCEEDED, FAILED: BatchState.FAILED, CANCELLED: BatchState.ABORTED}
ATTEMPTS = 3
LEASE_HOURS = 1

Outcome = Any


@dataclass
class JobOfModel:
    """What is known of one job. Times are hours of the model's clock."""

    batch_id: str
    limit: int | None
    deadline: int | None
    state: JobState = NEW
    log: list[tuple[JobState | None, JobState]] = field(default_factory=lambda: [(None, NEW)])
    attempt: int = 0
    errors: list[str] = field(default_factory=list)
    not_before: int | None = None
    cancelled_by: str | None = None
    holder: Fence | None = None
    lease_end: int = 0
    planned: bool = False
    ranges: set[int] = field(default_factory=set)
    files: set[int] = field(default_factory=set)
    written: int = 0
    stamps: list[tuple[int, Phase]] = field(default_factory=lambda: [(0, Phase.QUEUE)])

    @property
    def batch(self) -> BatchState:
        return BATCHES.get(self.state, BatchState.LOADING)

    def move(self, target: JobState, not_before: int | None = None) -> None:
        assert (self.state, target) in ARROWS, (self.state, target)
        self.log.append((self.state, target))
        self.state, self.not_before = target, not_before
        if target is PROCESSING:
            self.attempt += 1
        else:
            self.written = self.written if target is CANCELLING else len(self.files)
        begun = {NEW: Phase.QUEUE, PROCESSING: Phase.PLAN, CANCELLING: Phase.CANCEL}.get(target)
        if begun:
            self.stamps.append((self.attempt, begun))
        if target in BATCHES:
            self.ranges.clear()
            if target is not SUCCEEDED:
                self.files.clear()
        if target is not PROCESSING and target is not CANCELLING:
            self.holder = None


@dataclass
class Model:
    """All jobs, by id."""

    now: int = 0
    jobs: dict[int, JobOfModel] = field(default_factory=dict)
    request_ids: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> list[Fence]:
        return [job.holder for job in self.jobs.values() if job.holder]

    # --- What callers ask ---

    def create(self, made: int, batch_id: str, request_id: str, limit: int | None) -> Outcome:
        """`made` is the id that the store gave, if it made a job."""
        found = self.request_ids.get(request_id)
        if found is not None:
            return (found, True) if self.jobs[found].limit == limit else AlreadyExistsError
        assert made not in self.jobs
        self.jobs[made] = JobOfModel(batch_id, limit, None if limit is None else self.now + limit)
        if request_id:
            self.request_ids[request_id] = made
        return made, False

    def cancel(self, job_id: int, by: str) -> Outcome:
        job = self.jobs[job_id]
        if job.state in (SUCCEEDED, FAILED):
            return FailedPreconditionError
        if job.state in (NEW, PROCESSING):
            job.move(CANCELLED if job.state is NEW else CANCELLING)
            job.cancelled_by = by
        return job.state

    # --- What workers do ---

    def claim(self, worker: str) -> Outcome:
        for job_id, job in sorted(self.jobs.items()):
            waits = job.not_before is not None and job.not_before > self.now
            if job.state is NEW and not waits and not self._late(job):
                job.move(PROCESSING)
                job.holder, job.lease_end = Fence(job_id, job.attempt, worker), self.now + LEASE_HOURS
                return job.holder, frozenset(job.ranges), job.planned
        return None

    def heartbeat(self, fence: Fence) -> Outcome:
        job = self._held(fence)
        if job is None:
            return LeaseLostError
        job.lease_end = self.now + LEASE_HOURS
        return job.state

    def state_of(self, fence: Fence) -> Outcome:
        job = self._held(fence)
        return job.state if job else LeaseLostError

    def begin_phase(self, fence: Fence, phase: Phase) -> Outcome:
        job = self._held(fence)
        if job is None:
            return LeaseLostError
        if job.state is not JobState.CANCELLING:
            job.stamps.append((job.attempt, phase))
        job.planned = True
        return None

    def record_range(self, fence: Fence, index: int) -> Outcome:
        job = self._held(fence)
        if job is None:
            return LeaseLostError
        job.ranges.add(index)
        job.files.add(index)
        return None

    def commit(self, fence: Fence) -> Outcome:
        return self._end(fence, PROCESSING, lambda job: job.move(SUCCEEDED))

    def end_with_error(self, fence: Fence, code: str, *, retryable: bool) -> Outcome:
        return self._end(fence, PROCESSING, lambda job: self._went_wrong(job, code, retryable=retryable))

    def release(self, fence: Fence) -> Outcome:
        return self._end(fence, PROCESSING, lambda job: job.move(NEW))

    def let_go(self, fence: Fence) -> Outcome:
        return self._end(fence, CANCELLING, lambda job: job.move(CANCELLED))

    # --- What time does ---

    def lapse(self) -> Outcome:
        ended = []
        for job_id, job in sorted(self.jobs.items()):
            silent = job.holder is not None and job.lease_end <= self.now
            if job.state in (NEW, PROCESSING) and self._late(job):
                if silent:
                    job.stamps.append((job.attempt, Phase.LOST))
                job.errors.append("RUN_TIME_EXCEEDED")
                job.move(FAILED)
            elif silent:
                self._lose(job)
            else:
                continue
            ended.append(job_id)
        return ended

    def lose_all(self) -> Outcome:
        held = sorted(fence.job_id for fence in self.held)
        for job in map(self.jobs.__getitem__, held):
            if job.state is PROCESSING and self._late(job):
                job.stamps.append((job.attempt, Phase.LOST))
                job.errors.append("RUN_TIME_EXCEEDED")
                job.move(FAILED)
            else:
                self._lose(job)
        return held

    def _lose(self, job: JobOfModel) -> None:
        if job.state is CANCELLING:
            job.move(CANCELLED)
        else:
            job.stamps.append((job.attempt, Phase.LOST))
            self._went_wrong(job, "LEASE_LOST", retryable=True)

    def _went_wrong(self, job: JobOfModel, code: str, *, retryable: bool) -> None:
        back_off = 2 ** len(job.errors)
        job.errors.append(code)
        if retryable and len(job.errors) < ATTEMPTS:
            job.move(NEW, self.now + back_off)
        else:
            job.move(FAILED)

    def _end(self, fence: Fence, state: JobState, move: Any) -> Outcome:
        job = self._held(fence)
        if job is None:
            return LeaseLostError
        if job.state is not state:
            return FailedPreconditionError
        move(job)
        return None

    def _late(self, job: JobOfModel) -> bool:
        return job.deadline is not None and job.deadline <= self.now

    def _held(self, fence: Fence) -> JobOfModel | None:
        job = self.jobs[fence.job_id]
        return job if job.holder == fence else None
