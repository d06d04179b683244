"""The checker finds what it is there to find: an ending that is as it must be, spoiled in one way at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from profile_export.client import ExportJob, JobTransition
from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import Job, JobError, JobMetrics, JobState, Phase, Stamp, Transition
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.v1 import job_pb2
from tests.chaos.checker import faults
from tests.chaos.ending import Ending, FencedWrite, StoredBatch, StoredJob
from tests.chaos.load import Told
from tests.chaos.sources import Kind, Row

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ROWS: Counter[Row] = Counter([("C-1", "a@x.org", None)])
KIND = Kind("all", job_pb2.ExportSpec(), [ROWS])
PATH, RECEIPT = "d/b/2/0-0.parquet", "d/b/receipt.json"


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def moved(revision: int, before: JobState | None, after: JobState, attempt: int, reason: str) -> Transition:
    return Transition(revision, before, after, at(revision - 1), attempt, reason, JobMetrics())


LOG = (
    moved(1, None, JobState.NEW, 0, "created"),
    moved(2, JobState.NEW, JobState.PROCESSING, 1, "claimed"),
    moved(3, JobState.PROCESSING, JobState.NEW, 1, "retried"),
    moved(4, JobState.NEW, JobState.PROCESSING, 2, "claimed"),
    moved(5, JobState.PROCESSING, JobState.SUCCEEDED, 2, "succeeded"),
)
JOB = Job(
    id=1,
    bound=BoundRequest(ExportRequest("d"), BUILT_IN_POLICY),
    request_id="r-1",
    batch_id="b",
    state=JobState.SUCCEEDED,
    revision=5,
    attempt=2,
    create_time=at(0),
    update_time=at(4),
    end_time=at(4),
    errors=(JobError("LEASE_LOST", "", "runner", retryable=True, attempt=1),),
)
STAMPS = (
    Stamp(0, Phase.QUEUE, at(0)),
    Stamp(1, Phase.PLAN, at(1)),
    Stamp(1, Phase.QUEUE, at(2)),
    Stamp(2, Phase.PLAN, at(3)),
)
STORED = StoredJob(JOB, LOG, STAMPS, ["b"])
BATCH = StoredBatch("b", "d", "succeeded", "d/b", 1, [DataFile("0-0.parquet", PATH, 1, 10, "ab")])
COMMIT = FencedWrite("commit", 1, 2, "w-2", at(3.9).timestamp(), "accepted")


def listed() -> ExportJob:
    return ExportJob(id=1, state=job_pb2.JOB_STATE_SUCCEEDED)


def told() -> Told:
    heard = [
        JobTransition(
            revision=entry.revision,
            to_state=job_pb2.JobState.Value(f"JOB_STATE_{entry.to_state.name}"),
            attempt=entry.attempt,
        )
        for entry in LOG
    ]
    return Told("r-1", KIND, job_ids=[1], transitions=heard, ended=listed())


def good() -> Ending:
    return Ending(
        told=[told()],
        jobs={1: STORED},
        batches={"b": BATCH},
        listed={1: listed()},
        visible=["b"],
        rows={"b": ROWS},
        lake=frozenset({PATH, RECEIPT}),
        damaged=[],
        copies=frozenset(),
        dropped=frozenset(),
        left={"leases": 0},
        writes=[COMMIT, replace(COMMIT, attempt=1, began=at(2.5).timestamp(), outcome="LeaseLostError")],
    )


def stored(**changes: object) -> Ending:
    return replace(good(), jobs={1: replace(STORED, **changes)})  # type: ignore[arg-type]  # whichever


def told_otherwise(**changes: object) -> Ending:
    return replace(good(), told=[replace(told(), **changes)])  # type: ignore[arg-type]  # as above


def test_an_ending_as_it_must_be_has_no_fault() -> None:
    assert faults(good()) == []


SPOILED: dict[str, list[Callable[[], Ending]]] = {
    "every_accepted_job_is_there_once": [
        lambda: told_otherwise(job_ids=[1, 2]),
        lambda: told_otherwise(request_id="r-2"),
        lambda: replace(good(), listed={}),
    ],
    "every_job_reached_one_final_state": [
        lambda: stored(transitions=LOG[:-1]),
        lambda: stored(transitions=(*LOG, replace(LOG[-1], revision=6))),
        lambda: stored(transitions=(*LOG[:2], replace(LOG[2], to_state=JobState.FAILED), *LOG[3:])),
        lambda: stored(job=replace(JOB, state=JobState.PROCESSING)),
    ],
    "every_job_that_failed_was_hit_often_enough": [
        lambda: stored(job=replace(JOB, state=JobState.FAILED)),
        lambda: stored(job=replace(JOB, errors=(replace(JOB.errors[0], code="INTERNAL"),))),
        lambda: stored(job=replace(JOB, errors=(replace(JOB.errors[0], code="RUN_TIME_EXCEEDED"),))),
        lambda: stored(job=replace(JOB, state=JobState.CANCELLED)),
        lambda: told_otherwise(cancel_accepted=True),
    ],
    "what_watchers_were_told_is_what_happened": [
        lambda: told_otherwise(transitions=told().transitions[1:]),
        lambda: told_otherwise(transitions=[*told().transitions, told().transitions[-1]]),
        lambda: told_otherwise(ended=None),
        lambda: told_otherwise(ended=ExportJob(id=1)),
    ],
    "phases_add_up": [
        lambda: stored(stamps=STAMPS[1:]),
        lambda: stored(stamps=(*STAMPS[:2], replace(STAMPS[2], time=at(0.5)), STAMPS[3])),
        lambda: stored(stamps=(*STAMPS, Stamp(1, Phase.COMMIT, at(3.5)))),
    ],
    "succeeded_jobs_have_their_batches_with_their_rows": [
        lambda: replace(good(), visible=[]),
        lambda: replace(good(), visible=["b", "b"]),
        lambda: replace(good(), rows={"b": ROWS + ROWS}),
        lambda: replace(good(), rows={"b": Counter()}),
        lambda: replace(good(), damaged=[PATH]),
        lambda: stored(batches=["b", "c"]),
    ],
    "no_other_batch_is_visible": [
        lambda: replace(good(), visible=["b", "c"]),
        lambda: replace(good(), batches={"b": replace(BATCH, state="loading")}),
        lambda: stored(job=replace(JOB, state=JobState.CANCELLED)),
    ],
    "no_former_holder_wrote": [
        lambda: replace(good(), writes=[replace(COMMIT, doing="beat", began=at(4.5).timestamp())]),
        lambda: replace(good(), writes=[replace(COMMIT, attempt=1, began=at(1.5).timestamp())]),
    ],
    "nothing_is_left": [
        lambda: replace(good(), left={"leases": 1}),
        lambda: replace(good(), lake=frozenset({PATH})),
        lambda: replace(good(), lake=frozenset({PATH, RECEIPT, "d/b/1/0-0.parquet"})),
    ],
}


@pytest.mark.parametrize(
    ("check", "spoil"), [(check, spoil) for check, ways in SPOILED.items() for spoil in ways]
)
def test_a_spoiled_ending_is_found_out(check: str, spoil: Callable[[], Ending]) -> None:
    assert check in {fault.split(":")[0] for fault in faults(spoil())}
