"""Claims, leases, and what a worker writes while it holds a job: a former holder's fence is refused."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas
from profile_export.domain.catalog.batches import DataFile, attempt_folder
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.notes import notes_of
from profile_export.domain.export.plan import ExportCounts, ExportPlan
from profile_export.domain.export.receipt import replacement_note
from profile_export.domain.export.request import WriteMode
from profile_export.domain.job import (
    CLAIM,
    LEASE_TTL,
    LET_GO,
    RELEASE,
    SUCCEED,
    Job,
    JobError,
    JobState,
    Move,
    Progress,
    Resolved,
    after_error,
)
from profile_export.domain.schemas.types import TypeConflictError, is_wide, union_objects
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.tenants import dataset_of, next_places
from profile_export.store.db.columns import Instant
from profile_export.store.db.database import (
    Database,
    Store,
    database_time,
    database_time_within,
    uninterruptible,
)
from profile_export.store.db.tables import datasets, job_ranges, jobs, leases, tenants
from profile_export.store.db.transactions import Transaction
from profile_export.store.files.batches import (
    AddedFile,
    CountedBatch,
    add_files,
    add_receipts,
    replace_batches,
    succeed_batches,
)
from profile_export.store.files.folders import drop_written
from profile_export.store.jobs.jobs import (
    JOB_COLUMNS,
    batches_of_job,
    job_from,
    move_job,
    phases_of,
    recorded_of,
    stamp,
)


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may write to a job: this worker, for this attempt."""

    job_id: int
    attempt: int
    worker: str


class LeaseLostError(Exception):
    """The job is not this attempt's any more: whatever it wanted to write is void."""


def _of(fence: Fence) -> tuple[ColumnElement[bool], ...]:
    return (
        leases.c.job_id == fence.job_id,
        leases.c.attempt == fence.attempt,
        leases.c.worker == fence.worker,
    )


async def _held(connection: Transaction, fence: Fence) -> Row[Any]:
    """Return the row of the job that a fence holds.

    Raises:
        LeaseLostError: It does not hold.
    """
    query = select(*JOB_COLUMNS).join(leases, leases.c.job_id == jobs.c.id).where(*_of(fence))
    row = await connection.first(query)
    if row is None:
        message = f"attempt {fence.attempt} of job {fence.job_id} is no longer {fence.worker}'s"
        raise LeaseLostError(message)
    return row


async def _carry(
    connection: Transaction, job: Row[Any], progress: Progress, expire_time: datetime | None = None
) -> None:
    """Write the progress of a held job down, and perhaps until when its lease holds now."""
    its_lease = update(leases).where(leases.c.job_id == job.id)
    if expire_time:
        await connection.execute(its_lease.values(expire_time=expire_time))
    # A heartbeat that was under way may come after the range that was done meanwhile, and knows less.
    newer = its_lease.where(leases.c.progress_rank <= progress.rank)
    await connection.execute(newer.values(progress=progress, progress_rank=progress.rank))
    connection.job_changed(job.id, job.tenant_id)


async def end_attempt(connection: Transaction, fence: Fence) -> None:
    """Take the lease of an attempt away, after the move that ends it, and have the sweeper look where it wrote."""
    await connection.execute(delete(leases).where(leases.c.job_id == fence.job_id))
    await _drop_attempt(connection, fence)


async def _drop_attempt(connection: Transaction, fence: Fence) -> None:
    """Have the sweeper look where an attempt wrote."""
    filled = await batches_of_job(connection, fence.job_id)
    await drop_written(
        connection, {attempt_folder(batch.folder, fence.attempt): batch.key for batch in filled}
    )


class Renewals:
    """Renewals of the leases of all jobs. Calls block."""

    def __init__(self, database: Database) -> None:
        self._engine = database.renewer

    def renew(self, fence: Fence) -> bool:
        """Renew a lease; False where the attempt has it no longer, or the database does not answer.

        One that is over, but that nobody has ended, is renewed as by a heartbeat: it may have run out while a
        transaction of this process kept out all that would have renewed it. What the attempt had reached stays as its
        heartbeat has told it.
        """
        try:
            with self._engine.begin() as connection:
                now = database_time_within(connection)
                renewal = update(leases).where(*_of(fence)).values(expire_time=now + LEASE_TTL)
                return connection.execute(renewal).rowcount == 1
        except SQLAlchemyError as error:
            # A transaction of this process is under way, and no other process could take the job over.
            cause = getattr(error, "orig", None)
            return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


