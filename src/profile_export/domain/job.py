"""The life of an export job: its states, the moves between them, its timeouts, and the phases of its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Protocol

from profile_export.domain.errors import FailedPreconditionError, PastEndError
from profile_export.domain.export.plan import ExportCounts, IdentityFindings
from profile_export.domain.export.request import BoundRequest
from profile_export.domain.lists import ListFields, instant, word

MAX_ATTEMPTS = 3
FIRST_BACK_OFF = timedelta(seconds=1)
LEASE_TTL = timedelta(seconds=10)
LEASE_MARGIN = timedelta(seconds=2)
"""How much earlier than the store a worker takes its lease to be over, so that the two never hold a job at once."""


class JobState(StrEnum):
    """Where a job stands; the comment says who moves it next."""

    NEW = "new"
    """A worker claims it, a caller cancels it, or a chore finds its run time used up."""
    PROCESSING = "processing"
    """The worker that holds its lease ends it, a caller asks to cancel it, or a chore finds its time over."""
    SUCCEEDED = "succeeded"
    """Nobody: final. Its batch counts."""
    FAILED = "failed"
    """Nobody: final. Its errors say why; nothing of it is visible."""
    CANCELLING = "cancelling"
    """The worker that holds its lease lets go of it, or a chore finds the lease over."""
    CANCELLED = "cancelled"
    """Nobody: final. Nothing of it is visible."""


JOB_LIST = ListFields(
    {
        "state": word({state.name: state for state in JobState}, "JOB_STATE_"),
        "dataset_id": str,
        "create_time": instant,
        "update_time": instant,
    },
    ("create_time", "update_time"),
)
FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class JobError:
    """Why an attempt, or the job, went wrong. `component` is the room it happened in; `attempt` is 0 outside one."""

    code: str
    message: str
    component: str
    retryable: bool
    attempt: int


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a plan pins of its sources."""

    rows: int = 0
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class Resolved:
    """What identity resolution took: the rows that moved, since their profile has another key than they, and memory.

    And what it found that is worth telling.
    """

    rows_moved: int = 0
    peak_memory_bytes: int = 0
    findings: IdentityFindings = field(default_factory=IdentityFindings)


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """What a job has done so far, of its current or last attempt."""

    counts: ExportCounts = field(default_factory=ExportCounts)
    rows_written: int = 0
    bytes_written: int = 0
    files_written: int = 0
    peak_memory_bytes: int = 0
    pinned: Pinned = field(default_factory=Pinned)
    resolved: Resolved = field(default_factory=Resolved)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who asked to cancel (the caller's key or address, in words), when and why."""

    requested_by: str
    request_time: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Job:
    """An export job. `attempt` is 0 before the first claim; `end_time` is None until it is final.

    `not_before` is the earliest time of the next claim after a back-off, None without one. With `segment_batches`, one
    per segment of the request, `batch_id` is empty.
    """

    id: int
    bound: BoundRequest
    request_id: str
    batch_id: str
    state: JobState
    revision: int
    attempt: int
    create_time: datetime
    update_time: datetime
    end_time: datetime | None = None
    not_before: datetime | None = None
    cancellation: Cancellation | None = None
    errors: tuple[JobError, ...] = ()
    metrics: JobMetrics = field(default_factory=JobMetrics)
    notes: tuple[str, ...] = ()
    segment_batches: tuple[str, ...] = ()

    @property
    def state_reason(self) -> str:
        """Why it failed or is cancelled, in a sentence; empty in other states."""
        if self.state is JobState.FAILED and self.errors:
            return f"{self.errors[-1].code}: {self.errors[-1].message}"
        if self.state in {JobState.CANCELLING, JobState.CANCELLED} and self.cancellation:
            asked = self.cancellation
            return f"Cancelled by {asked.requested_by}{f': {asked.reason}' if asked.reason else '.'}"
        return ""

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES

    @property
    def as_created(self) -> Job:
        """The job as its creation made it."""
        return replace(
            self,
            state=JobState.NEW,
            revision=1,
            attempt=0,
            update_time=self.create_time,
            end_time=None,
            not_before=None,
            cancellation=None,
            errors=(),
            metrics=JobMetrics(),
            notes=(),
        )

    def check_reached(self, revision: int) -> None:
        """Raise PastEndError if the job has not come to a revision yet."""
        if revision > self.revision:
            raise PastEndError(
                "REVISION_OUT_OF_RANGE",
                f"The job {self.id} is at revision {self.revision}, which is before {revision}.",
                metadata={"id": str(self.id), "revision": str(self.revision)},
            )

    @property
    def deadline(self) -> datetime | None:
        """When its run time is used up; None if it has no limit."""
        return self.bound.request.deadline(self.create_time)


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of a job's log. `from_state` is None for its creation; `reason` is a move's name."""

    revision: int
    from_state: JobState | None
    to_state: JobState
    time: datetime
    attempt: int
    reason: str
    metrics: JobMetrics


@dataclass(frozen=True, slots=True)
class Move:
    """A named change of state. `apply` checks first and then changes; nothing else makes a job's next version."""

    name: str
    sources: frozenset[JobState]
    target: JobState

    def apply(
        self,
        job: Job,
        now: datetime,
        *,
        error: JobError | None = None,
        not_before: datetime | None = None,
        cancellation: Cancellation | None = None,
        metrics: JobMetrics | None = None,
    ) -> tuple[Job, Transition]:
        """Return the job one revision on, and the entry of its log; FailedPreconditionError from any other state."""
        if job.state not in self.sources:
            raise FailedPreconditionError(
                "JOB_FINISHED" if job.is_final else "JOB_STATE",
                f"The job {job.id} is {job.state.name} and cannot be {self.name}.",
                metadata={"id": str(job.id), "state": job.state.name},
            )
        moved = replace(
            job,
            state=self.target,
            revision=job.revision + 1,
            attempt=job.attempt + (self is CLAIM),
            update_time=now,
            end_time=now if self.target in FINAL_STATES else None,
            not_before=not_before,
            cancellation=cancellation or job.cancellation,
            errors=(*job.errors, error) if error else job.errors,
            metrics=metrics or job.metrics,
        )
        return moved, Transition(
            moved.revision, job.state, moved.state, now, moved.attempt, self.name, moved.metrics
        )


CLAIM = Move("claimed", frozenset({JobState.NEW}), JobState.PROCESSING)
RETRY = Move("retried", frozenset({JobState.PROCESSING}), JobState.NEW)
RELEASE = Move("released", frozenset({JobState.PROCESSING}), JobState.NEW)
SUCCEED = Move("succeeded", frozenset({JobState.PROCESSING}), JobState.SUCCEEDED)
FAIL = Move("failed", frozenset({JobState.PROCESSING}), JobState.FAILED)
REFUSE = Move("refused", frozenset({JobState.NEW}), JobState.FAILED)
ASK_TO_CANCEL = Move("asked to cancel", frozenset({JobState.PROCESSING}), JobState.CANCELLING)
LET_GO = Move("let go", frozenset({JobState.CANCELLING}), JobState.CANCELLED)
CANCEL = Move("cancelled", frozenset({JobState.NEW}), JobState.CANCELLED)
MOVES = (CLAIM, RETRY, RELEASE, SUCCEED, FAIL, REFUSE, ASK_TO_CANCEL, LET_GO, CANCEL)


def cancelling_move(job: Job) -> Move | None:
    """Decide what a caller's cancel does: None if it was asked before.

    For a job that has SUCCEEDED or FAILED it is a move that refuses to be applied.
    """
    match job.state:
        case JobState.CANCELLING | JobState.CANCELLED:
            return None
        case JobState.NEW:
            return CANCEL
        case _:
            return ASK_TO_CANCEL


def after_error(job: Job, error: JobError, now: datetime) -> tuple[Move, datetime | None]:
    """Decide how an attempt that went wrong goes on: the move, and the earliest next claim.

    A retryable error is tried again with a back-off that doubles, until `MAX_ATTEMPTS` attempts have ended with an
    error; an attempt that was released does not count.
    """
    errors_before = len(job.errors)
    if error.retryable and errors_before + 1 < MAX_ATTEMPTS:
        return RETRY, now + FIRST_BACK_OFF * 2**errors_before
    return FAIL, None


class Phase(StrEnum):
    """What a job's time went into. The time of a dead attempt is LOST from its worker's last sign of life on."""

    QUEUE = "queue"
    PLAN = "plan"
    RESOLVE = "resolve"
    RUN = "run"
    COMMIT = "commit"
    CANCEL = "cancel"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The moment at which a phase began; it lasts until the next stamp, or the job's end."""

    attempt: int
    phase: Phase
    time: datetime


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One interval of a job's life; `end_time` is None while it lasts."""

    attempt: int
    phase: Phase
    start_time: datetime
    end_time: datetime | None


def phase_times(stamps: Sequence[Stamp], end_time: datetime | None) -> Iterator[PhaseTime]:
    """Turn stamps, in their order, into intervals that add up to the whole time by construction."""
    for stamp, following in pairwise(stamps):
        yield PhaseTime(stamp.attempt, stamp.phase, stamp.time, following.time)
    for stamp in stamps[-1:]:
        yield PhaseTime(stamp.attempt, stamp.phase, stamp.time, end_time)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current attempt is: source rows done, of how many, how fast lately, and how long the rest takes.

    `rows_per_second` is 0 and `rest` None where that is not known.
    """

    phase: Phase
    attempt: int
    done: int
    estimated: int
    rows_per_second: float = 0.0
    rest: timedelta | None = None

    @property
    def rank(self) -> int:
        """A number that never falls within an attempt: by phase, then by rows done."""
        return (list(Phase).index(self.phase) << 48) + self.done


class Described(Protocol):
    """What tells one job from another here."""

    @property
    def destination_id(self) -> str:
        """The dataset that it writes to."""

    @property
    def create_time(self) -> datetime:
        """When it was created."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that all have to hold: one of these states, this destination, created at this instant or later.

    No states, an empty dataset id and None ask for nothing.
    """

    states: frozenset[JobState] = frozenset()
    destination_id: str = ""
    from_create_time: datetime | None = None

    def admits(self, job: Described, states: Iterable[JobState | None]) -> bool:
        """Whether it lets a job through that is in one of these states, or goes from one to another."""
        return (
            (not self.states or not self.states.isdisjoint(states))
            and (not self.destination_id or job.destination_id == self.destination_id)
            and (self.from_create_time is None or job.create_time >= self.from_create_time)
        )


_LATELY = 10.0
"""Seconds: the speed that people see is that of the last few of them."""
_SOON = 1.0
"""Seconds that a phase must have lasted before anything is said of its rest."""


class Pace:
    """The pace of one phase, from its beginning."""

    def __init__(self, done: int, now: float) -> None:
        self._first = (now, done)
        self._seen = deque([self._first])

    def seen(self, done: int, now: float) -> None:
        """Note how much is done; neither may be less than before."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _LATELY:  # noqa: PLR2004 - a stretch has two ends
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        """How much was done a second, lately; 0 if that is not known."""
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began) if now > began else 0.0

    def rest(self, estimated: int) -> timedelta | None:
        """Return how long what is left takes at the pace of the whole phase; None if nothing is known of that."""
        (began, before), (now, done) = self._first, self._seen[-1]
        if now - began < _SOON or done <= before:
            return None
        return timedelta(seconds=max(0, estimated - done) * (now - began) / (done - before))


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a caller sees it: with its phases so far, and the progress of a running attempt (else None).

    `until` is the moment that the view is of: the job's end, or the present by the database's clock. `expire_time` is
    when retention will remove it; None while it has not ended, or never.
    """

    job: Job
    phases: tuple[PhaseTime, ...]
    progress: Progress | None
    until: datetime
    expire_time: datetime | None


# --- Timeouts: what ends a job, or an attempt at it, although nobody asks for it ---


@dataclass(frozen=True, slots=True)
class Timeout:
    """The move that is due, why, and the earliest next claim; a cancel needs no error."""

    move: Move
    error: JobError | None = None
    not_before: datetime | None = None


def timed_out(job: Job, now: datetime, silent_since: datetime | None = None) -> Timeout | None:
    """Say what the time that is over does to a job; None if it may go on.

    A cancel that was asked for before the run time was used up goes on to its own end. `silent_since` is the last sign
    of life of the worker that holds the job, if its lease is over; else None.
    """
    late = job.deadline is not None and job.deadline <= now
    match job.state:
        case JobState.NEW if late:
            return Timeout(REFUSE, _run_time_exceeded(job, now))
        case JobState.PROCESSING if late:
            return Timeout(FAIL, _run_time_exceeded(job, now))
        case JobState.PROCESSING if silent_since is not None:
            error = _lease_lost(job, now - silent_since)
            move, not_before = after_error(job, error, now)
            return Timeout(move, error, not_before)
        case JobState.CANCELLING if silent_since is not None:
            return Timeout(LET_GO)
    return None


def _lease_lost(job: Job, silence: timedelta) -> JobError:
    message = (
        f"The worker of attempt {job.attempt} has given no sign of life for {_seconds(silence)}: it has died, hangs, "
        "or does not reach the store."
    )
    return JobError("LEASE_LOST", message, "runner", retryable=True, attempt=job.attempt)


def _run_time_exceeded(job: Job, now: datetime) -> JobError:
    limit = job.bound.request.max_run_time or timedelta()
    reached = "No worker had begun it."
    if job.state is JobState.PROCESSING:
        reached = f"Attempt {job.attempt} was running."
    elif job.attempt:
        reached = f"It was waiting, after {job.attempt} attempt{'' if job.attempt == 1 else 's'}."
    message = (
        f"The job was created {_seconds(now - job.create_time)} ago, and its max_run_time is {_seconds(limit)}. "
        f"{reached} Create it again with a longer max_run_time, or with none."
    )
    return JobError("RUN_TIME_EXCEEDED", message, "runner", retryable=False, attempt=job.attempt)


def _seconds(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:,.1f}".removesuffix(".0") + " s"
