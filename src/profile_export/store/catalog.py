"""Datasets, and the union schemas of those that exports read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import Dataset, DatasetKind, Tenant
from profile_export.domain.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
)
from profile_export.domain.job import FINAL_STATES
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.domain.quotas import DEFAULT_QUOTAS, Quotas
from profile_export.domain.schema import ObjectType, TypeConflictError
from profile_export.domain.width import WIDE
from profile_export.processes.computing import compute_if
from profile_export.store.column_types import digest_of
from profile_export.store.compactions import drop_compactions
from profile_export.store.database import Database, database_time, fetch_all, fetch_first, whole
from profile_export.store.datasets import dataset_from, dataset_of, source_datasets, union_of
from profile_export.store.drops import drop
from profile_export.store.job_tables import jobs
from profile_export.store.judging import DatasetChange, NewDataset, judge_change, judge_new
from profile_export.store.mirrors import ask_drop
from profile_export.store.page_rows import characters, page_rows
from profile_export.store.shares import check_datasets
from profile_export.store.tables import datasets
from profile_export.store.tenants import IDENTITY, ensure_tenant, id_of, register_namespaces
from profile_export.store.unions import keep_unions, sources_changed, still_holds

_CHARACTERS = characters(
    datasets.c.description,
    datasets.c.tags,
    datasets.c.identity_fields,
    datasets.c.declared_fields,
    datasets.c.fields,
)


class Catalog:
    """Datasets of all tenants."""

    def __init__(self, database: Database, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self.database = database
        self._most_datasets = quotas.datasets

    @whole
    async def create_dataset(
        self, tenant: Tenant, new: NewDataset, dataset_id: str, request_id: str
    ) -> tuple[Dataset, bool]:
        """Make a dataset, or find the one made before with the same request id; True says it was found.

        Raises:
            AlreadyExistsError: The request id stands for a dataset made from other values.
            NotFoundError: There is no such schema.
            InvalidArgumentError: Its identity fields, declared fields or tags cannot work.
            TypeConflictError: A type contradicts the schema, or the union of the class.
            ExhaustedError: The tenant has as many datasets as it may have.
            TooManyError: More fields or namespaces would be known than may be.
        """
        digest = await compute_if(len(new.declared_fields) > WIDE, digest_of, new)
        unions = self.database.unions
        async with self.database.read() as connection:
            found = await _made_before(connection, id_of(tenant), digest, request_id)
            if found:
                return found, True
            made = await judge_new(connection, unions, id_of(tenant), new, dataset_id)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            found = await _made_before(connection, tenant_id, digest, request_id)
            if found:
                return found, True
            await check_datasets(connection, tenant_id, self._most_datasets)
            if not await still_holds(connection, tenant_id, made.outlook):
                made = await judge_new(connection, unions, tenant_id, new, dataset_id)
            now = await database_time(connection)
            row = made.values | {
                "tenant_id": tenant_id,
                "create_time": now,
                "update_time": now,
                "request_id": request_id or None,
                "request_digest": digest,
            }
            [inserted] = await fetch_all(connection, insert(datasets).values(row).returning(datasets))
            if made.outlook.grows:
                await sources_changed(connection, tenant_id)
            declared = [field.namespace for field in made.identities]
            await register_namespaces(connection, tenant_id, IDENTITY, declared, declared)
        if made.outlook.grows:
            keep_unions(unions, tenant_id, made.outlook)
        return dataset_from(inserted), False

    @whole
    async def get_dataset(self, tenant: Tenant, dataset_id: str) -> Dataset:
        """Return a dataset.

        Raises:
            NotFoundError: The tenant has none of that id.
        """
        async with self.database.read() as connection:
            return await dataset_of(connection, id_of(tenant), dataset_id)

    @whole
    async def list_datasets(self, tenant: Tenant, request: PageRequest) -> Page[Dataset]:
        """Return a page of datasets, oldest first."""
        query = select(datasets).where(
            datasets.c.tenant_id == id_of(tenant), datasets.c.delete_time.is_(None)
        )
        if request.cursor:
            after = select(datasets.c.create_time).where(datasets.c.id == request.cursor).scalar_subquery()
            query = query.where(tuple_(datasets.c.create_time, datasets.c.id) > tuple_(after, request.cursor))
        query = query.order_by(datasets.c.create_time, datasets.c.id)
        async with self.database.read() as connection:
            rows, more = await page_rows(connection, query, request.size, _CHARACTERS)
        return cut_page([dataset_from(row) for row in rows], request, lambda last: last.id, has_more=more)

    @whole
    async def update_dataset(self, tenant: Tenant, dataset_id: str, change: DatasetChange) -> Dataset:
        """Change what is given; a change that changes nothing leaves `update_time` as it was.

        Raises:
            NotFoundError: There is no such dataset.
            InvalidArgumentError: The declared fields or tags cannot work.
            FailedPreconditionError: A declared type narrows what is known, tags bring a conflict into the union, or
                more fields would be known than may be.
        """
        try:
            return await self._updated(tenant, dataset_id, change)
        except TypeConflictError as conflict:
            raise conflict.as_precondition() from None

    async def _updated(self, tenant: Tenant, dataset_id: str, change: DatasetChange) -> Dataset:
        unions = self.database.unions
        async with self.database.read() as connection:
            before = await dataset_of(connection, id_of(tenant), dataset_id)
            planned = await judge_change(connection, unions, id_of(tenant), before, change)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await dataset_of(connection, tenant_id, dataset_id)
            if dataset != before or not await still_holds(connection, tenant_id, planned.outlook):
                planned = await judge_change(connection, unions, tenant_id, dataset, change)
            if not planned.values:
                return dataset
            values = planned.values | {"update_time": await database_time(connection)}
            query = update(datasets).where(datasets.c.id == dataset_id).values(values).returning(datasets)
            [updated] = await fetch_all(connection, query)
            if planned.is_felt:
                await sources_changed(connection, tenant_id)
        if planned.is_felt and not planned.shrinks:
            keep_unions(unions, tenant_id, planned.outlook)
        return dataset_from(updated)

    @whole
    async def delete_dataset(self, tenant: Tenant, dataset_id: str) -> None:
        """Hide a dataset with all its batches.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: Unfinished jobs use it; they are named.
        """
        async with self.database.read() as connection:
            await dataset_of(connection, id_of(tenant), dataset_id)
            looked_at = await _plans_with(connection, id_of(tenant), dataset_id)
        async with self.database.write() as connection:
            dataset = await dataset_of(connection, id_of(tenant), dataset_id)
            using = await _unfinished_jobs(connection, id_of(tenant), dataset, looked_at)
            if using:
                named = ", ".join(str(job_id) for job_id in using)
                raise FailedPreconditionError(
                    "DATASET_IN_USE",
                    f"The dataset '{dataset_id}' is used by unfinished jobs: {named}. Wait for them or cancel them.",
                    metadata={"id": dataset_id, "jobs": named},
                    violations=tuple(FieldViolation(f"jobs/{one}", "is not finished") for one in using),
                )
            # Its request id is free again: it stands for a dataset that nobody can see.
            values = {"delete_time": await database_time(connection), "request_id": None}
            await connection.execute(update(datasets).where(datasets.c.id == dataset_id).values(values))
            if dataset.is_source:
                await sources_changed(connection, id_of(tenant))
            await ask_drop(connection, dataset_id)
            await drop_compactions(connection, dataset_id)
            await drop(connection, [dataset_id])

    @whole
    async def union_fields(self, tenant: Tenant) -> Mapping[DatasetKind, ObjectType]:
        """Return the union schemas of the tenant's record and event sources, built-in fields included."""
        return await union_of(await self.sources(tenant))

    @whole
    async def sources(self, tenant: Tenant) -> Sequence[Dataset]:
        """Return the datasets that exports read (S11), oldest first."""
        async with self.database.read() as connection:
            return await source_datasets(connection, id_of(tenant))


