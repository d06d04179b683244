"""Tenants by name, and what grows or is registered once in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ScalarSelect, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Tenant
from profile_export.domain.identity import fold_namespace
from profile_export.domain.registered import check_tenant_namespaces
from profile_export.store.database import database_time, insert_new
from profile_export.store.tables import namespace_spellings, namespaces, tenants

IDENTITY = "identity"
SEGMENT = "segment"


@lru_cache(maxsize=1_024)  # it goes into almost every statement, and few tenants make many calls
def id_of(tenant: Tenant) -> ScalarSelect[Any]:
    """Return the tenant's key as a subquery; NULL, which equals nothing, if the tenant has stored nothing yet."""
    return (
        select(tenants.c.id)
        .where(tenants.c.org == tenant.org, tenants.c.sandbox == tenant.sandbox)
        .scalar_subquery()
    )


def id_by_name() -> ScalarSelect[Any]:
    """Return the same for a statement that is made once, with the parameters `org` and `sandbox`."""
    return (
        select(tenants.c.id)
        .where(tenants.c.org == bindparam("org"), tenants.c.sandbox == bindparam("sandbox"))
        .scalar_subquery()
    )


async def ensure_tenant(connection: AsyncConnection, tenant: Tenant) -> int:
    """Return the tenant's key, making its row at the first write."""
    await connection.execute(insert_new(connection, tenants).values(org=tenant.org, sandbox=tenant.sandbox))
    tenant_id: int = (await connection.execute(select(id_of(tenant)))).scalar_one()
    return tenant_id


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """What a batch gets in the transaction that commits it (S8)."""

    number: int
    ingest_time: datetime


async def next_places(connection: AsyncConnection, tenant_id: int, count: int = 1) -> Sequence[BatchPlace]:
    """Give out the tenant's next batch numbers and ingest times; both grow, whatever the clock does."""
    now = await database_time(connection)
    row = (
        await connection.execute(
            select(tenants.c.last_batch_number, tenants.c.last_ingest_time).where(tenants.c.id == tenant_id)
        )
    ).one()
    microsecond = timedelta(microseconds=1)
    if row.last_ingest_time:
        now = max(now, row.last_ingest_time + microsecond)
    places = [BatchPlace(row.last_batch_number + 1 + at, now + at * microsecond) for at in range(count)]
    await connection.execute(
        update(tenants)
        .where(tenants.c.id == tenant_id)
        .values(last_batch_number=places[-1].number, last_ingest_time=places[-1].ingest_time)
    )
    return places


async def next_job_revision(connection: AsyncConnection, tenant_id: int, changes: int = 1) -> int:
    """Give out the numbers of the next changes of the tenant's jobs, one unless told otherwise; return the last.

    It holds the tenant's row until the transaction ends, so that no number is seen before those below it.
    """
    revision = tenants.c.job_revision + changes
    query = update(tenants).where(tenants.c.id == tenant_id).values(job_revision=revision)
    given: int = (await connection.execute(query.returning(tenants.c.job_revision))).scalar_one()
    return given


async def forget_job_revisions(connection: AsyncConnection, tenant_id: int, up_to: int) -> None:
    """Note that the changes of the tenant's jobs up to this one are not kept any more."""
    later = (tenants.c.id == tenant_id) & (tenants.c.forgotten_job_revision < up_to)
    await connection.execute(update(tenants).where(later).values(forgotten_job_revision=up_to))


async def register_namespaces(
    connection: AsyncConnection,
    tenant_id: int,
    kind: str,
    first_spellings: Iterable[str],
    all_spellings: Iterable[str],
) -> None:
    """Register namespaces on first use, and remember how they were spelled (S2).

    Args:
        connection: A writing transaction.
        tenant_id: The tenant's key.
        kind: `IDENTITY` or `SEGMENT`.
        first_spellings: Of each namespace the spelling of the first place; registered if the namespace is new.
        all_spellings: Every spelling that was used, the first ones included.

    Raises:
        TooManyError: The tenant would have more than it may have.
    """
    named = [
        {"tenant_id": tenant_id, "kind": kind, "folded": fold_namespace(spelling), "registered": spelling}
        for spelling in first_spellings
    ]
    spelled = [
        {"tenant_id": tenant_id, "kind": kind, "spelling": spelling, "folded": fold_namespace(spelling)}
        for spelling in all_spellings
    ]
    if not spelled:
        return
    counts = []
    for table, rows in ((namespaces, named), (namespace_spellings, spelled)):
        await connection.execute(insert_new(connection, table), rows)
        of_tenant = select(func.count()).where(table.c.tenant_id == tenant_id, table.c.kind == kind)
        counts.append((await connection.execute(of_tenant)).scalar_one())
    check_tenant_namespaces(kind, *counts)


async def registered_namespaces(connection: AsyncConnection, tenant_id: Any, kind: str) -> Mapping[str, str]:
    """Return the registered spelling of every namespace by its folded name."""
    rows = await connection.execute(
        select(namespaces.c.folded, namespaces.c.registered).where(
            namespaces.c.tenant_id == tenant_id, namespaces.c.kind == kind
        )
    )
    return {row.folded: row.registered for row in rows}


async def renamed_namespaces(connection: AsyncConnection, tenant_id: Any, kind: str) -> Mapping[str, str]:
    """Return the registered spelling of every spelling that was sent and differs from it."""
    rows = await connection.execute(
        select(namespace_spellings.c.spelling, namespaces.c.registered)
        .join(
            namespaces,
            (namespaces.c.tenant_id == namespace_spellings.c.tenant_id)
            & (namespaces.c.kind == namespace_spellings.c.kind)
            & (namespaces.c.folded == namespace_spellings.c.folded),
        )
        .where(
            namespace_spellings.c.tenant_id == tenant_id,
            namespace_spellings.c.kind == kind,
            namespace_spellings.c.spelling != namespaces.c.registered,
        )
    )
    return {row.spelling: row.registered for row in rows}
