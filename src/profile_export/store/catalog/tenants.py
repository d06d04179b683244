"""Tenants: what is registered once in each, how much each has of what is shared out, and its datasets' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    TextClause,
    bindparam,
    cast,
    func,
    or_,
    select,
    update,
)

from profile_export.domain.catalog.allowances import check_tenant_namespaces, quota_exceeded
from profile_export.domain.catalog.batches import NamespaceUse
from profile_export.domain.catalog.datasets import (
    Dataset,
    DatasetKind,
    SchemaRef,
    Tenant,
    missing_dataset,
    union_by_kind,
)
from profile_export.domain.errors import AlreadyExistsError
from profile_export.domain.job import JobState
from profile_export.domain.merging.identity import fold_namespace
from profile_export.domain.schemas.types import ObjectType, is_wide
from profile_export.processes.turns import compute_if
from profile_export.store.db.columns import value_of
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import (
    LOADING,
    batches,
    datasets,
    field_sets,
    jobs,
    namespace_spellings,
    namespaces,
    tenants,
    uploads,
)
from profile_export.store.db.transactions import Transaction

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
    """Return what `id_of` does, for a statement that is made once, with the parameters `org` and `sandbox`."""
    return (
        select(tenants.c.id)
        .where(tenants.c.org == bindparam("org"), tenants.c.sandbox == bindparam("sandbox"))
        .scalar_subquery()
    )


async def ensure_tenant(connection: Transaction, tenant: Tenant) -> int:
    """Return the tenant's key, making its row at the first write."""
    await connection.insert_new(tenants, {"org": tenant.org, "sandbox": tenant.sandbox})
    tenant_id: int = await connection.value(select(id_of(tenant)))
    return tenant_id


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """What a batch gets in the transaction that commits it (S8)."""

    number: int
    ingest_time: datetime


async def next_places(connection: Transaction, tenant_id: int, count: int = 1) -> Sequence[BatchPlace]:
    """Give out the tenant's next batch numbers and ingest times; both grow, whatever the clock does."""
    now = await database_time(connection)
    row = await connection.one(
        select(tenants.c.last_batch_number, tenants.c.last_ingest_time).where(tenants.c.id == tenant_id)
    )
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


async def next_job_revision(connection: Transaction, tenant_id: int, changes: int = 1) -> int:
    """Give out the numbers of the next changes of the tenant's jobs, one unless told otherwise; return the last.

    It holds the tenant's row until the transaction ends, so that no number is seen before those below it.
    """
    revision = tenants.c.job_revision + changes
    query = update(tenants).where(tenants.c.id == tenant_id).values(job_revision=revision)
    given: int = await connection.value(query.returning(tenants.c.job_revision))
    return given


async def forget_job_revisions(connection: Transaction, tenant_id: int, up_to: int) -> None:
    """Note that the changes of the tenant's jobs up to this one are not kept any more."""
    later = (tenants.c.id == tenant_id) & (tenants.c.forgotten_job_revision < up_to)
    await connection.execute(update(tenants).where(later).values(forgotten_job_revision=up_to))


async def register_namespaces(connection: Transaction, tenant_id: int, kind: str, use: NamespaceUse) -> None:
    """Register namespaces on first use in the spelling of their first place, and remember how they were spelled (S2).

    `kind` is `IDENTITY` or `SEGMENT`.

    Raises:
        TooManyError: The tenant would have more than it may have.
    """
    named = [
        {"tenant_id": tenant_id, "kind": kind, "folded": fold_namespace(spelling), "registered": spelling}
        for spelling in use.first_spellings
    ]
    spelled = [
        {"tenant_id": tenant_id, "kind": kind, "spelling": spelling, "folded": fold_namespace(spelling)}
        for spelling in use.all_spellings
    ]
    if not spelled:
        return
    counts = []
    for table, rows in ((namespaces, named), (namespace_spellings, spelled)):
        await connection.insert_new(table, rows)
        of_tenant = select(func.count()).where(table.c.tenant_id == tenant_id, table.c.kind == kind)
        counts.append(await connection.value(of_tenant))
    check_tenant_namespaces(kind, *counts)


async def registered_namespaces(connection: Transaction, tenant_id: Any, kind: str) -> Mapping[str, str]:
    """Return the registered spelling of every namespace by its folded name."""
    rows = await connection.execute(
        select(namespaces.c.folded, namespaces.c.registered).where(
            namespaces.c.tenant_id == tenant_id, namespaces.c.kind == kind
        )
    )
    return {row.folded: row.registered for row in rows}


async def renamed_namespaces(connection: Transaction, tenant_id: Any, kind: str) -> Mapping[str, str]:
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


class CountedQuota(NamedTuple):
    """A quota for rows: its name in `Quotas`, which rows of a tenant it counts, and how to make room for others.

    `retry_after` is when there may be room without anything being done; None: never.
    """

    name: str
    tenant_id: ColumnElement[int]
    which: ColumnElement[bool] | TextClause
    way_out: str
    retry_after: timedelta | None = None


WAITING_JOBS = CountedQuota(
    "waiting_jobs",
    jobs.c.tenant_id,
    jobs.c.state == JobState.NEW,
    "Wait until some have run, or cancel some.",
    timedelta(seconds=5),
)
DATASETS = CountedQuota(
    "datasets",
    datasets.c.tenant_id,
    datasets.c.delete_time.is_(None),
    "Delete some that are not needed any more.",
)
LOADING_BATCHES = CountedQuota(
    "loading_batches",
    batches.c.tenant_id,
    LOADING,
    "Complete some, or abort those that are given up.",
)


