"""Jobs: their rows as read, their moves, each with its log entry in one transaction, and what callers ask of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, insert, select, update

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas
from profile_export.domain.catalog.batches import BatchState, DataFile
from profile_export.domain.catalog.datasets import Tenant, expired_job
from profile_export.domain.errors import NotFoundError
from profile_export.domain.export.plan import ExportCounts, ExportPlan
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import (
    Cancellation,
    Job,
    JobMetrics,
    JobState,
    JobView,
    Move,
    Phase,
    PhaseTime,
    Pinned,
    Resolved,
    Stamp,
    Transition,
    cancelling_move,
    phase_times,
)
from profile_export.domain.lists import Order, Page, PageRequest, cursor_at, cut_page
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.tenants import (
    WAITING_JOBS,
    check_one_more,
    ensure_tenant,
    id_by_name,
    id_of,
    made_before,
    next_job_revision,
)
from profile_export.store.db.columns import columns_of, digest_of, value_of
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.lists import page_of
from profile_export.store.db.tables import (
    batches,
    expired_jobs,
    files,
    job_ranges,
    job_stamps,
    job_transitions,
    jobs,
    leases,
)
from profile_export.store.db.transactions import Transaction, characters, page_rows, slices
from profile_export.store.files.folders import drop_written

JOB_COLUMNS = tuple(column for column in jobs.c if column.name not in {"plan", "resolved"})
"""The columns that callers see; without the plan, which may name any number of files."""
JOB_CHARACTERS = characters(jobs.c.bound, jobs.c.segment_batches, jobs.c.errors, jobs.c.metrics, jobs.c.notes)
"""About how many characters these columns of a row hold."""
_NEVER = datetime.max.replace(tzinfo=UTC)


_JOBS = select(*JOB_COLUMNS)
# Made once: to put it together takes as long as to run it.
_JOB = select(*JOB_COLUMNS).where(jobs.c.id == bindparam("job_id"), jobs.c.tenant_id == id_by_name())


async def existing_job(connection: Transaction, tenant: Tenant, job_id: int) -> Row[Any]:
    """Return the row of a job, within a transaction.

    Raises:
        NotFoundError: It has expired, or the tenant never had one of that id.
    """
    named = {"job_id": job_id, "org": tenant.org, "sandbox": tenant.sandbox}
    row = await connection.first(_JOB, named)
    if row:
        return row
    remembered = select(expired_jobs.c.expire_time).where(
        expired_jobs.c.job_id == job_id, expired_jobs.c.tenant_id == id_of(tenant)
    )
    expire_time = await connection.scalar(remembered)
    raise expired_job(job_id, expire_time) if expire_time else NotFoundError.of("job", job_id)


def job_from(row: Row[Any]) -> Job:
    """Make a job of its row."""
    return value_of(Job, row, request_id=row.request_id or "")


async def views_of(
    connection: Transaction, rows: Sequence[Row[Any]], kept_for: timedelta | None
) -> Sequence[JobView]:
    """Return jobs as callers see them, in the order of their rows.

    `kept_for` is how long jobs are kept after their end; None: for ever.
    """
    running = [row.id for row in rows if row.state == JobState.PROCESSING]
    held = await connection.among(select(leases.c.job_id, leases.c.progress), leases.c.job_id, running)
    progress = {lease.job_id: lease.progress for lease in held}
    of = [job_from(row) for row in rows]
    phases = await phases_of(connection, of)
    # Jobs that have ended need no clock, which saves a statement.
    now = await database_time(connection) if any(job.end_time is None for job in of) else _NEVER
    return [
        JobView(
            job,
            phases[job.id],
            progress.get(job.id),
            job.end_time or now,
            job.end_time + kept_for if job.end_time and kept_for else None,
        )
        for job in of
    ]


async def view_of(connection: Transaction, row: Row[Any], kept_for: timedelta | None) -> JobView:
    """Return one job as callers see it."""
    (view,) = await views_of(connection, [row], kept_for)
    return view


# Made once: to put it together takes as long as to run it.
_STAMPS = (
    select(job_stamps)
    .where(job_stamps.c.job_id.in_(bindparam("job_ids", expanding=True)))
    .order_by(job_stamps.c.key)
)


async def phases_of(connection: Transaction, of: Sequence[Job]) -> Mapping[int, tuple[PhaseTime, ...]]:
    """Return where the time of jobs went so far, by their ids."""
    stamps: dict[int, list[Stamp]] = defaultdict(list)
    for some in slices([job.id for job in of]):
        for row in await connection.execute(_STAMPS, {"job_ids": some}):
            stamps[row.job_id].append(Stamp(row.attempt, row.phase, row.time))
    return {job.id: tuple(phase_times(stamps[job.id], job.end_time)) for job in of}


async def batches_of_job(connection: Transaction, job_id: int) -> Sequence[Row[Any]]:
    """Return the batches that a job fills, in the order of its segments if each has one."""
    query = select(batches).where(batches.c.job_id == job_id).order_by(batches.c.key)
    return await connection.all(query)


async def drop_batches_of_job(
    connection: Transaction, job_id: int, state: BatchState, now: datetime, reason: str
) -> None:
    """End the batches that a job fills without effect, say why, and give their files up."""
    rows = await batches_of_job(connection, job_id)
    keys = select(batches.c.key).where(batches.c.job_id == job_id)
    await connection.execute(delete(files).where(files.c.batch_key.in_(keys)))
    await drop_written(connection, {row.folder: row.key for row in rows})
    values = {"state": state, "end_time": now, "state_reason": reason}
    await connection.execute(update(batches).where(batches.c.job_id == job_id).values(values))


# Each range may count thousands of namespaces: counts of more ranges than these are added up beside the loop.
_MANY = 20


class Recorded(NamedTuple):
    """What a job has recorded over all its attempts: the files of its batches by their keys, its plan, its metrics."""

    files: Mapping[int, Sequence[DataFile]]
    plan: ExportPlan | None
    metrics: JobMetrics


async def recorded_of(connection: Transaction, job_id: int) -> Recorded:
    """Return what a job has recorded, with its metrics added up."""
    query = select(files).join(batches, batches.c.key == files.c.batch_key).where(batches.c.job_id == job_id)
    by_batch: dict[int, list[DataFile]] = defaultdict(list)
    for row in await connection.all(query.order_by(files.c.batch_key, files.c.name)):
        by_batch[row.batch_key].append(value_of(DataFile, row))
    written = [file for of_batch in by_batch.values() for file in of_batch]
    ranges = await connection.all(select(job_ranges).where(job_ranges.c.job_id == job_id))
    brought = await connection.one(select(jobs.c.plan, jobs.c.resolved).where(jobs.c.id == job_id))
    sources = brought.plan.sources if brought.plan else ()
    metrics = JobMetrics(
        counts=await compute_if(len(ranges) > _MANY, ExportCounts.total, [found.counts for found in ranges]),
        rows_written=sum(file.rows for file in written),
        bytes_written=sum(file.bytes for file in written),
        files_written=len(written),
        peak_memory_bytes=max((found.peak_memory_bytes for found in ranges), default=0),
        pinned=Pinned(
            sum(source.rows for source in sources),
            sum(source.bytes for source in sources),
            sum(len(part.files) for source in sources for part in source.parts),
        ),
        resolved=brought.resolved or Resolved(),
    )
    return Recorded(by_batch, brought.plan, metrics)


_MOVED = (
    "state",
    "revision",
    "attempt",
    "update_time",
    "end_time",
    "not_before",
    "cancellation",
    "errors",
    "metrics",
)


async def move_job(connection: Transaction, row: Row[Any], move: Move, **changes: Any) -> Row[Any]:
    """Make a move and its log entry, and what follows from the state it leads to; return the job's new row.

    `changes` are those of `Move.apply`. The update is a compare-and-set on the revision; it always meets its row, since
    whoever moves a job writes alone or has locked the row.

    Raises:
        FailedPreconditionError: The job is not in a state that the move starts from.
    """
    now = await database_time(connection)
    job, transition = move.apply(job_from(row), now, **changes)
    query = update(jobs).where(jobs.c.id == job.id, jobs.c.revision == row.revision)
    values = {name: getattr(job, name) for name in _MOVED}
    moved = await connection.one(query.values(values).returning(*JOB_COLUMNS))
    await log(connection, row.tenant_id, job.id, transition)
    phase = _PHASE_OF.get(job.state)
    if phase:
        await stamp(connection, job.id, job.attempt, phase, now)
    if job.is_final:
        connection.tell(
            "job_ended",
            job_id=job.id,
            state=job.state.name,
            attempt=job.attempt,
            rows=job.metrics.rows_written,
            seconds=round((now - job.create_time).total_seconds(), 3),
            errors=[error.code for error in job.errors],
        )
        await connection.execute(delete(job_ranges).where(job_ranges.c.job_id == job.id))
    if job.state in _BATCH_ENDS:
        reason = f"The export job {job.id} is {job.state.name}. {job.state_reason}".rstrip()
        await drop_batches_of_job(connection, job.id, _BATCH_ENDS[job.state], now, reason)
    return moved


# The phase that begins with a state; an attempt stamps the ones within PROCESSING itself.
_PHASE_OF = {JobState.NEW: Phase.QUEUE, JobState.PROCESSING: Phase.PLAN, JobState.CANCELLING: Phase.CANCEL}
_BATCH_ENDS = {JobState.CANCELLED: BatchState.ABORTED, JobState.FAILED: BatchState.FAILED}


async def stamp(connection: Transaction, job_id: int, attempt: int, phase: Phase, now: datetime) -> None:
    """Note that a phase begins."""
    row = {"job_id": job_id, "attempt": attempt, "phase": phase, "time": now}
    await connection.execute(insert(job_stamps).values(row))


async def log(connection: Transaction, tenant_id: int, job_id: int, transition: Transition) -> None:
    """Write an entry of a job's log, number it among the changes of the tenant's jobs, and tell of it."""
    values = columns_of(transition, job_transitions) | {
        "tenant_id": tenant_id,
        "tenant_revision": await next_job_revision(connection, tenant_id),
        "job_id": job_id,
    }
    await connection.execute(insert(job_transitions).values(values))
    is_held = transition.to_state in {JobState.PROCESSING, JobState.CANCELLING}
    connection.job_changed(job_id, tenant_id, one_may_be_due=not is_held)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job starts with; `folders` are those of the batches that every attempt fills, by id in their order.

    There is one, or with `segment_per_batch` one for each segment.
    """

    bound: BoundRequest
    request_id: str
    folders: Mapping[str, str]


