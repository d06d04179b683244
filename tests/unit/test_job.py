"""The life of a job: the whole table of moves, cancel at every state, retries, and phases that add up (DESIGN §5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.errors import FailedPreconditionError, PastEndError
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import (
    ASK_TO_CANCEL,
    CANCEL,
    CLAIM,
    FAIL,
    FINAL_STATES,
    LET_GO,
    MAX_ATTEMPTS,
    MOVES,
    REFUSE,
    RELEASE,
    RETRY,
    SUCCEED,
    Cancellation,
    Job,
    JobError,
    JobMetrics,
    JobState,
    Move,
    Phase,
    PhaseTime,
    Progress,
    Stamp,
    Transition,
    after_error,
    cancelling_move,
    phase_times,
)
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from tests.builders import NOON, at

NEW, PROCESSING, CANCELLING = JobState.NEW, JobState.PROCESSING, JobState.CANCELLING
SUCCEEDED, FAILED, CANCELLED = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED

# The picture of DESIGN §5: from where each move starts, and where it leads.
TABLE: dict[str, tuple[Move, JobState, JobState]] = {
    "a claimed": (CLAIM, NEW, PROCESSING),
    "b retried": (RETRY, PROCESSING, NEW),
    "b released": (RELEASE, PROCESSING, NEW),
    "d failed": (FAIL, PROCESSING, FAILED),
    "e succeeded": (SUCCEED, PROCESSING, SUCCEEDED),
    "g asked to cancel": (ASK_TO_CANCEL, PROCESSING, CANCELLING),
    "h let go": (LET_GO, CANCELLING, CANCELLED),
    "i cancelled": (CANCEL, NEW, CANCELLED),
    "k refused": (REFUSE, NEW, FAILED),
}
ALLOWED = {(move.name, source): target for move, source, target in TABLE.values()}
FORBIDDEN = [(move, state) for move in MOVES for state in JobState if (move.name, state) not in ALLOWED]

METRICS = JobMetrics(ExportCounts(profiles_exported=3), rows_written=3, files_written=1)
ASKED = Cancellation("key-1", NOON, "wrong fields")


def job(state: JobState = NEW, **changes: Any) -> Job:
    """A job that is well into its life."""
    some = Job(
        id=7,
        bound=BoundRequest(ExportRequest("d1"), BUILT_IN_POLICY),
        request_id="r1",
        batch_id="b1",
        state=state,
        revision=4,
        attempt=1,
        create_time=at(-10),
        update_time=at(-5),
        end_time=at(-5) if state in FINAL_STATES else None,
    )
    return replace(some, **changes)


def went_wrong(*, retryable: bool = True, attempt: int = 1) -> JobError:
    return JobError("ENGINE_CRASHED", "The engine was killed.", "engines", retryable, attempt)


def moved(some: Job, *moves: Move) -> Job:
    """The job after some moves, one a minute."""
    for minute, move in enumerate(moves):
        some, _ = move.apply(some, at(minute))
    return some


# --- The table of moves ---


def test_the_table_has_every_move_once() -> None:
    documented = [move for move, _, _ in TABLE.values()]

    assert sorted(move.name for move in MOVES) == sorted(move.name for move in documented)
    assert len({move.name for move in MOVES}) == len(MOVES)
    assert {(move.name, source) for move in MOVES for source in move.sources} == set(ALLOWED)


@pytest.mark.parametrize(("move", "source", "target"), TABLE.values(), ids=TABLE)
def test_a_move_leads_to_its_target_one_revision_on_with_an_entry_in_the_log(
    move: Move, source: JobState, target: JobState
) -> None:
    before = job(source)

    after, entry = move.apply(before, at(1))

    attempt = 2 if move is CLAIM else 1
    assert after == replace(
        before,
        state=target,
        revision=5,
        attempt=attempt,
        update_time=at(1),
        end_time=at(1) if target in FINAL_STATES else None,
    )
    assert entry == Transition(5, source, target, at(1), attempt, move.name, before.metrics)


@pytest.mark.parametrize(
    ("move", "state"), FORBIDDEN, ids=[f"{move.name}, {state}" for move, state in FORBIDDEN]
)
def test_any_other_move_is_refused_and_changes_nothing(move: Move, state: JobState) -> None:
    before = job(state)

    with pytest.raises(FailedPreconditionError) as refused:
        move.apply(before, at(1), error=went_wrong(), metrics=METRICS, cancellation=ASKED)

    assert before == job(state)
    assert refused.value.reason == ("JOB_FINISHED" if state in FINAL_STATES else "JOB_STATE")
    assert refused.value.metadata == {"id": "7", "state": state.name}
    assert f"The job 7 is {state.name}" in refused.value.message


def test_the_whole_table_is_walked() -> None:
    assert len(FORBIDDEN) + len(ALLOWED) == len(MOVES) * len(JobState) == 54


@pytest.mark.parametrize("state", JobState)
def test_a_job_is_final_where_no_move_starts(state: JobState) -> None:
    starts = [move for move in MOVES if state in move.sources]

    assert job(state).is_final == (not starts) == (state in {SUCCEEDED, FAILED, CANCELLED})


def test_a_life_without_trouble_is_logged_without_a_gap() -> None:
    claimed, first = CLAIM.apply(job(revision=1, attempt=0), at(1))
    ended, second = SUCCEED.apply(claimed, at(2), metrics=METRICS)

    assert (first.revision, second.revision) == (2, 3)
    assert (first.to_state, second.from_state) == (PROCESSING, PROCESSING)
    assert (ended.attempt, ended.end_time, ended.metrics) == (1, at(2), METRICS)
    assert second.metrics == METRICS


def test_only_a_claim_begins_an_attempt() -> None:
    ended = moved(job(attempt=0), CLAIM, RETRY, CLAIM, RELEASE, CLAIM, ASK_TO_CANCEL, LET_GO)

    assert ended.attempt == 3
    assert ended.revision == 4 + 7


def test_a_job_has_no_end_before_its_end() -> None:
    waiting = moved(job(), CLAIM, RETRY)

    assert waiting.end_time is None
    assert moved(waiting, CANCEL).end_time == at(0)


def test_a_back_off_is_over_with_the_next_move() -> None:
    waiting, _ = RETRY.apply(job(PROCESSING), at(0), not_before=at(1))
    claimed, _ = CLAIM.apply(waiting, at(2))

    assert (waiting.not_before, claimed.not_before) == (at(1), None)


def test_errors_pile_up_over_the_attempts() -> None:
    first, second = went_wrong(attempt=1), went_wrong(attempt=2, retryable=False)

    waiting, _ = RETRY.apply(job(PROCESSING), at(0), error=first)
    failed, _ = FAIL.apply(moved(waiting, CLAIM), at(2), error=second)

    assert failed.errors == (first, second)


def test_metrics_stay_as_they_are_unless_a_move_brings_new_ones() -> None:
    running = job(PROCESSING, metrics=METRICS)

    asked, entry = ASK_TO_CANCEL.apply(running, at(0))

    assert asked.metrics == entry.metrics == METRICS


# --- Cancel ---


def test_a_cancel_of_a_job_that_nobody_holds_ends_it() -> None:
    waiting = job(NEW)

    move = cancelling_move(waiting)

    assert move is CANCEL
    ended, _ = move.apply(waiting, at(0), cancellation=ASKED)
    assert (ended.state, ended.cancellation, ended.end_time) == (CANCELLED, ASKED, at(0))


def test_a_cancel_of_a_running_job_asks_its_worker() -> None:
    running = job(PROCESSING)

    move = cancelling_move(running)

    assert move is ASK_TO_CANCEL
    asked, _ = move.apply(running, at(0), cancellation=ASKED)
    assert (asked.state, asked.cancellation, asked.end_time) == (CANCELLING, ASKED, None)


def test_who_asked_to_cancel_is_known_to_the_end() -> None:
    asked, _ = ASK_TO_CANCEL.apply(job(PROCESSING), at(0), cancellation=ASKED)

    ended = moved(asked, LET_GO)

    assert (ended.state, ended.cancellation) == (CANCELLED, ASKED)


@pytest.mark.parametrize("state", [CANCELLING, CANCELLED])
def test_a_cancel_that_was_asked_before_changes_nothing(state: JobState) -> None:
    assert cancelling_move(job(state)) is None


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED])
def test_a_cancel_of_a_finished_job_is_refused(state: JobState) -> None:
    finished = job(state)

    move = cancelling_move(finished)

    assert move is not None
    with pytest.raises(FailedPreconditionError) as refused:
        move.apply(finished, at(0), cancellation=ASKED)
    assert refused.value.reason == "JOB_FINISHED"


def test_a_cancel_that_comes_before_the_commit_wins() -> None:
    asked = moved(job(PROCESSING), ASK_TO_CANCEL)

    with pytest.raises(FailedPreconditionError) as refused:
        SUCCEED.apply(asked, at(1))

    assert refused.value.reason == "JOB_STATE"
    assert moved(asked, LET_GO).state is CANCELLED


def test_a_commit_that_comes_before_the_cancel_wins() -> None:
    ended = moved(job(PROCESSING), SUCCEED)

    with pytest.raises(FailedPreconditionError) as refused:
        ASK_TO_CANCEL.apply(ended, at(1))

    assert refused.value.reason == "JOB_FINISHED"
    assert ended.state is SUCCEEDED


# --- Retries ---


def test_a_retryable_error_is_tried_again_with_a_back_off_that_doubles_until_attempts_are_used_up() -> None:
    some, waits = job(NEW, attempt=0), []
    while not some.is_final:
        some, _ = CLAIM.apply(some, NOON)
        error = went_wrong(attempt=some.attempt)
        move, not_before = after_error(some, error, NOON)
        some, _ = move.apply(some, NOON, error=error, not_before=not_before)
        waits.append(not_before and not_before - NOON)

    assert (some.state, some.attempt) == (FAILED, MAX_ATTEMPTS)
    assert waits == [timedelta(seconds=1), timedelta(seconds=2), None]
    assert [error.attempt for error in some.errors] == [1, 2, 3]


@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS + 2))
def test_an_error_that_would_come_again_fails_the_job_at_once(attempt: int) -> None:
    decided = after_error(job(PROCESSING, attempt=attempt), went_wrong(retryable=False), NOON)

    assert decided == (FAIL, None)


def test_an_attempt_that_was_released_does_not_count_against_the_job() -> None:
    released = job(PROCESSING, attempt=MAX_ATTEMPTS + 1)

    decided = after_error(released, went_wrong(), NOON)

    assert decided == (RETRY, NOON + timedelta(seconds=1))


# --- Phases ---

minutes = st.integers(0, 10_000)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Stamp], datetime]:
    """The stamps of a job in their order, some at one moment, and its end."""
    times = sorted(draw(st.lists(minutes, min_size=1, max_size=20)))
    stamps = [
        Stamp(draw(st.integers(0, MAX_ATTEMPTS)), draw(st.sampled_from(Phase)), at(time)) for time in times
    ]
    return stamps, at(times[-1] + draw(minutes))


@given(lives())
def test_phases_add_up_to_the_total_whatever_was_stamped(life: tuple[list[Stamp], datetime]) -> None:
    stamps, end = life

    phases = list(phase_times(stamps, end))

    lasted = [(phase.end_time or NOON) - phase.start_time for phase in phases]
    assert sum(lasted, timedelta()) == end - stamps[0].time
    assert all(duration >= timedelta() for duration in lasted)


@given(lives())
def test_phases_are_those_that_were_stamped_each_until_the_next(life: tuple[list[Stamp], datetime]) -> None:
    stamps, end = life

    phases = list(phase_times(stamps, end))

    assert [Stamp(phase.attempt, phase.phase, phase.start_time) for phase in phases] == stamps
    assert all(before.end_time == after.start_time for before, after in pairwise(phases))
    assert phases[-1].end_time == end


def test_the_last_phase_of_a_job_that_goes_on_has_no_end() -> None:
    stamps = [Stamp(0, Phase.QUEUE, at(0)), Stamp(1, Phase.PLAN, at(2))]

    phases = list(phase_times(stamps, None))

    assert phases == [PhaseTime(0, Phase.QUEUE, at(0), at(2)), PhaseTime(1, Phase.PLAN, at(2), None)]


def test_nothing_stamped_gives_no_phase() -> None:
    assert list(phase_times([], at(0))) == []


# --- What watches ask ---


def test_a_job_as_created_is_what_its_creation_made_of_it() -> None:
    created = job(NEW, revision=1, attempt=0, update_time=at(-10))

    ended = moved(replace(created, notes=("n",)), CLAIM, RETRY, CLAIM, ASK_TO_CANCEL, LET_GO)

    assert ended.as_created == created


def test_a_revision_that_a_job_has_not_reached_is_refused() -> None:
    job(NEW, revision=4).check_reached(4)

    with pytest.raises(PastEndError) as refused:
        job(NEW, revision=4).check_reached(5)

    assert (refused.value.reason, refused.value.metadata) == (
        "REVISION_OUT_OF_RANGE",
        {"id": "7", "revision": "4"},
    )


def test_progress_ranks_by_phase_and_then_by_rows() -> None:
    ranked = [
        Progress(phase, 1, done, 9)
        for phase, done in ((Phase.PLAN, 0), (Phase.RESOLVE, 7), (Phase.RUN, 0), (Phase.RUN, 8))
    ]

    assert all(before.rank < after.rank for before, after in pairwise(ranked))


# --- Why ---


def test_a_job_that_is_cancelled_or_failed_says_why() -> None:
    errors = tuple(
        JobError(code, f"{code} it is.", "engine", retryable=True, attempt=1) for code in ("FIRST", "LAST")
    )
    asked = Cancellation("ipv4:10.0.0.7", NOON, "")
    cancelled = replace(job(CANCELLED), cancellation=asked)

    assert replace(job(FAILED), errors=errors).state_reason == "LAST: LAST it is."
    assert cancelled.state_reason == "Cancelled by ipv4:10.0.0.7."
    told = replace(cancelled, state=CANCELLING, cancellation=replace(asked, reason="wrong day"))
    assert told.state_reason == "Cancelled by ipv4:10.0.0.7: wrong day"
    for state in (NEW, PROCESSING, SUCCEEDED):
        assert replace(job(state), errors=errors).state_reason == ""