async def check_one_more(
    connection: Transaction, quota: CountedQuota, tenant_id: int, most: int | None
) -> None:
    """Refuse one row more than a tenant may have; None: any number.

    Raises:
        ExhaustedError: It has as many.
    """
    if most is None:
        return
    used = await connection.value(select(func.count()).where(quota.tenant_id == tenant_id, quota.which))
    if used >= most:
        raise quota_exceeded(quota.name, most, used, quota.way_out, quota.retry_after)


async def room_for_bytes(
    connection: Transaction, tenant_id: int, most: int | None, least: int, wanted: int
) -> int:
    """Return how many bytes more of uploads may be kept, at least and at most so many.

    Raises:
        ExhaustedError: There is no room for so many.
    """
    if most is None:
        return wanted
    staged = select(total(batches.c.staged_bytes)).where(batches.c.tenant_id == tenant_id, LOADING)
    used: int = await connection.value(staged)
    if used + least > most:
        way_out = "Complete batches, or abort those that are given up; then go on at received_bytes."
        raise quota_exceeded("staged_bytes", most, used, way_out)
    return min(wanted, most - used)


async def note_activity(connection: Transaction, batch_key: int) -> None:
    """Note a sign of life of a batch, and what its files have come to keep."""
    staged = select(total(uploads.c.staged_bytes)).where(uploads.c.batch_key == batch_key)
    values = {"staged_bytes": staged.scalar_subquery(), "active_time": await database_time(connection)}
    await connection.execute(update(batches).where(batches.c.key == batch_key).values(values))


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Return the sum of a column over all rows, 0 without any. PostgreSQL adds 64-bit integers up to a decimal."""
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


async def made_before(
    connection: Transaction, query: Select[Any], tenant_id: Any, request_id: str, digest: str
) -> Row[Any] | None:
    """Return the row that a request id made, of a query over a table of such rows; None if the id is new or empty.

    Raises:
        AlreadyExistsError: The id stands for a request of another digest.
    """
    if not request_id:
        return None
    columns = query.selected_columns
    query = query.where(columns.tenant_id == tenant_id, columns.request_id == request_id)
    row = await connection.first(query)
    if row is not None and row.request_digest != digest:
        raise AlreadyExistsError(
            "REQUEST_ID_REUSED",
            f"The request_id '{request_id}' was used with other values; choose a new one.",
            metadata={"request_id": request_id, "id": str(row.id)},
        )
    return row


async def dataset_of(connection: Transaction, tenant_id: Any, dataset_id: str) -> Dataset:
    """Return a dataset, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id.
    """
    dataset = await kept_dataset(connection, tenant_id, dataset_id)
    if dataset.delete_time is not None:
        raise missing_dataset(dataset_id, dataset.delete_time, dataset.purge_time)
    return dataset


async def kept_dataset(connection: Transaction, tenant_id: Any, dataset_id: str) -> Dataset:
    """Return a dataset, also a deleted one, within a transaction.

    Raises:
        NotFoundError: The tenant never had one of that id.
    """
    query = select(datasets).where(datasets.c.id == dataset_id, datasets.c.tenant_id == tenant_id)
    return dataset_from(await connection.existing(query, "dataset", dataset_id))


async def source_datasets(connection: Transaction, tenant_id: Any) -> list[Dataset]:
    """Return the datasets that exports read (S11), oldest first."""
    query = select(datasets).where(datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None))
    rows = await connection.all(query.order_by(datasets.c.create_time, datasets.c.id))
    return [dataset for dataset in map(dataset_from, rows) if dataset.is_source]


async def union_of(sources: Sequence[Dataset]) -> Mapping[DatasetKind, ObjectType]:
    """Return the union schemas of sources, beside the loop if they know very much; raises as `union_by_kind`."""
    wide = is_wide(source.fields for source in sources)
    return await compute_if(wide, union_by_kind, sources)


def dataset_from(row: Row[Any]) -> Dataset:
    """Make a dataset of its row."""
    return value_of(Dataset, row, schema=SchemaRef(row.schema_id, row.content_type))


async def field_sets_of(
    connection: Transaction, dataset_id: str, different: Mapping[str, Any]
) -> Mapping[str, int]:
    """Return the keys of the fields that files of a dataset were written with, each different set kept once.

    `different` are the sets by their digests, as statements take them; by these are the keys, too.
    """
    rows = [
        {"dataset_id": dataset_id, "digest": digest, "fields": fields} for digest, fields in different.items()
    ]
    await connection.insert_new(field_sets, rows)
    query = select(field_sets.c.digest, field_sets.c.id).where(
        field_sets.c.dataset_id == dataset_id, field_sets.c.digest.in_(different)
    )
    return {row.digest: row.id for row in await connection.execute(query)}


THERE_OR_UNDELETABLE = or_(datasets.c.delete_time.is_(None), datasets.c.purge_time.is_not(None))
"""Tells datasets that are not deleted or can be brought back."""


def is_seen() -> Any:
    """Tell batches of datasets that are not deleted."""
    return batches.c.dataset_id.in_(select(datasets.c.id).where(datasets.c.delete_time.is_(None)))


def is_kept() -> Any:
    """Tell batches of datasets that are not deleted or can be brought back."""
    return batches.c.dataset_id.in_(select(datasets.c.id).where(THERE_OR_UNDELETABLE))
