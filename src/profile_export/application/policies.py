"""Merge policies, kept and changed version by version."""

from __future__ import annotations

from collections.abc import Callable

from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.merging.policy import MergePolicy, PolicyChange
from profile_export.store.catalog.policies import Policies


class PolicyUseCases:
    """What callers do with merge policies. Raises what the store's methods of the same names raise."""

    def __init__(self, policies: Policies, new_id: Callable[[], str]) -> None:
        self._policies, self._new_id = policies, new_id

    async def create(self, tenant: Tenant, make: Callable[[str], MergePolicy]) -> MergePolicy:
        """Keep the policy that is made for a new id."""
        return await self._policies.create_policy(tenant, make(self._new_id()))

    async def get(self, tenant: Tenant, policy_id: str, version: int | None) -> MergePolicy:
        """Return a version of a policy; None: the newest."""
        return await self._policies.find_policy(tenant, policy_id, version)

    async def list(self, tenant: Tenant, request: PageRequest) -> Page[MergePolicy]:
        """Return a page of the newest versions of the tenant's policies."""
        return await self._policies.list_policies(tenant, request)

    async def update(self, tenant: Tenant, policy_id: str, change: PolicyChange, etag: str) -> MergePolicy:
        """Add a version to a policy."""
        return await self._policies.update_policy(tenant, policy_id, change, etag)

    async def delete(self, tenant: Tenant, policy_id: str, etag: str) -> None:
        """Delete a policy; jobs keep the version that they were made with."""
        await self._policies.delete_policy(tenant, policy_id, etag)
