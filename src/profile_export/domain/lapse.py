"""What ends a job, or an attempt at it, although nobody asks for it: time that is over (DESIGN §5)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from profile_export.domain.job import FAIL, REFUSE, Job, JobError, JobState, Move


@dataclass(frozen=True, slots=True)
class Lapse:
    """The move that is due, and why."""

    move: Move
    error: JobError


def lapsed(job: Job, now: datetime) -> Lapse | None:
    """Say what the time that is over does to a job; None if it may go on.

    A cancel that was asked for before the run time was used up goes on to its own end.
    """
    if job.deadline is not None and job.deadline <= now:
        if job.state is JobState.NEW:
            return Lapse(REFUSE, _run_time_exceeded(job, now))
        if job.state is JobState.PROCESSING:
            return Lapse(FAIL, _run_time_exceeded(job, now))
    return None


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
