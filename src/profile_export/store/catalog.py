"""Datasets, and the merge policies over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog import (
    BUILT_IN_SCHEMAS,
    Dataset,
    DatasetKind,
    IdentityField,
    SchemaRef,
    Tenant,
    initial_fields,
)
from profile_export.domain.errors import AlreadyExistsError, NotFoundError
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.domain.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, MergePolicy
from profile_export.domain.schema import ObjectType, TypeConflictError, union_objects
from profile_export.store.column_types import digest_of
from profile_export.store.database import Database, database_time, whole
from profile_export.store.tables import datasets, merge_policies
from profile_export.store.tenants import IDENTITY, ensure_tenant, id_of, register_namespaces


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What a caller says of a dataset; `schema` is one of the built-in ones."""

    name: str
    description: str
    schema: SchemaRef
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    iceberg: bool


class Catalog:
    """Datasets and merge policies of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @whole
    async def create_dataset(
        self, tenant: Tenant, new: NewDataset, dataset_id: str, request_id: str
    ) -> tuple[Dataset, bool]:
        """Make a dataset, or find the one made before with the same request id; True says it was found.

        Raises:
            AlreadyExistsError: The request id stands for a dataset made from other values.
        """
        schema = BUILT_IN_SCHEMAS[new.schema.id]
        digest = digest_of(new)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            if request_id:
                found = await _first(
                    connection,
                    select(datasets).where(
                        datasets.c.tenant_id == tenant_id, datasets.c.request_id == request_id
                    ),
                )
                if found:
                    check_digest(found, digest, request_id)
                    return _dataset(found), True
            now = await database_time(connection)
            row = {
                "id": dataset_id,
                "tenant_id": tenant_id,
                "name": new.name,
                "description": new.description,
                "schema_id": new.schema.id,
                "content_type": new.schema.content_type,
                "kind": schema.kind.value,
                "tags": new.tags,
                "identity_fields": new.identity_fields,
                "fields": initial_fields(schema, new.identity_fields),
                "iceberg": new.iceberg,
                "create_time": now,
                "update_time": now,
                "request_id": request_id or None,
                "request_digest": digest,
            }
            inserted = await connection.execute(insert(datasets).values(row).returning(datasets))
            declared = [field.namespace for field in new.identity_fields]
            await register_namespaces(connection, tenant_id, IDENTITY, declared, declared)
            return _dataset(inserted.one()), False

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
        query = select(datasets).where(datasets.c.tenant_id == id_of(tenant))
        if request.cursor:
            after = select(datasets.c.create_time).where(datasets.c.id == request.cursor).scalar_subquery()
            query = query.where(tuple_(datasets.c.create_time, datasets.c.id) > tuple_(after, request.cursor))
        query = query.order_by(datasets.c.create_time, datasets.c.id).limit(request.size + 1)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return cut_page([_dataset(row) for row in rows], request, lambda last: last.id)

    @whole
    async def union_fields(self, tenant: Tenant) -> Mapping[DatasetKind, ObjectType]:
        """Return the union schemas of the tenant's record and event sources, built-in fields included."""
        async with self.database.read() as connection:
            sources = await source_datasets(connection, id_of(tenant))
        return union_by_kind(sources)

    @whole
    async def create_policy(self, tenant: Tenant, policy: MergePolicy) -> MergePolicy:
        """Store the first version of a merge policy; its `create_time` is set here."""
        async with self.database.write() as connection:
            row = {
                "tenant_id": await ensure_tenant(connection, tenant),
                "id": policy.id,
                "version": policy.version,
                "name": policy.name,
                "graph": policy.graph.value,
                "attribute_merge": policy.attribute_merge.value,
                "schema_name": policy.schema_name,
                "create_time": await database_time(connection),
            }
            inserted = await connection.execute(insert(merge_policies).values(row).returning(merge_policies))
            return _policy(inserted.one())

    @whole
    async def find_policy(self, tenant: Tenant, policy_id: str, version: int | None) -> MergePolicy:
        """Return a merge policy: the built-in one for an empty id, the newest version for None.

        Raises:
            NotFoundError: The tenant has no such policy, or not that version.
        """
        if policy_id in {"", BUILT_IN_POLICY.id} and version in {None, BUILT_IN_POLICY.version}:
            return BUILT_IN_POLICY
        query = select(merge_policies).where(
            merge_policies.c.tenant_id == id_of(tenant), merge_policies.c.id == policy_id
        )
        if version is not None:
            query = query.where(merge_policies.c.version == version)
        async with self.database.read() as connection:
            row = await _first(connection, query.order_by(merge_policies.c.version.desc()))
        if row is None:
            raise NotFoundError.of("merge policy", policy_id if version is None else f"{policy_id}@{version}")
        return _policy(row)

    @whole
    async def list_policies(self, tenant: Tenant, request: PageRequest) -> Page[MergePolicy]:
        """Return a page of merge policies in their newest versions: the built-in one first, then oldest first."""
        newest = (
            select(merge_policies.c.id, func.max(merge_policies.c.version).label("version"))
            .where(merge_policies.c.tenant_id == id_of(tenant))
            .group_by(merge_policies.c.id)
            .subquery()
        )
        query = select(merge_policies).join(
            newest, (merge_policies.c.id == newest.c.id) & (merge_policies.c.version == newest.c.version)
        )
        query = query.where(merge_policies.c.tenant_id == id_of(tenant))
        if request.cursor:
            # The built-in policy has no time and so comes before all others.
            times = select(merge_policies.c.create_time).where(merge_policies.c.id == request.cursor)
            after = func.coalesce(times.scalar_subquery(), 0)
            query = query.where(
                tuple_(merge_policies.c.create_time, merge_policies.c.id) > tuple_(after, request.cursor)
            )
        query = query.order_by(merge_policies.c.create_time, merge_policies.c.id).limit(request.size + 1)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        built_in = [] if request.cursor else [BUILT_IN_POLICY]
        return cut_page([*built_in, *map(_policy, rows)], request, lambda last: last.id)


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


