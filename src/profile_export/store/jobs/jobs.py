"""Jobs: every move and its log entry are one transaction, checked against the job's revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas
from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import (
    Cancellation,
    JobMetrics,
    JobState,
    JobView,
    Phase,
    Transition,
    cancelling_move,
)
from profile_export.domain.lists import Page, PageRequest, cut_page
from profile_export.store.catalog.tenants import check_waiting_jobs, ensure_tenant, id_of, made_before
from profile_export.store.db.columns import digest_of, value_of
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.pages import page_rows
from profile_export.store.db.tables import batches, job_transitions, jobs
from profile_export.store.jobs.rows import (
    JOB_CHARACTERS,
    JOB_COLUMNS,
    existing_job,
    job_from,
    view_of,
    views_of,
)
from profile_export.store.jobs.transitions import log, move_job, stamp


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job starts with; `folders` are those of the batches that every attempt fills, by id in their order.

    There is one, or with `segment_per_batch` one for each segment.
    """

    bound: BoundRequest
    request_id: str
    folders: Mapping[str, str]


_JOBS = select(*JOB_COLUMNS)


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
            await check_waiting_jobs(connection, tenant_id, self._most_waiting)
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
        """Return a page of jobs, newest first; ids grow with time, so they are the key."""
        query = _JOBS.where(jobs.c.tenant_id == id_of(tenant))
        if request.cursor:
            query = query.where(jobs.c.id < request.number)
        async with self.database.read() as connection:
            rows, more = await page_rows(
                connection, query.order_by(jobs.c.id.desc()), request.size, JOB_CHARACTERS
            )
            views = await views_of(connection, rows, self._kept_for)
        return cut_page(views, request, lambda last: str(last.job.id), has_more=more)

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
    row: Row[Any] = (await connection.execute(insert(jobs).values(values).returning(*JOB_COLUMNS))).one()
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
