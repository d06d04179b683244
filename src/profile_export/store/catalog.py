"""Datasets, and the union schemas of those that exports read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import (
    Dataset,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    SchemaRef,
    Tenant,
    check_declared_fields,
    check_identity_fields,
    check_tags,
    initial_fields,
    is_source,
    usable_kind,
    with_declared,
)
from profile_export.domain.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
)
from profile_export.domain.job import FINAL_STATES
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.domain.quotas import DEFAULT_QUOTAS, Quotas
from profile_export.domain.registered import check_dataset_fields
from profile_export.domain.schema import ObjectType, TypeConflictError
from profile_export.domain.width import WIDE, is_wide
from profile_export.processes.computing import compute_if
from profile_export.store.column_types import digest_of
from profile_export.store.compactions import drop_compactions
from profile_export.store.database import Database, database_time, fetch_all, fetch_first, whole
from profile_export.store.datasets import check_union, dataset_from, dataset_of, source_datasets, union_of
from profile_export.store.drops import drop
from profile_export.store.job_tables import jobs
from profile_export.store.mirrors import ask_drop
from profile_export.store.page_rows import characters, page_rows
from profile_export.store.schemas import newest_schema
from profile_export.store.shares import check_datasets
from profile_export.store.tables import datasets
from profile_export.store.tenants import IDENTITY, ensure_tenant, id_of, register_namespaces

_CHARACTERS = characters(
    datasets.c.description,
    datasets.c.tags,
    datasets.c.identity_fields,
    datasets.c.declared_fields,
    datasets.c.fields,
)


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What a caller says of a dataset; `schema` is built in or registered, `iceberg` None means as its kind has it.

    `batch_retention` None means for ever.
    """

    name: str
    description: str
    schema: SchemaRef
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """What a caller changes of a dataset; None stays as it is, declared fields come on top of those it has.

    A `batch_retention` of zero means for ever.
    """

    name: str | None = None
    description: str | None = None
    tags: Mapping[str, tuple[str, ...]] | None = None
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


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
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            if request_id:
                query = select(datasets).where(
                    datasets.c.tenant_id == tenant_id, datasets.c.request_id == request_id
                )
                found = await fetch_first(connection, query)
                if found:
                    check_digest(found, digest, request_id)
                    return dataset_from(found), True
            await check_datasets(connection, tenant_id, self._most_datasets)
            schema = await newest_schema(connection, tenant_id, new.schema.id)
            kind = usable_kind(schema)
            identities = _with_those_of_the_schema(new.identity_fields, schema.identity_fields)
            check_identity_fields(kind, identities)
            wide = len(new.declared_fields) > WIDE or is_wide([schema.fields])
            await compute_if(wide, check_declared_fields, kind, new.declared_fields, "declared_fields")
            check_tags(kind, new.tags)
            fields = await compute_if(wide, initial_fields, schema, identities, new.declared_fields)
            await compute_if(wide, check_dataset_fields, fields)
            now = await database_time(connection)
            row = {
                "id": dataset_id,
                "tenant_id": tenant_id,
                "name": new.name,
                "description": new.description,
                "schema_id": new.schema.id,
                "content_type": new.schema.content_type,
                "kind": kind.value,
                "tags": new.tags,
                "identity_fields": identities,
                "declared_fields": new.declared_fields,
                "fields": fields,
                "iceberg": kind is DatasetKind.UNION if new.iceberg is None else new.iceberg,
                "batch_retention": new.batch_retention,
                "create_time": now,
                "update_time": now,
                "request_id": request_id or None,
                "request_digest": digest,
            }
            [inserted] = await fetch_all(connection, insert(datasets).values(row).returning(datasets))
            await check_union(connection, tenant_id, newcomers=[dataset_id])
            declared = [field.namespace for field in identities]
            await register_namespaces(connection, tenant_id, IDENTITY, declared, declared)
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
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            dataset = await dataset_of(connection, tenant_id, dataset_id)
            added = change.declared_fields
            wide = len(added) > WIDE or is_wide([dataset.fields])
            await compute_if(wide, check_declared_fields, dataset.kind, added, "add_declared_fields")
            tags = dataset.tags if change.tags is None else change.tags
            check_tags(dataset.kind, tags)
            retention = dataset.batch_retention if change.batch_retention is None else change.batch_retention
            values: dict[str, Any] = {
                "name": dataset.name if change.name is None else change.name,
                "description": dataset.description if change.description is None else change.description,
                "tags": tags,
                "iceberg": dataset.iceberg if change.iceberg is None else change.iceberg,
                "batch_retention": retention or None,
                "declared_fields": await compute_if(wide, _with_newer, dataset.declared_fields, added),
                "fields": await compute_if(wide, with_declared, dataset.fields, added),
            }
            if all(getattr(dataset, name) == value for name, value in values.items()):
                return dataset
            await compute_if(wide, check_dataset_fields, values["fields"])
            values["update_time"] = await database_time(connection)
            query = update(datasets).where(datasets.c.id == dataset_id).values(values).returning(datasets)
            [updated] = await fetch_all(connection, query)
            if is_source(dataset.kind, tags):
                await check_union(connection, tenant_id, newcomers=[dataset_id])
            return dataset_from(updated)

    @whole
    async def delete_dataset(self, tenant: Tenant, dataset_id: str) -> None:
        """Hide a dataset with all its batches.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: Unfinished jobs use it; they are named.
        """
        async with self.database.write() as connection:
            dataset = await dataset_of(connection, id_of(tenant), dataset_id)
            using = await _unfinished_jobs(connection, id_of(tenant), dataset)
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


def _with_those_of_the_schema(
    own: Sequence[IdentityField], schemas: Sequence[IdentityField]
) -> tuple[IdentityField, ...]:
    """Return the identity fields of a dataset: what it says of a path goes before what its schema says."""
    said = {field.path for field in own}
    has_primary = any(field.primary for field in own)
    inherited = (field for field in schemas if field.path not in said)
    return (
        *own,
        *(IdentityField(one.path, one.namespace, one.primary and not has_primary) for one in inherited),
    )


def _with_newer(
    known: Sequence[FieldDeclaration], added: Sequence[FieldDeclaration]
) -> tuple[FieldDeclaration, ...]:
    types = {declared.path: declared.type for declared in (*known, *added)}
    return tuple(FieldDeclaration(path, kind) for path, kind in types.items())


async def _unfinished_jobs(connection: AsyncConnection, tenant_id: Any, dataset: Dataset) -> list[int]:
    """Return the jobs that write to a dataset, have pinned it, or will read it when they are planned."""
    unfinished = select(jobs.c.id, jobs.c.destination_id, jobs.c.plan).where(
        jobs.c.tenant_id == tenant_id, jobs.c.state.not_in([state.value for state in FINAL_STATES])
    )
    using = []
    for job in await fetch_all(connection, unfinished.order_by(jobs.c.id)):
        if job.destination_id == dataset.id:
            using.append(job.id)
        elif job.plan is None:
            using += [job.id] if dataset.is_source else []
        elif any(source.dataset_id == dataset.id for source in job.plan.sources):
            using.append(job.id)
    return using