_NEWEST_FIRST = Order("id", descending=True)
_LISTED = {
    "id": jobs.c.id,
    "state": jobs.c.state,
    "dataset_id": jobs.c.destination_id,
    "create_time": jobs.c.create_time,
    "update_time": jobs.c.update_time,
}


class Jobs(Store):
    """Jobs of all tenants, as callers see them; `kept_for` says how long after their end, None for ever."""

    def __init__(
        self,
        database: Database,
        kept_for: timedelta | None = None,
        quotas: Quotas = DEFAULT_QUOTAS,
    ) -> None:
        super().__init__(database)
        self._most_waiting = quotas.waiting_jobs
        self._kept_for = kept_for

    @uninterruptible
    async def create(self, tenant: Tenant, new: NewJob) -> tuple[JobView, bool]:
        """Make a job and its batch, or find the one made before with the same request id; True says found.

        Raises:
            AlreadyExistsError: The request id stands for a job made from other values.
            ExhaustedError: As many of the tenant's jobs wait as may.
        """
        digest = digest_of(new.bound.request)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            found = await made_before(connection, _JOBS, tenant_id, new.request_id, digest)
            if found:
                return await view_of(connection, found, self._kept_for), True
            await check_one_more(connection, WAITING_JOBS, tenant_id, self._most_waiting)
            now = await database_time(connection)
            row = await _insert_job(connection, tenant_id, new, digest, now)
            first = Transition(1, None, JobState.NEW, now, 0, "created", JobMetrics())
            await log(connection, tenant_id, row.id, first)
            await stamp(connection, row.id, 0, Phase.QUEUE, now)
            return await view_of(connection, row, self._kept_for), False

    @uninterruptible
    async def made_by(self, tenant: Tenant, request_id: str, request: ExportRequest) -> JobView | None:
        """Return the job made before with a request id; None if there is none, or the id is empty.

        Raises:
            AlreadyExistsError: As `create`.
        """
        async with self.database.read() as connection:
            found = await made_before(connection, _JOBS, id_of(tenant), request_id, digest_of(request))
            return await view_of(connection, found, self._kept_for) if found else None

    @uninterruptible
    async def get(self, tenant: Tenant, job_id: int) -> JobView:
        """Return a job.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            row = await existing_job(connection, tenant, job_id)
            return await view_of(connection, row, self._kept_for)

    @uninterruptible
    async def list(self, tenant: Tenant, request: PageRequest) -> Page[JobView]:
        """Return a page of jobs, newest first unless asked otherwise; ids grow with time."""
        query = _JOBS.where(jobs.c.tenant_id == id_of(tenant))
        query = page_of(query, request, _LISTED, _NEWEST_FIRST, jobs.c.id)
        async with self.database.read() as connection:
            rows, more = await page_rows(connection, query, request.size, JOB_CHARACTERS)
            views = await views_of(connection, rows, self._kept_for)
        order = request.order or _NEWEST_FIRST
        return cut_page(views, request, lambda last: cursor_at(order.place(last.job)), has_more=more)

    @uninterruptible
    async def cancel(self, tenant: Tenant, job_id: int, requested_by: str, reason: str) -> JobView:
        """Ask a job to end without effect; asking again changes nothing.

        Raises:
            NotFoundError: The tenant has no such job.
            FailedPreconditionError: It has SUCCEEDED or FAILED.
        """
        async with self.database.write() as connection:
            row = await existing_job(connection, tenant, job_id)
            move = cancelling_move(job_from(row))
            if move:
                now = await database_time(connection)
                cancellation = Cancellation(requested_by, now, reason)
                row = await move_job(connection, row, move, cancellation=cancellation)
            return await view_of(connection, row, self._kept_for)

    @uninterruptible
    async def transitions_after(
        self, tenant: Tenant, job_id: int, revision: int
    ) -> tuple[JobView, Sequence[Transition]]:
        """Return the job and the log entries after a revision, of one moment.

        Raises:
            NotFoundError: The tenant has no such job.
            PastEndError: The job has not reached that revision.
        """
        async with self.database.read() as connection:
            row = await existing_job(connection, tenant, job_id)
            view = await view_of(connection, row, self._kept_for)
            view.job.check_reached(revision)
            if revision == view.job.revision:
                return view, ()
            query = select(job_transitions).where(
                job_transitions.c.job_id == job_id, job_transitions.c.revision > revision
            )
            rows = await connection.execute(query.order_by(job_transitions.c.revision))
            return view, [value_of(Transition, row) for row in rows]


async def _insert_job(
    connection: Transaction, tenant_id: int, new: NewJob, digest: str, now: datetime
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
        "state": JobState.NEW,
        "revision": 1,
        "attempt": 0,
        "create_time": now,
        "update_time": now,
        "deadline": request.deadline(now),
        "errors": (),
        "metrics": JobMetrics(),
        "notes": (),
    }
    row = await connection.one(insert(jobs).values(values).returning(*JOB_COLUMNS))
    loading = [
        {
            "tenant_id": tenant_id,
            "id": batch_id,
            "dataset_id": request.destination_id,
            "state": BatchState.LOADING,
            "create_time": now,
            "job_id": row.id,
            "folder": folder,
        }
        for batch_id, folder in new.folders.items()
    ]
    await connection.execute(insert(batches), loading)
    return row
