"""The checker: what must hold when the fire is out, whatever was killed when. Each check names what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from profile_export.client import JobTransition
from profile_export.domain.export.receipt import RECEIPT_FILE
from profile_export.domain.job import FINAL_STATES, MAX_ATTEMPTS, MOVES, JobState, Transition, phase_times
from profile_export.v1 import job_pb2
from tests.chaos.ending import Ending, FencedWrite, StoredJob
from tests.chaos.sources import Row

_CLOCK = timedelta(milliseconds=2)
"""How far SQLite's clock, of milliseconds, may be behind that of a process."""
_ALLOWED = {(source, move.target, move.name) for move in MOVES for source in move.sources}
_CAUSES = {"LEASE_LOST", "ENGINE_CRASHED", "DATABASE_UNAVAILABLE"}
"""What a kill, a stop, a crash and a cut connection end an attempt with."""
_EXPECTED = _CAUSES | {"RUN_TIME_EXCEEDED"}


def faults(ending: Ending) -> list[str]:
    """Return everything that is wrong, in sentences; none if all is well."""
    checks = (
        every_accepted_job_is_there_once,
        every_job_reached_one_final_state,
        every_job_that_failed_was_hit_often_enough,
        what_watchers_were_told_is_what_happened,
        phases_add_up,
        succeeded_jobs_have_their_batches_with_their_rows,
        no_other_batch_is_visible,
        no_former_holder_wrote,
        nothing_is_left,
    )
    return [f"{check.__name__}: {fault}" for check in checks for fault in check(ending)]


def every_accepted_job_is_there_once(ending: Ending) -> Iterator[str]:
    made = {stored.job.request_id: job_id for job_id, stored in ending.jobs.items()}
    if len(made) != len(ending.jobs):
        yield "two jobs have one request id"
    for told in ending.told:
        for job_id in told.job_ids:
            if made.get(told.request_id) != job_id:
                yield f"request {told.request_id} was answered with job {job_id}, and made {made.get(told.request_id)}"
    for request_id in made.keys() - {told.request_id for told in ending.told}:
        yield f"nobody has asked for {request_id}"
    if ending.listed.keys() != ending.jobs.keys():
        yield "the server lists other jobs than there are"


def every_job_reached_one_final_state(ending: Ending) -> Iterator[str]:
    for job_id, stored in ending.jobs.items():
        log = stored.transitions
        if [entry.revision for entry in log] != list(range(1, stored.job.revision + 1)):
            yield f"job {job_id} has not one log entry for each revision"
        if [entry.to_state for entry in log if entry.to_state in FINAL_STATES] != [stored.job.state]:
            yield f"job {job_id} is {stored.job.state}, and its log is {_states(log)}"
        for before, after in pairwise(log):
            if after.from_state != before.to_state or (
                (before.to_state, after.to_state, after.reason) not in _ALLOWED
            ):
                yield f"job {job_id} moved from {before.to_state} to {after.to_state} as {after.reason}"
        listed = ending.listed.get(job_id)
        if listed and job_pb2.JobState.Name(listed.state) != f"JOB_STATE_{stored.job.state.name}":
            yield f"job {job_id} is {stored.job.state}, and listed as {listed.state}"


def every_job_that_failed_was_hit_often_enough(ending: Ending) -> Iterator[str]:
    for job_id, stored in ending.jobs.items():
        codes = [error.code for error in stored.job.errors]
        if unexpected := set(codes) - _EXPECTED:
            yield f"job {job_id} has {unexpected}: {stored.job.errors}"
        late = "RUN_TIME_EXCEEDED" in codes
        if stored.job.state is JobState.FAILED and not late and len(codes) < MAX_ATTEMPTS:
            yield f"job {job_id} failed after {codes}"
        if late and stored.job.deadline is None:
            yield f"job {job_id} has exceeded no limit"
    for told in ending.told:
        job = ending.jobs[told.job_ids[0]].job if told.job_ids and told.job_ids[0] in ending.jobs else None
        if job and told.cancel_accepted and job.state is not JobState.CANCELLED:
            # A cancel that was accepted of a job whose run time was over, or whose cancel was asked of a lost server.
            yield f"job {job.id} was asked to cancel, and is {job.state}"
        if job and job.state is JobState.CANCELLED and not told.cancel_asked:
            yield f"job {job.id} is cancelled, and nobody has asked"


def what_watchers_were_told_is_what_happened(ending: Ending) -> Iterator[str]:
    for told in ending.told:
        stored = ending.jobs.get(told.job_ids[0]) if told.job_ids else None
        if stored is None or told.ended is None:
            yield f"request {told.request_id} was never told its end"
            continue
        heard = [_heard(transition) for transition in told.transitions]
        if heard != [_happened(entry) for entry in stored.transitions]:
            yield f"job {stored.job.id} went {_states(stored.transitions)}, and its watcher heard {heard}"
        if told.ended != ending.listed.get(stored.job.id):
            yield f"job {stored.job.id} is listed otherwise than its watcher heard at the end"


