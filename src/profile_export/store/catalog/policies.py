"""Merge policies: their versions are never changed, only followed by others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update

from profile_export.domain.catalog.datasets import Tenant, is_source
from profile_export.domain.errors import check_etag
from profile_export.domain.lists import Order, Page, PageRequest, Read, joined_page
from profile_export.domain.merging.policy import (
    BUILT_IN_POLICY,
    MergePolicy,
    PolicyChange,
    check_changeable,
    check_order,
)
from profile_export.store.catalog.tenants import ensure_tenant, id_of
from profile_export.store.db.columns import columns_of, value_of
from profile_export.store.db.database import Store, database_time, uninterruptible
from profile_export.store.db.lists import page_of
from profile_export.store.db.tables import datasets, merge_policies, merge_policy_versions
from profile_export.store.db.transactions import Transaction, characters, page_rows

_OLDEST_FIRST = Order("create_time")
_LISTED = {
    "name": merge_policy_versions.c.name,
    "is_default": merge_policies.c.is_default,
    "identity_graph": merge_policy_versions.c.graph,
    "attribute_merge.type": merge_policy_versions.c.attribute_merge,
    "create_time": merge_policies.c.create_time,
}
_CHARACTERS = characters(
    merge_policy_versions.c.name, merge_policy_versions.c.order, merge_policy_versions.c.excluded_identities
)


class Policies(Store):
    """Merge policies of all tenants."""

    @uninterruptible
    async def create_policy(self, tenant: Tenant, policy: MergePolicy) -> MergePolicy:
        """Store the first version of a merge policy; its times are set here.

        Raises:
            InvalidArgumentError: Its order ranks anything but source datasets.
        """
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            await _check_order(connection, tenant_id, policy)
            now = await database_time(connection)
            row = {
                "id": policy.id,
                "tenant_id": tenant_id,
                "schema_name": policy.schema_name,
                "newest_version": policy.version,
                "is_default": False,
                "create_time": now,
            }
            await connection.execute(insert(merge_policies).values(row))
            await _insert_version(connection, policy, now)
            if policy.is_default:
                await _make_default(connection, tenant_id, policy)
            return await _own_policy(connection, tenant_id, policy.id)

    @uninterruptible
    async def find_policy(self, tenant: Tenant, policy_id: str, version: int | None) -> MergePolicy:
        """Return a merge policy: the default one for an empty id, the newest version for None.

        Raises:
            NotFoundError: The tenant has no such policy, or not that version.
        """
        tenant_id = id_of(tenant)
        async with self.database.read() as connection:
            if not policy_id:
                return await _default_policy(connection, tenant_id)
            if policy_id == BUILT_IN_POLICY.id and version in {None, BUILT_IN_POLICY.version}:
                return await _built_in(connection, tenant_id)
            return await _own_policy(connection, tenant_id, policy_id, version)

    @uninterruptible
    async def list_policies(self, tenant: Tenant, request: PageRequest) -> Page[MergePolicy]:
        """Return a page of merge policies in their newest versions.

        Unless asked otherwise, the built-in one comes first, then the oldest.
        """
        tenant_id = id_of(tenant)
        query = page_of(_newest(tenant_id), request, _LISTED, _OLDEST_FIRST, merge_policies.c.id)
        async with self.database.read() as connection:
            built_in = await _built_in(connection, tenant_id)
            rows, more = await page_rows(connection, query, request.size, _CHARACTERS)
        stored = Read([value_of(MergePolicy, row) for row in rows], more)
        return joined_page([built_in], stored, request, _OLDEST_FIRST, _told)

    @uninterruptible
    async def update_policy(
        self, tenant: Tenant, policy_id: str, change: PolicyChange, etag: str = ""
    ) -> MergePolicy:
        """Change what is given; what changes more than the default makes the next version.

        An order that stays as it is may name what has gone since.

        Raises:
            NotFoundError: There is no such policy.
            InvalidArgumentError: Its new order ranks anything but source datasets.
            FailedPreconditionError: The policy is built in.
            AbortedError: It is not as it was when it had that `etag`; an empty one is always right.
        """
        check_changeable(policy_id)
        async with self.database.write() as connection:
            tenant_id = await ensure_tenant(connection, tenant)
            policy = await _own_policy(connection, tenant_id, policy_id)
            check_etag(etag, policy.etag, policy_id)
            changed = change.next_version(policy)
            if (changed.attribute_merge, changed.order) != (policy.attribute_merge, policy.order):
                await _check_order(connection, tenant_id, changed)
            if changed != policy:
                await _insert_version(connection, changed, await database_time(connection))
                await _set(connection, policy_id, newest_version=changed.version)
            if change.is_default:
                await _make_default(connection, tenant_id, policy)
            elif change.is_default is not None:
                await _set(connection, policy_id, is_default=False)
            return await _own_policy(connection, tenant_id, policy_id)

    @uninterruptible
    async def delete_policy(self, tenant: Tenant, policy_id: str, etag: str = "") -> None:
        """Remove a policy with all its versions; jobs have a copy of theirs.

        Raises:
            NotFoundError: There is no such policy.
            FailedPreconditionError: It is built in.
            AbortedError: As `update_policy`.
        """
        check_changeable(policy_id)
        async with self.database.write() as connection:
            check_etag(etag, (await _own_policy(connection, id_of(tenant), policy_id)).etag, policy_id)
            of_policy = merge_policy_versions.c.policy_id == policy_id
            await connection.execute(delete(merge_policy_versions).where(of_policy))
            await connection.execute(delete(merge_policies).where(merge_policies.c.id == policy_id))


async def _check_order(connection: Transaction, tenant_id: int, policy: MergePolicy) -> None:
    known: Mapping[str, bool] = {}
    if policy.order:
        query = select(datasets.c.id, datasets.c.kind, datasets.c.tags).where(
            datasets.c.tenant_id == tenant_id, datasets.c.delete_time.is_(None)
        )
        rows = await connection.execute(query)
        known = {row.id: is_source(row.kind, row.tags) for row in rows}
    check_order(policy.attribute_merge, policy.order, known)


async def _insert_version(connection: Transaction, policy: MergePolicy, now: datetime) -> None:
    row = columns_of(policy, merge_policy_versions) | {"policy_id": policy.id, "update_time": now}
    await connection.execute(insert(merge_policy_versions).values(row))


async def _make_default(connection: Transaction, tenant_id: int, policy: MergePolicy) -> None:
    """Make a policy the default of its class, and no other."""
    others = update(merge_policies).where(
        merge_policies.c.tenant_id == tenant_id, merge_policies.c.schema_name == policy.schema_name
    )
    await connection.execute(others.values(is_default=False))
    await _set(connection, policy.id, is_default=True)


async def _set(connection: Transaction, policy_id: str, **values: Any) -> None:
    await connection.execute(update(merge_policies).where(merge_policies.c.id == policy_id).values(**values))


async def _own_policy(
    connection: Transaction, tenant_id: Any, policy_id: str, version: int | None = None
) -> MergePolicy:
    """Return a policy that is not built in, in a version or the newest."""
    query = (
        _newest(tenant_id)
        if version is None
        else _versions(tenant_id, merge_policy_versions.c.version == version)
    )
    named = policy_id if version is None else f"{policy_id}@{version}"
    query = query.where(merge_policies.c.id == policy_id)
    return value_of(MergePolicy, await connection.existing(query, "merge policy", named))


async def _default_policy(connection: Transaction, tenant_id: Any) -> MergePolicy:
    """Return the policy of requests that name none."""
    query = _newest(tenant_id).where(
        merge_policies.c.is_default, merge_policies.c.schema_name == BUILT_IN_POLICY.schema_name
    )
    row = await connection.first(query)
    return replace(BUILT_IN_POLICY, is_default=True) if row is None else value_of(MergePolicy, row)


async def _built_in(connection: Transaction, tenant_id: Any) -> MergePolicy:
    """Return the built-in policy, which is the default of a tenant that has set none."""
    default = await _default_policy(connection, tenant_id)
    return replace(BUILT_IN_POLICY, is_default=default.id == BUILT_IN_POLICY.id)


def _newest(tenant_id: Any) -> Any:
    """Select the tenant's policies in their newest versions."""
    return _versions(tenant_id, merge_policy_versions.c.version == merge_policies.c.newest_version)


def _versions(tenant_id: Any, which: Any) -> Any:
    joined = select(merge_policies, merge_policy_versions).join(merge_policy_versions)
    return joined.where(merge_policies.c.tenant_id == tenant_id, which)


def _told(policy: MergePolicy) -> Mapping[str, Any]:
    """Return what a policy can be filtered by."""
    return {
        "name": policy.name,
        "is_default": policy.is_default,
        "identity_graph": policy.graph,
        "attribute_merge.type": policy.attribute_merge,
    }
