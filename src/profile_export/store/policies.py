"""Merge policies: versioned, and never changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, insert, select, tuple_

from profile_export.domain.catalog import Tenant
from profile_export.domain.errors import NotFoundError
from profile_export.domain.paging import Page, PageRequest, cut_page
from profile_export.domain.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, MergePolicy
from profile_export.store.database import Database, database_time, whole
from profile_export.store.tables import merge_policies
from profile_export.store.tenants import ensure_tenant, id_of


class Policies:
    """Merge policies of all tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database

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
            row = (await connection.execute(query.order_by(merge_policies.c.version.desc()).limit(1))).first()
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