async def dataset_of(connection: AsyncConnection, tenant_id: Any, dataset_id: str) -> Dataset:
    """Return a dataset, within a transaction.

    Raises:
        NotFoundError: The tenant has none of that id.
    """
    row = await _first(
        connection, select(datasets).where(datasets.c.id == dataset_id, datasets.c.tenant_id == tenant_id)
    )
    if row is None:
        raise NotFoundError.of("dataset", dataset_id)
    return _dataset(row)


async def source_datasets(connection: AsyncConnection, tenant_id: Any) -> list[Dataset]:
    """Return the datasets that exports read (S11), oldest first."""
    rows = await connection.execute(
        select(datasets)
        .where(datasets.c.tenant_id == tenant_id)
        .order_by(datasets.c.create_time, datasets.c.id)
    )
    return [dataset for dataset in map(_dataset, rows) if dataset.is_source]


def union_by_kind(sources: Sequence[Dataset]) -> Mapping[DatasetKind, ObjectType]:
    """Return the union schemas of record and event datasets.

    Raises:
        TypeConflictError: Two datasets contradict each other; it names both.
    """
    unions: dict[DatasetKind, ObjectType] = {
        schema.kind: schema.fields
        for schema in BUILT_IN_SCHEMAS.values()
        if schema.kind is not DatasetKind.UNION
    }
    earlier: list[Dataset] = []
    for dataset in sources:
        try:
            unions[dataset.kind] = union_objects(unions[dataset.kind], dataset.fields)
        except TypeConflictError as conflict:
            raise conflict.between(dataset.id, _who_knows(earlier, dataset)) from None
        earlier.append(dataset)
    return unions


def _who_knows(earlier: Sequence[Dataset], dataset: Dataset) -> str:
    """Name the first dataset that the newcomer contradicts; the built-in schema if there is none."""
    for other in earlier:
        if other.kind is dataset.kind:
            try:
                union_objects(other.fields, dataset.fields)
            except TypeConflictError:
                return other.id
    return dataset.schema.id


async def _first(connection: AsyncConnection, query: Select[Any]) -> Row[Any] | None:
    row: Row[Any] | None = (await connection.execute(query.limit(1))).first()
    return row


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        name=row.name,
        description=row.description,
        schema=SchemaRef(row.schema_id, row.content_type),
        kind=DatasetKind(row.kind),
        tags=row.tags,
        identity_fields=row.identity_fields,
        fields=row.fields,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _policy(row: Row[Any]) -> MergePolicy:
    return MergePolicy(
        id=row.id,
        version=row.version,
        name=row.name,
        graph=IdentityGraph(row.graph),
        attribute_merge=AttributeMerge(row.attribute_merge),
        schema_name=row.schema_name,
        create_time=row.create_time,
    )
