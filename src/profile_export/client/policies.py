"""Calls about merge policies."""

from profile_export.client.calls import PAGE, Calls
from profile_export.v1 import merge_policy_pb2 as policies
from profile_export.v1 import profile_service_pb2 as pb


class PolicyCalls(Calls):
    """Calls about merge policies."""

    async def create_policy(self, name: str, graph: policies.IdentityGraph.ValueType) -> policies.MergePolicy:
        """Make a merge policy in which the record ingested later wins."""
        rule = policies.AttributeMerge(
            type=policies.AttributeMergeType.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
        )
        request = pb.CreateMergePolicyRequest(name=name, attribute_merge=rule, identity_graph=graph)
        return (await self._call(self._profiles.CreateMergePolicy, request)).merge_policy

    async def list_policies(self) -> list[policies.MergePolicy]:
        """List the merge policies of the tenant and the built-in one."""
        request = pb.ListMergePoliciesRequest(page_size=PAGE)
        pages = self._pages(self._profiles.ListMergePolicies, request)
        return [policy async for page in pages for policy in page.merge_policies]
