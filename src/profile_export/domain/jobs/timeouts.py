"""What ends a job, or an attempt at it, although nobody asks for it: time that is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from profile_export.domain.jobs.job import FAIL, LET_GO, REFUSE, Job, JobError, JobState, Move, after_error


@dataclass(frozen=True, slots=True)
class Timeout:
    """The move that is due, why, and the earliest next claim; a cancel needs no error."""

    move: Move
    error: JobError | None = None
    not_before: datetime | None = None


def timed_out(job: Job, now: datetime, silent_since: datetime | None = None) -> Timeout | None:
    """Say what the time that is over does to a job; None if it may go on.

    A cancel that was asked for before the run time was used up goes on to its own end.

    Args:
        job: Of any state.
        now: The present.
        silent_since: The last sign of life of the worker that holds the job, if its lease is over; else None.
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
    reached = {
        JobState.NEW: f"It was waiting, after {job.attempt} attempts."
        if job.attempt
        else "No worker had begun it.",
        JobState.PROCESSING: f"Attempt {job.attempt} was running.",
    }
    message = (
        f"The job was created {_seconds(now - job.create_time)} ago, and its max_run_time is {_seconds(limit)}. "
        f"{reached[job.state]} Create it again with a longer max_run_time, or with none."
    )
    return JobError("RUN_TIME_EXCEEDED", message, "runner", retryable=False, attempt=job.attempt)


def _seconds(time: timedelta) -> str:
    return f"{round(time.total_seconds(), 1):,g} s"