_ANY_NUMBER = 2**62
_HELD = (JobState.PROCESSING, JobState.CANCELLING)
_WAITS = jobs.c.state == JobState.NEW
_NOW = bindparam("now", type_=Instant())
_DUE = (
    _WAITS
    & (jobs.c.not_before.is_(None) | (jobs.c.not_before <= _NOW))
    & (jobs.c.deadline.is_(None) | (jobs.c.deadline > _NOW))
)


async def _may_be_due(connection: Transaction, most_running: int | None) -> bool:
    """Tell whether any job can be taken; it asks less than to take one."""
    asked = await _asked(connection, most_running)
    return await connection.first(_TURN, asked) is not None


async def _next_job(connection: Transaction, most_running: int | None) -> Row[Any] | None:
    """Lock and return the job to be taken next, and put its tenant behind all others; None if none is due.

    The transaction is one of `write_beside`; `most_running` jobs of a tenant may run, for None any number.
    """
    asked = await _asked(connection, most_running)
    while True:
        # A tenant whose turn another worker is taking has just been served: it is waited for only where no other waits.
        tenant_id = await connection.scalar(_TURN_OF_THE_OTHERS, asked)
        if tenant_id is None:
            if await connection.first(_TURN_OF_ANY, asked) is None:
                return None
            continue
        row = await connection.first(_OLDEST, asked | {"of_tenant": tenant_id})
        if row is not None:
            await connection.execute(_SERVED, {"of_tenant": tenant_id})
            return row


async def _asked(connection: Transaction, most_running: int | None) -> dict[str, Any]:
    return {
        "now": await database_time(connection),
        "most_running": _ANY_NUMBER if most_running is None else most_running,
    }


