"""Which job a worker takes next: tenants by turns, and of each one the oldest first."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    bindparam,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.job import JobState
from profile_export.store.db.columns import Instant
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import jobs, tenants
from profile_export.store.jobs.rows import JOB_COLUMNS

_ANY_NUMBER = 2**62
_HELD = (JobState.PROCESSING, JobState.CANCELLING)
_WAITS = jobs.c.state == JobState.NEW
_NOW = bindparam("now", type_=Instant())
_DUE = (
    _WAITS
    & (jobs.c.not_before.is_(None) | (jobs.c.not_before <= _NOW))
    & (jobs.c.deadline.is_(None) | (jobs.c.deadline > _NOW))
)


async def may_be_due(connection: AsyncConnection, most_running: int | None) -> bool:
    """Tell whether any job can be taken; it asks less than to take one."""
    asked = await _asked(connection, most_running)
    return (await connection.execute(_TURN, asked)).first() is not None


async def next_job(connection: AsyncConnection, most_running: int | None) -> Row[Any] | None:
    """Lock and return the job to be taken next, and put its tenant behind all others; None if none is due.

    Args:
        connection: A transaction of the kind of `write_beside`.
        most_running: How many jobs of one tenant may run; None: any number.
    """
    asked = await _asked(connection, most_running)
    while True:
        # A tenant whose turn another worker is taking has just been served: it is waited for only where no other waits.
        tenant_id = (await connection.execute(_TURN_OF_THE_OTHERS, asked)).scalar_one_or_none()
        if tenant_id is None:
            if (await connection.execute(_TURN_OF_ANY, asked)).first() is None:
                return None
            continue
        row: Row[Any] | None = (await connection.execute(_OLDEST, asked | {"of_tenant": tenant_id})).first()
        if row is not None:
            await connection.execute(_SERVED, {"of_tenant": tenant_id})
            return row


async def _asked(connection: AsyncConnection, most_running: int | None) -> dict[str, Any]:
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
