"""What time ends: a job whose run time is used up, an attempt whose worker is silent."""

from __future__ import annotations

from datetime import timedelta

import pytest

from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import (
    FAIL,
    LET_GO,
    MAX_ATTEMPTS,
    REFUSE,
    RETRY,
    Job,
    JobState,
    Move,
    Timeout,
    timed_out,
)
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from tests.builders import at
from tests.unit.test_job import job, went_wrong

NEW, PROCESSING, CANCELLING = JobState.NEW, JobState.PROCESSING, JobState.CANCELLING


def limited(state: JobState, *, attempt: int = 1) -> Job:
    """A job that was created at noon and may take two minutes."""
    request = ExportRequest("d1", max_run_time=timedelta(minutes=2))
    return job(state, bound=BoundRequest(request, BUILT_IN_POLICY), create_time=at(0), attempt=attempt)


@pytest.mark.parametrize(("state", "move"), [(NEW, REFUSE), (PROCESSING, FAIL)])
def test_a_job_whose_run_time_is_used_up_fails_wherever_it_is(state: JobState, move: Move) -> None:
    timeout = timed_out(limited(state), at(2))

    assert timeout
    assert timeout.error
    assert (timeout.move, timeout.error.code, timeout.error.component) == (
        move,
        "RUN_TIME_EXCEEDED",
        "runner",
    )
    assert (timeout.error.retryable, timeout.error.attempt) == (False, 1)


@pytest.mark.parametrize("state", [NEW, PROCESSING])
def test_a_job_goes_on_until_its_run_time_is_used_up(state: JobState) -> None:
    assert timed_out(limited(state), at(1.9)) is None
    assert timed_out(job(state), at(10_000)) is None


@pytest.mark.parametrize("state", [state for state in JobState if state not in {NEW, PROCESSING}])
def test_a_job_that_ends_otherwise_has_no_deadline_any_more(state: JobState) -> None:
    assert timed_out(limited(state), at(3)) is None


@pytest.mark.parametrize(
    ("some", "reached"),
    [
        (limited(NEW, attempt=0), "No worker had begun it."),
        (limited(NEW, attempt=1), "It was waiting, after 1 attempt."),
        (limited(NEW, attempt=2), "It was waiting, after 2 attempts."),
        (limited(PROCESSING), "Attempt 1 was running."),
    ],
)
def test_the_error_says_how_long_the_job_took_what_it_had_reached_and_the_way_out(
    some: Job, reached: str
) -> None:
    timeout = timed_out(some, at(2.01))

    assert timeout
    assert timeout.error
    assert timeout.error.message == (
        f"The job was created 120.6 s ago, and its max_run_time is 120 s. {reached} "
        "Create it again with a longer max_run_time, or with none."
    )


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (timedelta(milliseconds=1), "0.001 s"),
        (timedelta(milliseconds=250), "0.25 s"),
        (timedelta(seconds=1), "1 s"),
        (timedelta(seconds=1.25), "1.2 s"),
        (timedelta(hours=1), "3,600 s"),
        (timedelta(days=366), "31,622,400 s"),
    ],
)
def test_a_limit_of_any_length_is_said_in_seconds(limit: timedelta, said: str) -> None:
    bound = BoundRequest(ExportRequest("d1", max_run_time=limit), BUILT_IN_POLICY)

    timeout = timed_out(job(NEW, bound=bound, create_time=at(0)), at(60 * 24 * 400))

    assert timeout
    assert timeout.error
    assert f"its max_run_time is {said}." in timeout.error.message


def test_an_attempt_whose_worker_is_silent_is_tried_again_later() -> None:
    timeout = timed_out(job(PROCESSING), at(2), silent_since=at(1))

    assert timeout
    assert timeout.error
    assert (timeout.move, timeout.not_before) == (RETRY, at(2) + timedelta(seconds=1))
    assert (timeout.error.code, timeout.error.retryable, timeout.error.attempt) == ("LEASE_LOST", True, 1)
    assert "attempt 1 has given no sign of life for 60 s" in timeout.error.message


def test_an_attempt_whose_worker_is_silent_fails_the_job_when_no_attempt_is_left() -> None:
    before = tuple(went_wrong(attempt=attempt) for attempt in range(1, MAX_ATTEMPTS))

    timeout = timed_out(job(PROCESSING, errors=before), at(2), silent_since=at(1))

    assert timeout
    assert (timeout.move, timeout.not_before) == (FAIL, None)


def test_a_cancelled_job_whose_worker_is_silent_is_let_go_without_an_error() -> None:
    assert timed_out(job(CANCELLING), at(2), silent_since=at(1)) == Timeout(LET_GO)


def test_a_used_up_run_time_counts_before_a_silent_worker() -> None:
    timeout = timed_out(limited(PROCESSING), at(2), silent_since=at(1))

    assert timeout
    assert timeout.error
    assert (timeout.move, timeout.error.code) == (FAIL, "RUN_TIME_EXCEEDED")


@pytest.mark.parametrize("state", [state for state in JobState if state not in {PROCESSING, CANCELLING}])
def test_a_job_that_nobody_holds_misses_no_worker(state: JobState) -> None:
    assert timed_out(job(state), at(2), silent_since=at(1)) is None