def check_digest(row: Row[Any], digest: str, request_id: str) -> None:
    """Refuse a request id that stands for another request.

    Raises:
        AlreadyExistsError: The stored request's digest is another.
    """
    if row.request_digest != digest:
        raise AlreadyExistsError(
            "REQUEST_ID_REUSED",
            f"The request_id '{request_id}' was used with other values; choose a new one.",
            metadata={"request_id": request_id, "id": str(row.id)},
        )


async def _made_before(
    connection: AsyncConnection, tenant_id: Any, digest: str, request_id: str
) -> Dataset | None:
    """Return the dataset that a request id stands for; None if it is new.

    Raises:
        AlreadyExistsError: It was made from other values.
    """
    if not request_id:
        return None
    query = select(datasets).where(datasets.c.tenant_id == tenant_id, datasets.c.request_id == request_id)
    found = await fetch_first(connection, query)
    if found is None:
        return None
    check_digest(found, digest, request_id)
    return dataset_from(found)


async def _plans_with(
    connection: AsyncConnection, tenant_id: Any, dataset_id: str, but_for: Collection[int] = ()
) -> Mapping[int, bool]:
    """Say of the unfinished jobs that are planned, by their ids, whether they have pinned a dataset."""
    planned = _unfinished(tenant_id, jobs.c.id, jobs.c.plan).where(jobs.c.plan.is_not(None))
    if but_for:
        planned = planned.where(jobs.c.id.not_in(but_for))
    return {
        job.id: any(source.dataset_id == dataset_id for source in job.plan.sources)
        for job in await fetch_all(connection, planned)
    }


async def _unfinished_jobs(
    connection: AsyncConnection, tenant_id: Any, dataset: Dataset, looked_at: Mapping[int, bool]
) -> list[int]:
    """Return the jobs that write to a dataset, have pinned it, or will read it when they are planned.

    Plans never change: of those `looked_at` before, none is read once more.
    """
    columns = (jobs.c.id, jobs.c.destination_id, jobs.c.plan.is_not(None).label("planned"))
    found = (await connection.execute(_unfinished(tenant_id, *columns).order_by(jobs.c.id))).all()
    pinning = dict(looked_at)
    if any(job.planned and job.id not in pinning for job in found):
        pinning |= await _plans_with(connection, tenant_id, dataset.id, but_for=pinning)
    return [
        job.id
        for job in found
        if job.destination_id == dataset.id or (pinning[job.id] if job.planned else dataset.is_source)
    ]


def _unfinished(tenant_id: Any, *columns: Any) -> Select[Any]:
    final = [state.value for state in FINAL_STATES]
    return select(*columns).where(jobs.c.tenant_id == tenant_id, jobs.c.state.not_in(final))
