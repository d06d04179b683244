"""What a tenant has of what is shared out, counted in the transaction that would add to it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, cast, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.job import JobState
from profile_export.domain.quotas import quota_exceeded
from profile_export.store.database import database_time
from profile_export.store.job_tables import jobs
from profile_export.store.tables import LOADING, batches, datasets, uploads

# Jobs leave the queue by themselves.
_A_JOB_LATER = timedelta(seconds=5)


async def check_waiting_jobs(connection: AsyncConnection, tenant_id: int, most: int | None) -> None:
    """Refuse one job more than may wait.

    Raises:
        ExhaustedError: As many wait.
    """
    if most is None:
        return
    waiting = select(func.count()).where(jobs.c.state == JobState.NEW.value, jobs.c.tenant_id == tenant_id)
    used: int = (await connection.execute(waiting)).scalar_one()
    if used >= most:
        way_out = "Wait until some have run, or cancel some."
        raise quota_exceeded("waiting_jobs", most, used, way_out, _A_JOB_LATER)


async def check_datasets(connection: AsyncConnection, tenant_id: int, most: int | None) -> None:
    """Refuse one dataset more than a tenant may have.

    Raises:
        ExhaustedError: It has as many.
    """
    if most is None:
        return
    there = select(func.count()).where(datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None))
    used: int = (await connection.execute(there)).scalar_one()
    if used >= most:
        raise quota_exceeded("datasets", most, used, "Delete some that are not needed any more.")


async def check_loading_batches(connection: AsyncConnection, tenant_id: int, most: int | None) -> None:
    """Refuse one batch more than a tenant may be uploading.

    Raises:
        ExhaustedError: It is uploading as many.
    """
    if most is None:
        return
    loading = select(func.count()).select_from(batches).where(batches.c.tenant_id == tenant_id, LOADING)
    used: int = (await connection.execute(loading)).scalar_one()
    if used >= most:
        raise quota_exceeded(
            "loading_batches", most, used, "Complete some, or abort those that are given up."
        )


async def room_for_bytes(
    connection: AsyncConnection, tenant_id: int, most: int | None, least: int, wanted: int
) -> int:
    """Return how many bytes more of uploads may be kept, at least and at most so many.

    Raises:
        ExhaustedError: There is no room for so many.
    """
    if most is None:
        return wanted
    # PostgreSQL adds 64-bit integers up to a decimal.
    staged = select(cast(func.coalesce(func.sum(batches.c.staged_bytes), 0), BigInteger)).where(
        batches.c.tenant_id == tenant_id, LOADING
    )
    used: int = (await connection.execute(staged)).scalar_one()
    if used + least > most:
        way_out = "Complete batches, or abort those that are given up; then go on at received_bytes."
        raise quota_exceeded("staged_bytes", most, used, way_out)
    return min(wanted, most - used)


async def note_activity(connection: AsyncConnection, batch_key: int) -> None:
    """Note a sign of life of a batch, and what its files have come to keep."""
    # PostgreSQL adds 64-bit integers up to a decimal.
    staged = select(cast(func.coalesce(func.sum(uploads.c.staged_bytes), 0), BigInteger)).where(
        uploads.c.batch_key == batch_key
    )
    values = {"staged_bytes": staged.scalar_subquery(), "active_time": await database_time(connection)}
    await connection.execute(update(batches).where(batches.c.key == batch_key).values(values))
