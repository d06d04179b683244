"""The changes of a tenant's jobs, numbered in the order in which they became visible: what watches of all jobs read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Table, select

from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import PastEndError
from profile_export.domain.job import JobFilter, JobState, JobView, Progress, Transition
from profile_export.store.catalog.tenants import forget_job_revisions, id_of
from profile_export.store.db.columns import value_of
from profile_export.store.db.database import Database, Store, database_time, uninterruptible
from profile_export.store.db.tables import expired_jobs, job_transitions, jobs, leases, tenants
from profile_export.store.db.transactions import FEW, Transaction, characters, fitting_count, page_rows
from profile_export.store.jobs.jobs import JOB_CHARACTERS, JOB_COLUMNS, views_of

_ROOM = 256 * 1024
"""How much is read at once for one of many watchers, in characters: about what one message of theirs has."""


@dataclass(frozen=True, slots=True)
class Change:
    """A move of a job, with the job as it is by now; or, without both, that retention has removed it."""

    revision: int
    job_id: int
    from_state: JobState | None
    to_state: JobState
    destination_id: str
    create_time: datetime
    transition: Transition | None = None
    view: JobView | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a running job is."""

    job_id: int
    destination_id: str
    create_time: datetime
    progress: Progress


@dataclass(frozen=True, slots=True)
class Head:
    """A tenant's newest revision, the newest that is not kept any more, and how far its running jobs are.

    `tenant_id` is None for a tenant that has stored nothing yet.
    """

    tenant_id: int | None
    revision: int
    forgotten: int
    advances: Sequence[Advance]


@dataclass(frozen=True, slots=True)
class Listed:
    """Jobs as they are at a revision of the tenant, and of those asked for the ones that have been removed.

    `has_more` says whether others follow.
    """

    revision: int
    views: Sequence[JobView]
    removed: Sequence[int] = ()
    has_more: bool = False


class Changes(Store):
    """Changes of the jobs of all tenants; `kept_for` as for `Jobs`."""

    def __init__(self, database: Database, kept_for: timedelta | None = None) -> None:
        super().__init__(database)
        self._kept_for = kept_for

    @uninterruptible
    async def head(self, tenant: Tenant) -> Head:
        """Return where a tenant's jobs stand; all is 0 and empty for one that has stored nothing yet."""
        running = (
            select(jobs.c.id, jobs.c.destination_id, jobs.c.create_time, leases.c.progress)
            .join(leases, leases.c.job_id == jobs.c.id)
            .where(
                jobs.c.tenant_id == id_of(tenant),
                jobs.c.state == JobState.PROCESSING,
                leases.c.progress.is_not(None),
            )
        )
        async with self.database.read() as connection:
            tenant_id, revision, forgotten = await _revisions(connection, tenant)
            advances = [Advance(*row) for row in await connection.execute(running.order_by(jobs.c.id))]
        return Head(tenant_id, revision, forgotten, advances)

    @uninterruptible
    async def between(self, tenant: Tenant, after: int, up_to: int) -> Sequence[Change]:
        """Return the changes after a revision up to another one, or the first of them if they are large.

        Raises:
            PastEndError: Some are not kept any more.
        """
        async with self.database.read() as connection:
            _, revision, forgotten = await _revisions(connection, tenant)
            check_kept(after, revision, forgotten)
            up_to = await _within_reach(connection, tenant, after, up_to)
            return await self._changes(connection, tenant, after, up_to)

    async def _changes(
        self, connection: Transaction, tenant: Tenant, after: int, up_to: int
    ) -> Sequence[Change]:
        gone = await connection.execute(_within(select(expired_jobs), expired_jobs, tenant, after, up_to))
        changes = [
            Change(row.tenant_revision, row.job_id, row.state, row.state, row.destination_id, row.create_time)
            for row in gone
        ]
        moved = await connection.all(_within(select(job_transitions), job_transitions, tenant, after, up_to))
        of_jobs = select(*JOB_COLUMNS).where(jobs.c.id.in_({row.job_id for row in moved}))
        found = await views_of(connection, await connection.all(of_jobs), self._kept_for)
        views = {view.job.id: view for view in found}
        for row in moved:
            view, transition = views[row.job_id], value_of(Transition, row)
            job = view.job
            changes.append(
                Change(
                    row.tenant_revision,
                    job.id,
                    transition.from_state,
                    transition.to_state,
                    job.bound.request.destination_id,
                    job.create_time,
                    transition,
                    view,
                )
            )
        return sorted(changes, key=lambda change: change.revision)

    @uninterruptible
    async def list(self, tenant: Tenant, wanted: JobFilter, after_id: int, limit: int) -> Listed:
        """Return the jobs that a filter lets through, in the order of their ids after a given one.

        They are fewer than `limit` where they are large.
        """
        query = select(*JOB_COLUMNS).where(jobs.c.tenant_id == id_of(tenant), jobs.c.id > after_id)
        if wanted.states:
            query = query.where(jobs.c.state.in_([state.value for state in wanted.states]))
        if wanted.destination_id:
            query = query.where(jobs.c.destination_id == wanted.destination_id)
        if wanted.from_create_time:
            query = query.where(jobs.c.create_time >= wanted.from_create_time)
        async with self.database.read() as connection:
            _, revision, _ = await _revisions(connection, tenant)
            rows, more = await page_rows(connection, query.order_by(jobs.c.id), limit, JOB_CHARACTERS, _ROOM)
            return Listed(revision, await views_of(connection, rows, self._kept_for), has_more=more)

    @uninterruptible
    async def changed_since(
        self, tenant: Tenant, wanted: JobFilter, revision: int, limit: int
    ) -> tuple[int, Listed]:
        """Return the jobs that have changed since, as they are now: those of the first `limit` changes, or fewer.

        A filter that lets through one of a job's changes lets the job through. The number is the revision of the last
        change that was looked at: all have been if it is the one of `Listed`.

        Raises:
            PastEndError: Some changes are not kept any more.
        """
        async with self.database.read() as connection:
            _, now, forgotten = await _revisions(connection, tenant)
            check_kept(revision, now, forgotten)
            up_to = await _within_reach(connection, tenant, revision, min(now, revision + limit))
            changes = await self._changes(connection, tenant, revision, up_to)
        views = {
            change.job_id: change.view
            for change in changes
            if wanted.admits(change, (change.from_state, change.to_state))
        }
        present = tuple(view for view in views.values() if view)
        return up_to, Listed(now, present, tuple(job_id for job_id, view in views.items() if not view))

    async def forget(self, history: timedelta) -> None:
        """Let no watch resume after changes that are older than `history`."""
        for tenant_id in await self._remembered():
            await self._forget(tenant_id, history)

    @uninterruptible
    async def _remembered(self) -> Sequence[int]:
        async with self.database.read() as connection:
            some = tenants.c.job_revision > tenants.c.forgotten_job_revision
            return await connection.values(select(tenants.c.id).where(some))

    @uninterruptible
    async def _forget(self, tenant_id: int, history: timedelta) -> None:
        async with self.database.read() as connection:
            before = await database_time(connection) - history
            query = select(tenants.c.job_revision, tenants.c.forgotten_job_revision)
            known = await connection.one(query.where(tenants.c.id == tenant_id))
            forgotten = known.forgotten_job_revision
            first_kept = known.job_revision + 1
            for table, time in (
                (job_transitions, job_transitions.c.time),
                (expired_jobs, expired_jobs.c.expire_time),
            ):
                kept = (
                    select(table.c.tenant_revision)
                    .where(table.c.tenant_id == tenant_id, table.c.tenant_revision > forgotten, time > before)
                    .order_by(table.c.tenant_revision)
                    .limit(1)
                )
                first_kept = min(first_kept, await connection.scalar(kept) or first_kept)
        if first_kept - 1 <= forgotten:
            return
        async with self.database.write() as connection:
            await forget_job_revisions(connection, tenant_id, first_kept - 1)


