"""ProfileService: merge policies; profiles are in the contract, not built yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert_policies
from profile_export.api.convert import page_request, required
from profile_export.api.tenancy import current_tenant
from profile_export.domain.errors import UnimplementedError
from profile_export.store.policies import Policies
from profile_export.v1 import profile_service_pb2 as pb
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ProfileService(ProfileServiceServicer):
    """Serves merge policies from the store."""

    def __init__(self, policies: Policies, new_id: Callable[[], str]) -> None:
        self._policies = policies
        self._new_id = new_id

    async def CreateMergePolicy(
        self, request: pb.CreateMergePolicyRequest, context: _Context
    ) -> pb.CreateMergePolicyResponse:
        policy = convert_policies.new_policy(request, self._new_id())
        stored = await self._policies.create_policy(current_tenant(), policy)
        return pb.CreateMergePolicyResponse(merge_policy=convert_policies.merge_policy(stored))

    async def GetMergePolicy(
        self, request: pb.GetMergePolicyRequest, context: _Context
    ) -> pb.GetMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        version = request.version if request.HasField("version") else None
        policy = await self._policies.find_policy(current_tenant(), policy_id, version)
        return pb.GetMergePolicyResponse(merge_policy=convert_policies.merge_policy(policy))

    async def ListMergePolicies(
        self, request: pb.ListMergePoliciesRequest, context: _Context
    ) -> pb.ListMergePoliciesResponse:
        page = await self._policies.list_policies(current_tenant(), page_request(request))
        listed = [convert_policies.merge_policy(policy) for policy in page.items]
        return pb.ListMergePoliciesResponse(merge_policies=listed, next_page_token=page.next_token)

    async def UpdateMergePolicy(
        self, request: pb.UpdateMergePolicyRequest, context: _Context
    ) -> pb.UpdateMergePolicyResponse:
        change = convert_policies.policy_change(request)
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        policy = await self._policies.update_policy(current_tenant(), policy_id, change)
        return pb.UpdateMergePolicyResponse(merge_policy=convert_policies.merge_policy(policy))

    async def DeleteMergePolicy(
        self, request: pb.DeleteMergePolicyRequest, context: _Context
    ) -> pb.DeleteMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        await self._policies.delete_policy(current_tenant(), policy_id)
        return pb.DeleteMergePolicyResponse()

    async def GetProfile(self, request: pb.GetProfileRequest, context: _Context) -> pb.GetProfileResponse:
        raise UnimplementedError.of_method("GetProfile")

    async def ListProfileEvents(
        self, request: pb.ListProfileEventsRequest, context: _Context
    ) -> pb.ListProfileEventsResponse:
        raise UnimplementedError.of_method("ListProfileEvents")

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: _Context
    ) -> pb.DeleteProfileResponse:
        raise UnimplementedError.of_method("DeleteProfile")
