"""Jobs: every move and its log entry are one transaction, checked against the job's revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.batch import BatchState
from profile_export.domain.catalog import Tenant
from profile_export.domain.errors import PastEndError
from profile_export.domain.job import (
    Cancellation,
    Job,
    JobMetrics,
    JobState,
    Move,
    Phase,
    PhaseTime,
    Progress,
    Stamp,
    Transition,
    cancelling_move,
    phase_times,
)
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.domain.request import BoundRequest, ExportRequest
from profile_export.store.batches import batches_of_job, drop_batch
from profile_export.store.catalog import check_digest
from profile_export.store.column_types import digest_of
from profile_export.store.database import Database, database_time, whole
from profile_export.store.events import Wakeups
from profile_export.store.expiries import existing_job
from profile_export.store.tables import batches, job_ranges, job_stamps, job_transitions, jobs, leases
from profile_export.store.tenants import ensure_tenant, id_of


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job starts with; `folders` are those of the batches that every attempt fills, by id in their order.

    There is one, or with `segment_per_batch` one for each segment.
    """

    bound: BoundRequest
    request_id: str
    folders: Mapping[str, str]


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


class Jobs:
    """Jobs of all tenants, as callers see them; `kept_for` says how long after their end, None for ever."""

    def __init__(self, database: Database, wakeups: Wakeups, kept_for: timedelta | None = None) -> None:
        self.database = database
        self._wakeups = wakeups
        self._kept_for = kept_for

    @whole
    async def create(self, tenant: Tenant, new: NewJob) -> tuple[JobView, bool]:
        """Make a job and its batch, or find the one made before with the same request id; True says found.

        Raises:
            AlreadyExistsError: The request id stands for a job made from other values.
        """
        digest = digest_of(new.bound.request)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            if found := await _made_by(connection, tenant_id, new.request_id, digest):
                return await _view(connection, found, self._kept_for), True
            now = await database_time(connection)
            row = await _insert_job(connection, tenant_id, new, digest, now)
            first = Transition(1, None, JobState.NEW, now, 0, "created", JobMetrics())
            await _log(connection, row.id, first)
            await stamp(connection, row.id, 0, Phase.QUEUE, now)
            view = await _view(connection, row, self._kept_for)
        self._wakeups.job_changed(view.job.id)
        return view, False

    @whole
    async def made_by(self, tenant: Tenant, request_id: str, request: ExportRequest) -> JobView | None:
        """Return the job made before with a request id; None if there is none, or the id is empty.

        Raises:
            AlreadyExistsError: As `create`.
        """
        async with self.database.read() as connection:
            found = await _made_by(connection, id_of(tenant), request_id, digest_of(request))
            return await _view(connection, found, self._kept_for) if found else None

    @whole
    async def get(self, tenant: Tenant, job_id: int) -> JobView:
        """Return a job.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            row = await existing_job(connection, id_of(tenant), job_id)
            return await _view(connection, row, self._kept_for)

    @whole
    async def list(self, tenant: Tenant, request: PageRequest) -> Page[JobView]:
        """Return a page of jobs, newest first; ids grow with time, so they are the key."""
        query = select(jobs).where(jobs.c.tenant_id == id_of(tenant))
        if request.cursor:
            query = query.where(jobs.c.id < request.number)
        async with self.database.read() as connection:
            rows = (await connection.execute(query.order_by(jobs.c.id.desc()).limit(request.size + 1))).all()
            views = [await _view(connection, row, self._kept_for) for row in rows]
        return cut_page(views, request, lambda last: str(last.job.id))

    @whole
    async def cancel(self, tenant: Tenant, job_id: int, requested_by: str, reason: str) -> JobView:
        """Ask a job to end without effect; asking again changes nothing.

        Raises:
            NotFoundError: The tenant has no such job.
            FailedPreconditionError: It has SUCCEEDED or FAILED.
        """
        async with self.database.write() as connection:
            row = await existing_job(connection, id_of(tenant), job_id)
            move = cancelling_move(job_from(row))
            if move:
                now = await database_time(connection)
                cancellation = Cancellation(requested_by, now, reason)
                row = await move_job(connection, row, move, cancellation=cancellation)
            view = await _view(connection, row, self._kept_for)
        self._wakeups.job_changed(job_id)
        return view

    @whole
    async def transitions_after(
        self, tenant: Tenant, job_id: int, revision: int
    ) -> tuple[JobView, Sequence[Transition]]:
        """Return the job and the log entries after a revision, of one moment.

        Raises:
            NotFoundError: The tenant has no such job.
            PastEndError: The job has not reached that revision.
        """
        async with self.database.read() as connection:
            row = await existing_job(connection, id_of(tenant), job_id)
            view = await _view(connection, row, self._kept_for)
            if revision > view.job.revision:
                raise PastEndError(
                    "REVISION_OUT_OF_RANGE",
                    f"The job {job_id} is at revision {view.job.revision}, which is before {revision}.",
                    metadata={"id": str(job_id), "revision": str(view.job.revision)},
                )
            if revision == view.job.revision:
                return view, ()
            query = select(job_transitions).where(
                job_transitions.c.job_id == job_id, job_transitions.c.revision > revision
            )
            rows = await connection.execute(query.order_by(job_transitions.c.revision))
            return view, [_transition(row) for row in rows]


async def move_job(connection: AsyncConnection, row: Row[Any], move: Move, **changes: Any) -> Row[Any]:
    """Make a move and its log entry, and what follows from the state it leads to; return the job's new row.

    `changes` are those of `Move.apply`. The update is a compare-and-set on the revision; it always meets its row, since
    whoever moves a job writes alone or has locked the row.

    Raises:
        FailedPreconditionError: The job is not in a state that the move starts from.
    """
    now = await database_time(connection)
    job, transition = move.apply(job_from(row), now, **changes)
    values = {
        "state": job.state.value,
        "revision": job.revision,
        "attempt": job.attempt,
        "update_time": job.update_time,
        "end_time": job.end_time,
        "not_before": job.not_before,
        "cancellation": job.cancellation,
        "errors": job.errors,
        "metrics": job.metrics,
    }
    query = (
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.revision == row.revision)
        .values(values)
        .returning(jobs)
    )
    moved: Row[Any] = (await connection.execute(query)).one()
    await _log(connection, job.id, transition)
    phase = _PHASE_OF.get(job.state)
    if phase:
        await stamp(connection, job.id, job.attempt, phase, now)
    if job.is_final:
        await connection.execute(delete(job_ranges).where(job_ranges.c.job_id == job.id))
    if job.state in _BATCH_ENDS:
        for batch in await batches_of_job(connection, job.id):
            await drop_batch(connection, batch, _BATCH_ENDS[job.state])
    return moved


# The phase that begins with a state; an attempt stamps the ones within PROCESSING itself.
_PHASE_OF = {JobState.NEW: Phase.QUEUE, JobState.PROCESSING: Phase.PLAN, JobState.CANCELLING: Phase.CANCEL}
_BATCH_ENDS = {JobState.CANCELLED: BatchState.ABORTED, JobState.FAILED: BatchState.FAILED}


async def stamp(connection: AsyncConnection, job_id: int, attempt: int, phase: Phase, now: datetime) -> None:
    """Note that a phase begins."""
    row = {"job_id": job_id, "attempt": attempt, "phase": phase.value, "time": now}
    await connection.execute(insert(job_stamps).values(row))


def job_from(row: Row[Any]) -> Job:
    """Make a job of its row."""
    return Job(
        id=row.id,
        bound=row.bound,
        request_id=row.request_id or "",
        batch_id=row.batch_id,
        segment_batches=row.segment_batches,
        state=JobState(row.state),
        revision=row.revision,
        attempt=row.attempt,
        create_time=row.create_time,
        update_time=row.update_time,
        end_time=row.end_time,
        not_before=row.not_before,
        cancellation=row.cancellation,
        errors=row.errors,
        metrics=row.metrics,
        notes=row.notes,
    )


async def _insert_job(
    connection: AsyncConnection, tenant_id: int, new: NewJob, digest: str, now: datetime
) -> Row[Any]:
    request = new.bound.request
    values = {
        "tenant_id": tenant_id,
        "bound": new.bound,
        "request_id": new.request_id or None,
        "request_digest": digest,
        "destination_id": request.destination_id,
        "batch_id": "" if request.segment_per_batch else next(iter(new.folders)),
        "segment_batches": tuple(new.folders) if request.segment_per_batch else (),
        "state": JobState.NEW.value,
        "revision": 1,
        "attempt": 0,
        "create_time": now,
        "update_time": now,
        "deadline": request.deadline(now),
        "errors": (),
        "metrics": JobMetrics(),
        "notes": (),
    }
    row: Row[Any] = (await connection.execute(insert(jobs).values(values).returning(jobs))).one()
    loading = [
        {
            "tenant_id": tenant_id,
            "id": batch_id,
            "dataset_id": request.destination_id,
            "state": BatchState.LOADING.value,
            "create_time": now,
            "job_id": row.id,
            "folder": folder,
        }
        for batch_id, folder in new.folders.items()
    ]
    await connection.execute(insert(batches), loading)
    return row


async def _made_by(
    connection: AsyncConnection, tenant_id: Any, request_id: str, digest: str
) -> Row[Any] | None:
    if not request_id:
        return None
    query = select(jobs).where(jobs.c.tenant_id == tenant_id, jobs.c.request_id == request_id)
    found: Row[Any] | None = (await connection.execute(query)).first()
    if found:
        check_digest(found, digest, request_id)
    return found


async def _log(connection: AsyncConnection, job_id: int, transition: Transition) -> None:
    values = {
        "job_id": job_id,
        "revision": transition.revision,
        "from_state": transition.from_state.value if transition.from_state else None,
        "to_state": transition.to_state.value,
        "time": transition.time,
        "attempt": transition.attempt,
        "reason": transition.reason,
        "metrics": transition.metrics,
    }
    await connection.execute(insert(job_transitions).values(values))


async def _view(connection: AsyncConnection, row: Row[Any], kept_for: timedelta | None) -> JobView:
    job = job_from(row)
    progress = None
    if job.state is JobState.PROCESSING:
        lease = (await connection.execute(select(leases.c.progress).where(leases.c.job_id == job.id))).first()
        progress = lease.progress if lease else None
    until = job.end_time or await database_time(connection)
    expire_time = job.end_time + kept_for if job.end_time and kept_for else None
    return JobView(job, await phases_of(connection, job), progress, until, expire_time)


async def phases_of(connection: AsyncConnection, job: Job) -> tuple[PhaseTime, ...]:
    """Return where the time of a job went so far."""
    query = select(job_stamps).where(job_stamps.c.job_id == job.id).order_by(job_stamps.c.key)
    stamps = [
        Stamp(found.attempt, Phase(found.phase), found.time) for found in await connection.execute(query)
    ]
    return tuple(phase_times(stamps, job.end_time))


def _transition(row: Row[Any]) -> Transition:
    return Transition(
        revision=row.revision,
        from_state=JobState(row.from_state) if row.from_state else None,
        to_state=JobState(row.to_state),
        time=row.time,
        attempt=row.attempt,
        reason=row.reason,
        metrics=row.metrics,
    )