def phases_add_up(ending: Ending) -> Iterator[str]:
    for job_id, stored in ending.jobs.items():
        job, stamps = stored.job, stored.stamps
        phases = [*phase_times(stamps, job.end_time)]
        spans = [(phase.end_time or phase.start_time) - phase.start_time for phase in phases]
        if not phases or phases[0].start_time != job.create_time or phases[-1].end_time != job.end_time:
            yield f"job {job_id} has phases that do not span its life"
            continue
        if job.end_time is None or sum(spans, timedelta()) != job.end_time - job.create_time:
            yield f"job {job_id} has phases that do not add up"
        if min(spans) < timedelta():
            yield f"job {job_id} has a phase that ends before it begins: {phases}"
        if any(after.attempt < before.attempt for before, after in pairwise(stamps)):
            yield f"job {job_id} has a phase of an attempt that was over: {stamps}"
        listed = ending.listed.get(job_id)
        if listed:
            parts = sum((phase.time.ToTimedelta() for phase in listed.metrics.phases), timedelta())
            if parts != listed.metrics.total_time.ToTimedelta():
                yield f"job {job_id} is listed with phases that do not add up"


def succeeded_jobs_have_their_batches_with_their_rows(ending: Ending) -> Iterator[str]:
    for path in ending.damaged:
        yield f"{path} is not what the store says of it"
    kinds = {told.request_id: told.kind for told in ending.told}
    for job_id, stored in ending.jobs.items():
        kind = kinds.get(stored.job.request_id)
        if stored.job.state is not JobState.SUCCEEDED or kind is None:
            continue
        if len(stored.batches) != len(kind.batches):
            yield f"job {job_id} has {len(stored.batches)} batches"
        for batch_id, rows in zip(stored.batches, kind.batches, strict=False):
            if ending.visible.count(batch_id) != 1:
                yield f"batch {batch_id} of job {job_id} is visible {ending.visible.count(batch_id)} times"
            elif not ending.damaged and ending.rows.get(batch_id) != rows:
                found = ending.rows.get(batch_id, Counter[Row]())
                lacks, extra = sum((rows - found).values()), sum((found - rows).values())
                yield f"batch {batch_id} of job {job_id} lacks {lacks} rows and has {extra} that are not meant"


def no_other_batch_is_visible(ending: Ending) -> Iterator[str]:
    meant = {
        batch_id
        for stored in ending.jobs.values()
        if stored.job.state is JobState.SUCCEEDED
        for batch_id in stored.batches
    }
    for batch_id in set(ending.visible) - meant:
        yield f"batch {batch_id} is visible"
    for batch in ending.batches.values():
        if batch.job_id is None:
            continue
        ended = ending.jobs[batch.job_id].job.state
        if batch.state != _BATCH_OF.get(ended):
            yield f"batch {batch.id} is {batch.state}, and its job {ended}"
        if ended is not JobState.SUCCEEDED and batch.files:
            yield f"batch {batch.id} has files, and its job is {ended}"


_BATCH_OF = {JobState.SUCCEEDED: "succeeded", JobState.FAILED: "failed", JobState.CANCELLED: "aborted"}


def no_former_holder_wrote(ending: Ending) -> Iterator[str]:
    for write in ending.writes:
        stored = ending.jobs.get(write.job)
        if stored is None or write.outcome != ACCEPTED:
            continue
        over = end_of_attempt(stored, write.attempt)
        if over is not None and began(write) > over + _CLOCK:
            yield f"{write} was accepted, and the attempt had ended at {over}"
        if write.doing == "commit":
            last = stored.transitions[-1]
            if (last.to_state, last.attempt) != (JobState.SUCCEEDED, write.attempt):
                yield f"{write} was accepted, and the job ended {last.to_state} in attempt {last.attempt}"


ACCEPTED = "accepted"


def end_of_attempt(stored: StoredJob, attempt: int) -> datetime | None:
    """Return when an attempt did not hold its job any more."""
    for entry in stored.transitions:
        if entry.attempt == attempt and entry.to_state in {JobState.NEW, *FINAL_STATES}:
            return entry.time
    return None


def began(write: FencedWrite) -> datetime:
    return datetime.fromtimestamp(write.began, UTC)


def nothing_is_left(ending: Ending) -> Iterator[str]:
    for table, count in ending.left.items():
        if count:
            yield f"{table} has {count} rows"
    named = {file.path for batch in ending.batches.values() for file in batch.files}
    receipts = {
        f"{batch.folder}/{RECEIPT_FILE}"
        for batch in ending.batches.values()
        if batch.job_id is not None and batch.state == "succeeded"
    }
    for path in sorted(receipts - ending.lake):
        yield f"{path} is not there"
    for path in sorted(ending.lake - named - receipts - ending.copies):
        if not any(path.startswith(f"{folder}/") for folder in ending.dropped):
            yield f"{path} belongs to nothing"


def _states(log: Sequence[Transition]) -> list[str]:
    return [entry.to_state.value for entry in log]


def _heard(transition: JobTransition) -> tuple[int, str, int]:
    state = job_pb2.JobState.Name(transition.to_state).removeprefix("JOB_STATE_").lower()
    return (transition.revision, state, transition.attempt)


def _happened(entry: Transition) -> tuple[int, str, int]:
    return (entry.revision, entry.to_state.value, entry.attempt)
