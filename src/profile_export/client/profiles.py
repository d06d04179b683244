"""Calls about merge policies and single profiles."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.client.calls import PAGE, Calls, quoted, stamp
from profile_export.v1 import merge_policy_pb2 as policies
from profile_export.v1 import profile_pb2 as profiles
from profile_export.v1 import profile_service_pb2 as pb
from profile_export.v1.merge_policy_pb2 import (
    AttributeMerge,
    AttributeMergeType,
    IdentityGraph,
    MergePolicy,
)


class PolicyCalls(Calls):
    """Calls about merge policies."""

    async def create_policy(
        self,
        name: str,
        graph: IdentityGraph.ValueType,
        *,
        order: Sequence[str] = (),
        is_default: bool = False,
        excluded: Iterable[tuple[str, str]] = (),
    ) -> MergePolicy:
        """Make a merge policy; called twice, it makes two.

        Args:
            name: For people; need not be unique.
            graph: Which identities are one person.
            order: Ids of the source datasets that take part, strongest first. Empty: the record ingested later wins.
            is_default: Whether jobs that name no policy use it from now on.
            excluded: Namespaces and ids of the identities that link nobody.
        """
        request = pb.CreateMergePolicyRequest(
            name=name,
            attribute_merge=_rule(order),
            identity_graph=graph,
            is_default=is_default,
            excluded_identities=_excluded(excluded),
        )
        return (await self._call(self._profiles.CreateMergePolicy, request)).merge_policy

    async def get_policy(self, policy_id: str, version: int | None = None) -> MergePolicy:
        """Look a merge policy up; None: its latest version."""
        request = pb.GetMergePolicyRequest(merge_policy_id=policy_id, version=version)
        return (await self._call(self._profiles.GetMergePolicy, request)).merge_policy

    async def list_policies(self, name: str | None = None) -> list[MergePolicy]:
        """List the latest version of every merge policy, the built-in one included; or those that have a name."""
        request = pb.ListMergePoliciesRequest(filter="" if name is None else f"name = {quoted(name)}")
        return await self._list(self._profiles.ListMergePolicies, request, lambda page: page.merge_policies)

    async def update_policy(
        self,
        policy_id: str,
        *,
        name: str | None = None,
        graph: IdentityGraph.ValueType | None = None,
        order: Sequence[str] | None = None,
        is_default: bool | None = None,
        excluded: Iterable[tuple[str, str]] | None = None,
        etag: str = "",
    ) -> MergePolicy:
        """Change what is given and leave the rest; at least one change is required. Jobs keep the version they have.

        Args:
            policy_id: The merge policy.
            name: Its new name. None: unchanged.
            graph: Which identities are one person from now on. None: unchanged.
            order: As in `create_policy`, empty included. None: unchanged.
            is_default: Whether jobs that name no policy use it from now on. None: unchanged.
            excluded: As in `create_policy`, all of them. None: unchanged.
            etag: That of the policy that the change is meant for. Empty: whatever it is like.
        """
        request = pb.UpdateMergePolicyRequest(
            merge_policy_id=policy_id,
            etag=etag,
            name=name,
            attribute_merge=None if order is None else _rule(order),
            identity_graph=graph or IdentityGraph.IDENTITY_GRAPH_UNSPECIFIED,
            is_default=is_default,
            excluded_identities=(
                None if excluded is None else policies.ExcludedIdentities(identities=_excluded(excluded))
            ),
        )
        return (await self._call(self._profiles.UpdateMergePolicy, request)).merge_policy

    async def delete_policy(self, policy_id: str) -> None:
        """Hide a merge policy from new requests; jobs that have it finish with it."""
        await self._call(
            self._profiles.DeleteMergePolicy, pb.DeleteMergePolicyRequest(merge_policy_id=policy_id)
        )


def _rule(order: Sequence[str]) -> AttributeMerge:
    ranked = AttributeMergeType.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE
    timed = AttributeMergeType.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
    return AttributeMerge(type=ranked if order else timed, order=order)


def _excluded(identities: Iterable[tuple[str, str]]) -> list[policies.ExcludedIdentity]:
    return [
        policies.ExcludedIdentity(namespace=namespace, id=identity_id)
        for namespace, identity_id in identities
    ]


@dataclass(frozen=True)
class EventQuery:
    """Which experience events of a profile: those whose own time is in [start, end), None for open.

    `condition` is a filter as in the contract, such as `dataset_id = 5f0c…`; `page_size` is how many are asked for at
    once.
    """

    start_time: datetime | None = None
    end_time: datetime | None = None
    condition: str = ""
    latest_first: bool = False
    page_size: int = PAGE


class ProfileCalls(Calls):
    """Calls about single profiles."""

    async def get_profile(
        self,
        namespace: str,
        identity_id: str,
        *,
        fields: Sequence[str] = (),
        policy_id: str = "",
        policy_version: int | None = None,
    ) -> profiles.Profile:
        """Merge the one profile that an identity belongs to. No fields: all. No policy: the default one."""
        request = pb.GetProfileRequest(
            identity=profiles.Identity(namespace=namespace, id=identity_id),
            fields=fields,
            merge_policy=_policy(policy_id, policy_version),
        )
        return (await self._call(self._profiles.GetProfile, request)).profile

    async def explain_profile(
        self,
        namespace: str,
        identity_id: str,
        *,
        fields: Sequence[str] = (),
        policy_id: str = "",
        policy_version: int | None = None,
    ) -> pb.GetProfileResponse:
        """Merge a profile as `get_profile` does, and say of each field where its value comes from."""
        request = pb.GetProfileRequest(
            identity=profiles.Identity(namespace=namespace, id=identity_id),
            fields=fields,
            merge_policy=_policy(policy_id, policy_version),
            explain=True,
        )
        return await self._call(self._profiles.GetProfile, request)

    async def list_profile_events(
        self,
        namespace: str,
        identity_id: str,
        *,
        fields: Sequence[str] = (),
        policy_id: str = "",
        policy_version: int | None = None,
        query: EventQuery | None = None,
    ) -> AsyncGenerator[profiles.ProfileEvent]:
        """List the experience events of the one profile that an identity belongs to, asked for a page at a time.

        No fields: all. No policy: the default one. No query: all events, the oldest first.
        """
        asked = query or EventQuery()
        request = pb.ListProfileEventsRequest(
            identity=profiles.Identity(namespace=namespace, id=identity_id),
            fields=fields,
            merge_policy=_policy(policy_id, policy_version),
            start_time=stamp(asked.start_time),
            end_time=stamp(asked.end_time),
            page_size=asked.page_size,
            filter=asked.condition,
            order_by="event_time desc" if asked.latest_first else "",
        )
        async for page in self._pages(self._profiles.ListProfileEvents, request):
            for event in page.events:
                yield event


def _policy(policy_id: str, version: int | None) -> policies.MergePolicyRef | None:
    return policies.MergePolicyRef(id=policy_id, version=version) if policy_id else None