def check_kept(after: int, newest: int, forgotten: int) -> None:
    """Refuse to go on after a revision that the tenant has not come to, or from which on not all is kept.

    Raises:
        PastEndError: One of the two.
    """
    if after > newest:
        raise PastEndError(
            "REVISION_OUT_OF_RANGE",
            f"The jobs are at revision {newest}, which is before {after}.",
            metadata={"revision": str(newest)},
        )
    if after < forgotten:
        raise PastEndError(
            "HISTORY_COMPACTED",
            f"The changes after revision {after} are not all kept any more: watch without after_revision.",
            metadata={"oldest_revision": str(forgotten)},
        )


async def _revisions(connection: Transaction, tenant: Tenant) -> tuple[int | None, int, int]:
    query = select(tenants.c.id, tenants.c.job_revision, tenants.c.forgotten_job_revision).where(
        tenants.c.org == tenant.org, tenants.c.sandbox == tenant.sandbox
    )
    row = await connection.first(query)
    return (row.id, row.job_revision, row.forgotten_job_revision) if row else (None, 0, 0)


def _within(query: Select[Any], table: Table, tenant: Tenant, after: int, up_to: int) -> Select[Any]:
    """Take of a query over a table the rows of changes after a revision up to another one, in their order."""
    number = table.c.tenant_revision
    return query.where(table.c.tenant_id == id_of(tenant), number > after, number <= up_to).order_by(number)


async def _within_reach(connection: Transaction, tenant: Tenant, after: int, up_to: int) -> int:
    """Return up to which revision the changes, with their jobs, are not more than an answer has room for."""
    if up_to - after <= FEW:
        return up_to
    of_job = JOB_CHARACTERS + characters(job_transitions.c.metrics)
    moved = select(job_transitions.c.tenant_revision, of_job.label("size")).join(
        jobs, jobs.c.id == job_transitions.c.job_id
    )
    rows = await connection.all(_within(moved, job_transitions, tenant, after, up_to))
    count = fitting_count((row.size for row in rows), _ROOM)
    return up_to if count == len(rows) else rows[count].tenant_revision - 1
