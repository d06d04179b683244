"""What the promises are checked with finds what is wrong: for each, histories made by hand that break it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.watch import promises
from tests.watch.history import Connection, Drain, Ended, History, Log, Move, Received

LOG: Log = (
    Move(1, "UNSPECIFIED", "NEW", 0, "created", 10.0),
    Move(2, "NEW", "PROCESSING", 1, "claimed", 20.0),
    Move(3, "PROCESSING", "FAILED", 1, "failed", 30.0),
)
OK = Ended(31.0, "OK")
DRAINED = Ended(25.0, "UNAVAILABLE", "SERVER_DRAINING", 1.0)
HUNG_UP = Ended(25.0, "CANCELLED", hung_up=True)
DRAIN = Drain("A", asked=24.0, not_serving=24.5, stopped=26.0)


def state(name: str) -> job_pb2.JobState.ValueType:
    return job_pb2.JobState.Value(f"JOB_STATE_{name}")


def job(revision: int) -> job_pb2.ExportJob:
    return job_pb2.ExportJob(id=1, revision=revision, state=state(LOG[revision - 1].to_state))


def moved(*revisions: int, **changes: object) -> es.WatchJobResponse:
    """A message with transitions, and with the job if the last is final."""
    told = [
        job_pb2.JobTransition(
            revision=move.revision,
            from_state=state(move.from_state),
            to_state=state(move.to_state),
            attempt=move.attempt,
            reason=move.reason,
        )
        for move in (LOG[revision - 1] for revision in revisions)
    ]
    whole = job(3) if revisions[-1] == 3 else None
    values: dict[str, object] = {"revision": revisions[-1], "transitions": told, "job": whole, **changes}
    return es.WatchJobResponse(**values)  # type: ignore[arg-type]  # a test may leave any of them out


def snapshot(revision: int) -> es.WatchJobResponse:
    return es.WatchJobResponse(revision=revision, job=job(revision))


def progressed(
    revision: int, attempt: int, phase: int, done: int, estimated: int = 100
) -> es.WatchJobResponse:
    number = job_pb2.JobPhase.ValueType(phase)
    progress = job_pb2.JobProgress(attempt=attempt, phase=number, done=done, estimated=estimated)
    return es.WatchJobResponse(revision=revision, progress=progress)


def connected(
    after: int | None,
    *messages: es.WatchJobResponse,
    ended: Ended | None = OK,
    at: float = 20.0,
    number: int = 0,
) -> Connection:
    received = [Received(at, message.SerializeToString(), message) for message in messages]
    return Connection(number, "A", after, opened=15.0, messages=received, ended=ended)


def history(*connections: Connection, hops: bool = False, slow_until: float = 0.0) -> History:
    return History("watcher", 1, hops, slow_until, list(connections))


KEPT = (
    history(connected(None, snapshot(1), moved(2, 3))),
    history(connected(0, moved(1), moved(2), ended=DRAINED), connected(2, moved(3))),
    history(connected(0, moved(1, 2), ended=HUNG_UP), connected(2, ended=HUNG_UP), connected(2, moved(3))),
    history(connected(3, snapshot(3))),
    history(connected(None, snapshot(3))),
    history(connected(2, progressed(2, 1, 4, 7), moved(3))),
    history(connected(0, moved(1), ended=HUNG_UP), connected(0, moved(1, 2, 3)), hops=True),
    history(connected(4, ended=Ended(16.0, "OUT_OF_RANGE", "REVISION_OUT_OF_RANGE"))),
)


@pytest.mark.parametrize("good", KEPT)
def test_a_history_that_keeps_the_promises_has_no_fault(good: History) -> None:
    assert promises.ordered(good, LOG) == []
    assert promises.resumable(good, LOG) == []
    assert promises.final_if_and_only_if_ok(good, LOG) == []
    assert promises.no_lost_wake_up(good, LOG, patience=11) == []
    assert promises.never_back(good) == []


UNORDERED = {
    "a gap": history(connected(0, moved(1), moved(3))),
    "a gap in a message": history(connected(0, moved(1, 3))),
    "a repetition": history(connected(0, moved(1), moved(1, 2, 3))),
    "a repetition after a break": history(
        connected(0, moved(1, 2), ended=DRAINED), connected(2, moved(2, 3))
    ),
    "a loss after a break": history(connected(0, moved(1), ended=DRAINED), connected(1, moved(3))),
    "the wrong order": history(connected(0, moved(2, 1), moved(3))),
    "a revision ahead of the transitions": history(connected(0, moved(1, revision=2), moved(3))),
    "a heartbeat that goes back": history(
        connected(0, moved(1, 2), es.WatchJobResponse(revision=1), moved(3))
    ),
    "a move before the snapshot": history(connected(None, moved(2), moved(3))),
    "an end too early": history(connected(0, moved(1, 2))),
    "a move that was another": history(
        connected(2, moved(3, transitions=[job_pb2.JobTransition(revision=3, to_state=state("CANCELLED"))]))
    ),
    "a move that never was": history(
        connected(3, es.WatchJobResponse(revision=4, transitions=[job_pb2.JobTransition(revision=4)]))
    ),
}


@pytest.mark.parametrize("broken", UNORDERED.values(), ids=UNORDERED.keys())
def test_what_is_not_ordered_unique_and_reliable_is_found(broken: History) -> None:
    assert promises.ordered(broken, LOG)


NOT_RESUMABLE = {
    "a start too late": history(connected(0, moved(2, 3))),
    "a start too early": history(connected(2, moved(2, 3))),
    "no snapshot": history(connected(None, moved(2, 3))),
    "a snapshot with moves": history(connected(None, moved(3))),
    "a snapshot of another revision": history(connected(None, es.WatchJobResponse(revision=2, job=job(1)))),
    "a loss after the snapshot": history(connected(None, snapshot(1), moved(3))),
    "a snapshot unasked": history(connected(1, snapshot(1), moved(2, 3))),
    "a refusal without need": history(connected(3, ended=Ended(16.0, "OUT_OF_RANGE"))),
    "no refusal of the future": history(connected(4, snapshot(3))),
}


@pytest.mark.parametrize("broken", NOT_RESUMABLE.values(), ids=NOT_RESUMABLE.keys())
def test_what_does_not_resume_exactly_is_found(broken: History) -> None:
    assert promises.resumable(broken, LOG)


NOT_FINAL = {
    "OK too early": history(connected(0, moved(1, 2))),
    "OK without a word": history(connected(3)),
    "an error after the end": history(connected(2, moved(3), ended=Ended(31.0, "UNAVAILABLE"))),
    "a failed job that fails the call": history(connected(2, moved(3), ended=Ended(31.0, "ABORTED"))),
    "a last move without the job": history(connected(2, moved(3, job=None))),
    "more after the end": history(connected(2, moved(3), es.WatchJobResponse(revision=3))),
    "no end": history(connected(2, moved(3), ended=None)),
}


@pytest.mark.parametrize("broken", NOT_FINAL.values(), ids=NOT_FINAL.keys())
def test_an_end_that_is_not_final_if_and_only_if_ok_is_found(broken: History) -> None:
    assert promises.final_if_and_only_if_ok(broken, LOG)


LOST = {
    "a move told late": history(connected(1, moved(2), moved(3), at=40.0)),
    "a move made before, told late": history(connected(0, moved(1), ended=HUNG_UP, at=24.0)),
    "a move never told": history(connected(1, ended=Ended(90.0, "CANCELLED", hung_up=True))),
    "a move told late to one that was slow": history(connected(2, moved(3), at=40.0), slow_until=34.0),
}


@pytest.mark.parametrize("broken", LOST.values(), ids=LOST.keys())
def test_a_lost_wake_up_is_found(broken: History) -> None:
    assert promises.no_lost_wake_up(broken, LOG, patience=5)


def test_a_slow_reader_is_told_when_it_reads() -> None:
    slow = history(connected(2, moved(3), at=80.0), slow_until=79.0)

    assert promises.no_lost_wake_up(slow, LOG, patience=5) == []


def beside(at: float) -> Sequence[History]:
    return [history(connected(1, moved(2, 3), at=at))]


def test_a_reader_that_costs_others_something_is_found() -> None:
    stalled = history(connected(None, snapshot(1), moved(2, 3), at=50.0), slow_until=50.0)

    assert promises.isolated(stalled, beside(30.0), most_messages=2) == []
    assert promises.isolated(stalled, beside(51.0), most_messages=2)
    assert promises.isolated(stalled, [history(connected(1, moved(2)))], most_messages=2)


def test_a_queue_for_a_slow_reader_is_found() -> None:
    told = (snapshot(1), moved(2), progressed(2, 1, 4, 1), progressed(2, 1, 4, 2), moved(3))
    stalled = history(connected(None, *told, at=50.0), slow_until=50.0)

    assert len(promises.isolated(stalled, beside(30.0), most_messages=9)) == 1
    assert len(promises.isolated(stalled, beside(30.0), most_messages=3)) == 2


def test_bytes_that_differ_are_found() -> None:
    first = history(connected(None, snapshot(1), moved(2), moved(3)))
    alone = history(connected(None, snapshot(1), moved(2, 3)))
    later = moved(2)
    later.server_time.FromSeconds(7)
    differing = history(connected(None, snapshot(1), later, moved(3)))

    assert promises.cheap([first, first, alone]) == []
    assert len(promises.cheap([first, first, differing])) == 1


BADLY_DRAINED = {
    "an end without a reason": history(connected(0, moved(1), ended=Ended(25.0, "UNAVAILABLE"))),
    "a cancel": history(connected(0, moved(1), ended=Ended(25.0, "CANCELLED"))),
    "no advice": history(connected(0, moved(1), ended=Ended(25.0, "UNAVAILABLE", "SERVER_DRAINING"))),
    "an end before health": history(
        connected(0, moved(1), ended=Ended(24.2, "UNAVAILABLE", "SERVER_DRAINING", 1.0))
    ),
    "an end after the server's": history(
        connected(0, moved(1), ended=Ended(27.0, "UNAVAILABLE", "SERVER_DRAINING", 1.0))
    ),
}


@pytest.mark.parametrize("broken", BADLY_DRAINED.values(), ids=BADLY_DRAINED.keys())
def test_a_bad_drain_is_found(broken: History) -> None:
    good = history(connected(0, moved(1), ended=DRAINED))

    assert promises.drained([good], DRAIN) == []
    assert len(promises.drained([good, broken], DRAIN)) == 1


def test_a_drain_that_ends_no_watch_or_begins_a_job_is_found() -> None:
    good = history(connected(0, moved(1), ended=DRAINED))

    assert promises.drained([], DRAIN)
    assert promises.drained([good], Drain("A", 24.0, 24.5, 26.0, begun=1))


BACK = {
    "fewer done": (progressed(2, 1, 4, 7), progressed(2, 1, 4, 6)),
    "a phase before": (progressed(2, 1, 4, 7), progressed(2, 1, 3, 8)),
    "an attempt before": (progressed(2, 2, 2, 0), progressed(2, 1, 4, 8)),
    "more than there is": (progressed(2, 1, 4, 101),),
}


@pytest.mark.parametrize("messages", BACK.values(), ids=BACK.keys())
def test_progress_that_goes_back_is_found(messages: Sequence[es.WatchJobResponse]) -> None:
    assert promises.never_back(history(connected(2, *messages)))
    assert promises.never_back(history(*(connected(2, message) for message in messages)))


def test_progress_may_begin_again_with_an_attempt_or_a_phase() -> None:
    told = (progressed(2, 1, 3, 9), progressed(2, 1, 4, 0), progressed(2, 1, 4, 0), progressed(2, 2, 2, 0))

    assert promises.never_back(history(connected(2, *told))) == []
