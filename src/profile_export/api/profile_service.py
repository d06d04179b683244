"""ProfileService: merge policies; profiles are in the contract, not built yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert_policies
from profile_export.api.convert import page_request
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

    async def ListMergePolicies(
        self, request: pb.ListMergePoliciesRequest, context: _Context
    ) -> pb.ListMergePoliciesResponse:
        page = await self._policies.list_policies(current_tenant(), page_request(request))
        listed = [convert_policies.merge_policy(policy) for policy in page.items]
        return pb.ListMergePoliciesResponse(merge_policies=listed, next_page_token=page.next_token)

    async def GetMergePolicy(
        self, request: pb.GetMergePolicyRequest, context: _Context
    ) -> pb.GetMergePolicyResponse:
        raise UnimplementedError.of_method("GetMergePolicy")

    async def UpdateMergePolicy(
        self, request: pb.UpdateMergePolicyRequest, context: _Context
    ) -> pb.UpdateMergePolicyResponse:
        raise UnimplementedError.of_method("UpdateMergePolicy")

    async def DeleteMergePolicy(
        self, request: pb.DeleteMergePolicyRequest, context: _Context
    ) -> pb.DeleteMergePolicyResponse:
        raise UnimplementedError.of_method("DeleteMergePolicy")

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