def _may_run(tenant_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Say that a tenant does not run as many jobs as it may."""
    held = jobs.alias("held")
    running = select(func.count()).where(held.c.state.in_(_HELD), held.c.tenant_id == tenant_id)
    return running.scalar_subquery() < bindparam("most_running", type_=BigInteger())


def _waiting_tenants() -> Select[Any]:
    """Select the tenants that have jobs waiting, in as many steps of an index as there are such tenants."""

    def first_of(*which: ColumnElement[bool]) -> ScalarSelect[Any]:
        return select(func.min(jobs.c.tenant_id)).where(_WAITS, *which).scalar_subquery()

    found = select(first_of().label("id")).cte("waiting", recursive=True)
    following = select(first_of(jobs.c.tenant_id > found.c.id)).where(found.c.id.is_not(None))
    return select(found.union_all(following).c.id)


# Made once: to put them together takes as long as to run them.
_TURN = (
    select(tenants.c.id)
    .where(
        tenants.c.id.in_(_waiting_tenants()),
        exists().where(jobs.c.tenant_id == tenants.c.id, _DUE),
        _may_run(tenants.c.id),
    )
    .order_by(tenants.c.last_claim, tenants.c.id)
    .limit(1)
)
# The tenant's row is locked as an update does: the next claim of the same tenant counts what this one has taken.
_TURN_OF_THE_OTHERS = _TURN.with_for_update(of=tenants, key_share=True, skip_locked=True)
_TURN_OF_ANY = _TURN.with_for_update(of=tenants, key_share=True)
_OF_TENANT: BindParameter[int] = bindparam("of_tenant")
_OLDEST = (
    select(*JOB_COLUMNS)
    .where(jobs.c.tenant_id == _OF_TENANT, _DUE, _may_run(_OF_TENANT))
    .order_by(jobs.c.id)
    .limit(1)
    .with_for_update(of=jobs, skip_locked=True)
)
_ANY = tenants.alias("any_tenant")
_SERVED = (
    update(tenants)
    .where(tenants.c.id == _OF_TENANT)
    .values(last_claim=select(func.max(_ANY.c.last_claim) + 1).scalar_subquery())
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed job: what the attempt needs to go on. `plan` is None if no attempt has made it yet.

    `begun` is a time of the monotonic clock just before the lease began, however long the claim had waited. `folders`
    are the places in the lake of the batches to fill, by their ids; `recorded` the ranges that an earlier attempt has
    finished.
    """

    fence: Fence
    job: Job
    tenant: Tenant
    begun: float
    folders: Mapping[str, str]
    plan: ExportPlan | None
    recorded: frozenset[int]


@dataclass(frozen=True, slots=True)
class RangeDone:
    """A finished range: its files by batch, what was read, kept and left out, and what it took."""

    index: int
    files: Mapping[str, Sequence[DataFile]]
    counts: ExportCounts
    peak_memory_bytes: int


class Attempts(Store):
    """Attempts of all jobs, as workers drive them.

    Workers write beside one another until an attempt ends: a claim locks the job that it takes, and its tenant's row
    for the number of the change; all that the others decide by, which is the lease and the job's state, is changed only
    by what writes alone.
    """

    def __init__(self, database: Database, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        super().__init__(database)
        self._most_running = quotas.running_jobs

    @uninterruptible
    async def claim(self, worker: str, *, newcomers_only: bool = False) -> Claim | None:
        """Take a job that is due, tenants by turns and of each the oldest first; None if there is none.

        With `newcomers_only` it takes none of a tenant that already runs one.
        """
        most_running = 1 if newcomers_only else self._most_running
        # Most often there is none, and then nothing is written.
        async with self.database.read() as connection:
            if not await _may_be_due(connection, most_running):
                return None
        async with self.database.write_beside() as connection:
            row = await _next_job(connection, most_running)
            if row is None:
                return None
            begun = time.monotonic()
            row = await move_job(connection, row, CLAIM)
            fence = Fence(row.id, row.attempt, worker)
            lease = {
                "job_id": row.id,
                "attempt": row.attempt,
                "worker": worker,
                "expire_time": row.update_time + LEASE_TTL,
            }
            await connection.execute(insert(leases).values(lease))
            return await _claim(connection, fence, row, begun)

    @uninterruptible
    async def begin_phase(
        self,
        fence: Fence,
        progress: Progress,
        plan: ExportPlan | None = None,
        resolved: Resolved | None = None,
    ) -> None:
        """Stamp the beginning of the phase that `progress` is in, with what the phase before it has brought.

        That is the plan, which is pinned for all attempts, or what resolution took. Once a cancel was asked for, the
        time is that of the cancel, whatever the worker still begins.

        Raises:
            LeaseLostError: The fence does not hold.
        """
        async with self.database.write_beside() as connection:
            row = await _held(connection, fence)
            values: dict[str, Any] = {"plan": plan, "notes": plan.notes} if plan else {}
            if resolved:
                values["resolved"] = resolved
            if values:
                await connection.execute(update(jobs).where(jobs.c.id == fence.job_id).values(values))
            if row.state != JobState.CANCELLING:
                now = await database_time(connection)
                await stamp(connection, fence.job_id, fence.attempt, progress.phase, now)
            await _carry(connection, row, progress)

    @uninterruptible
    async def heartbeat(self, fence: Fence, progress: Progress) -> JobState:
        """Renew the lease and carry progress in; bring back the job's state, which tells of a cancel.

        Raises:
            LeaseLostError: The fence does not hold.
        """
        async with self.database.write_beside() as connection:
            row = await _held(connection, fence)
            expire_time = await database_time(connection) + LEASE_TTL
            await _carry(connection, row, progress, expire_time)
        return cast("JobState", row.state)

    @uninterruptible
    async def state_of(self, fence: Fence) -> JobState:
        """Return the job's state.

        Raises:
            LeaseLostError: The fence does not hold.
        """
        async with self.database.read() as connection:
            return cast("JobState", (await _held(connection, fence)).state)

    @uninterruptible
    async def record_range(self, fence: Fence, done: RangeDone, progress: Progress) -> None:
        """Write down a finished range and its files together; an attempt that comes later need not repeat it.

        Raises:
            LeaseLostError: The fence does not hold.
        """
        async with self.database.write_beside() as connection:
            row = await _held(connection, fence)
            values = {
                "job_id": fence.job_id,
                "range_index": done.index,
                "attempt": fence.attempt,
                "counts": done.counts,
                "peak_memory_bytes": done.peak_memory_bytes,
            }
            await connection.execute(insert(job_ranges).values(values))
            added = [
                AddedFile(batch.key, file, None)
                for batch in await batches_of_job(connection, fence.job_id)
                for file in done.files.get(batch.id, ())
            ]
            await add_files(connection, added)
            await _carry(connection, row, progress)

    @uninterruptible
    async def commit(self, fence: Fence) -> Sequence[DataFile]:
        """Make the job's batches count, each with its receipt, and end it, all in one transaction.

        If it replaces, what has counted of its destination so far is hidden in the same.

        Returns the files that count.

        Raises:
            LeaseLostError: The fence does not hold.
            FailedPreconditionError: A cancel came first; it wins.
        """
        async with self.database.write() as connection:
            row = await _held(connection, fence)
            recorded = await recorded_of(connection, row.id)
            moved = await move_job(connection, row, SUCCEED, metrics=recorded.metrics)
            replaced = await _replaced(connection, row)
            batches = await batches_of_job(connection, row.id)
            places = await next_places(connection, row.tenant_id, len(batches))
            counted = [
                CountedBatch(batch, place, recorded.files.get(batch.key, ()))
                for batch, place in zip(batches, places, strict=True)
            ]
            await succeed_batches(connection, counted)
            files = [file for batch in counted for file in batch.files]
            plan = recorded.plan
            if plan is not None:
                metrics = recorded.metrics
                notes = notes_of(plan, metrics.resolved.findings, metrics.counts)
                notes += replacement_note(replaced)
                await connection.execute(update(jobs).where(jobs.c.id == row.id).values(notes=notes))
                job = replace(job_from(moved), notes=notes)
                phases = (await phases_of(connection, [job]))[job.id]
                await add_receipts(connection, job, phases, plan, counted, replaced)
                if files:
                    await _list_fields(connection, row, plan)
            await end_attempt(connection, fence)
        return files

    @uninterruptible
    async def end_with_error(self, fence: Fence, error: JobError) -> Job:
        """End an attempt that went wrong: the job is tried again later, or FAILED.

        Raises:
            LeaseLostError: The fence does not hold.
            FailedPreconditionError: A cancel came first; let go instead.
        """
        async with self.database.write() as connection:
            row = await _held(connection, fence)
            move, not_before = after_error(job_from(row), error, await database_time(connection))
            return job_from(await _end(connection, fence, row, move, error=error, not_before=not_before))

    @uninterruptible
    async def let_go(self, fence: Fence) -> None:
        """End a job that was asked to cancel, and forget what it recorded.

        Raises:
            LeaseLostError: The fence does not hold.
        """
        async with self.database.write() as connection:
            await _end(connection, fence, await _held(connection, fence), LET_GO)

    @uninterruptible
    async def release(self, fence: Fence) -> None:
        """Give a job back unfinished, keeping its recorded ranges: this worker is about to stop.

        Raises:
            LeaseLostError: The fence does not hold.
            FailedPreconditionError: A cancel came first; let go instead.
        """
        async with self.database.write() as connection:
            await _end(connection, fence, await _held(connection, fence), RELEASE)

    @uninterruptible
    async def leave(self, fence: Fence) -> None:
        """Have the sweeper look again where an attempt has written that ended without this worker's doing.

        The worker may have lived on after the last look, and written until it noticed.
        """
        async with self.database.write() as connection:
            await _drop_attempt(connection, fence)


async def _end(connection: Transaction, fence: Fence, row: Row[Any], move: Move, **changes: Any) -> Row[Any]:
    recorded = await recorded_of(connection, row.id)
    moved = await move_job(connection, row, move, metrics=recorded.metrics, **changes)
    await end_attempt(connection, fence)
    return moved


async def _replaced(connection: Transaction, row: Row[Any]) -> list[str]:
    """Hide what a job replaces, and return the ids of these batches; none if it only adds."""
    if row.bound.request.mode is not WriteMode.REPLACE:
        return []
    return await replace_batches(connection, row.destination_id, row.id)


async def _list_fields(connection: Transaction, row: Row[Any], plan: ExportPlan) -> None:
    """Add to the fields of a job's destination those that the job exported."""
    dataset = await dataset_of(connection, row.tenant_id, row.destination_id)
    # Exports may have other types than those before them; then the list stays, since no job fails for it.
    with suppress(TypeConflictError):
        found = plan.exported_fields
        fields = await compute_if(is_wide([found]), union_objects, dataset.fields, found)
        await connection.execute(update(datasets).where(datasets.c.id == dataset.id).values(fields=fields))


async def _claim(connection: Transaction, fence: Fence, row: Row[Any], begun: float) -> Claim:
    query = select(tenants.c.org, tenants.c.sandbox).where(tenants.c.id == row.tenant_id)
    tenant = await connection.one(query)
    filled = await batches_of_job(connection, row.id)
    recorded = select(job_ranges.c.range_index).where(job_ranges.c.job_id == row.id)
    return Claim(
        fence=fence,
        job=job_from(row),
        tenant=Tenant(tenant.org, tenant.sandbox),
        begun=begun,
        folders={batch.id: batch.folder for batch in filled},
        plan=await connection.value(select(jobs.c.plan).where(jobs.c.id == row.id)),
        recorded=frozenset(await connection.values(recorded)),
    )
