"""Calls about merge policies."""

from collections.abc import Sequence

from profile_export.client.calls import PAGE, Calls
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
    ) -> MergePolicy:
        """Make a merge policy; called twice, it makes two.

        Args:
            name: For people; need not be unique.
            graph: Which identities are one person.
            order: Ids of the source datasets that take part, strongest first. Empty: the record ingested later wins.
            is_default: Whether jobs that name no policy use it from now on.
        """
        request = pb.CreateMergePolicyRequest(
            name=name, attribute_merge=_rule(order), identity_graph=graph, is_default=is_default
        )
        return (await self._call(self._profiles.CreateMergePolicy, request)).merge_policy

    async def get_policy(self, policy_id: str, version: int | None = None) -> MergePolicy:
        """Look a merge policy up; None: its latest version."""
        request = pb.GetMergePolicyRequest(merge_policy_id=policy_id, version=version)
        return (await self._call(self._profiles.GetMergePolicy, request)).merge_policy

    async def list_policies(self) -> list[MergePolicy]:
        """List the latest version of every merge policy of the tenant, after the built-in one."""
        request = pb.ListMergePoliciesRequest(page_size=PAGE)
        pages = self._pages(self._profiles.ListMergePolicies, request)
        return [policy async for page in pages for policy in page.merge_policies]

    async def update_policy(
        self,
        policy_id: str,
        *,
        name: str | None = None,
        graph: IdentityGraph.ValueType | None = None,
        order: Sequence[str] | None = None,
        is_default: bool | None = None,
    ) -> MergePolicy:
        """Change what is given and leave the rest; at least one change is required. Jobs keep the version they have.

        Args:
            policy_id: The merge policy.
            name: Its new name. None: unchanged.
            graph: Which identities are one person from now on. None: unchanged.
            order: As in `create_policy`, empty included. None: unchanged.
            is_default: Whether jobs that name no policy use it from now on. None: unchanged.
        """
        request = pb.UpdateMergePolicyRequest(
            merge_policy_id=policy_id,
            name=name,
            attribute_merge=None if order is None else _rule(order),
            identity_graph=graph or IdentityGraph.IDENTITY_GRAPH_UNSPECIFIED,
            is_default=is_default,
        )
        return (await self._call(self._profiles.UpdateMergePolicy, request)).merge_policy

    async def delete_policy(self, policy_id: str) -> None:
        """Hide a merge policy from new requests; jobs that have it finish with it."""
        await self._call(
            self._profiles.DeleteMergePolicy, pb.DeleteMergePolicyRequest(merge_policy_id=policy_id)
        )


def _rule(order: Sequence[str]) -> AttributeMerge:
    kinds = AttributeMergeType
    ranked, timed = (
        kinds.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE,
        kinds.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED,
    )
    return AttributeMerge(type=ranked if order else timed, order=order)
