"""ProfileService: merge policies, and looking single profiles up."""

from __future__ import annotations

from functools import partial

from profile_export.api.convert import profiles as convert
from profile_export.api.convert.lists import Pages, fitting
from profile_export.api.convert.values import given, required
from profile_export.api.interceptors import Context, current_tenant
from profile_export.application.doors import compute
from profile_export.application.policies import PolicyUseCases
from profile_export.application.profiles import ProfileUseCases
from profile_export.domain.errors import UnimplementedError
from profile_export.domain.merging.policy import POLICY_LIST
from profile_export.v1 import profile_service_pb2 as pb
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceServicer


class ProfileService(ProfileServiceServicer):
    """Converts calls about merge policies and single profiles."""

    def __init__(self, policies: PolicyUseCases, profiles: ProfileUseCases, pages: Pages) -> None:
        self._policies, self._profiles, self._pages = policies, profiles, pages

    async def CreateMergePolicy(
        self, request: pb.CreateMergePolicyRequest, context: Context
    ) -> pb.CreateMergePolicyResponse:
        stored = await self._policies.create(current_tenant(), partial(convert.new_policy, request))
        return pb.CreateMergePolicyResponse(merge_policy=convert.merge_policy(stored))

    async def GetMergePolicy(
        self, request: pb.GetMergePolicyRequest, context: Context
    ) -> pb.GetMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        policy = await self._policies.get(current_tenant(), policy_id, given(request, "version"))
        return pb.GetMergePolicyResponse(merge_policy=convert.merge_policy(policy))

    async def ListMergePolicies(
        self, request: pb.ListMergePoliciesRequest, context: Context
    ) -> pb.ListMergePoliciesResponse:
        page = await self._policies.list(current_tenant(), await self._pages.among(POLICY_LIST, request))
        listed, token = fitting(page, convert.merge_policy)
        return pb.ListMergePoliciesResponse(merge_policies=listed, next_page_token=token)

    async def UpdateMergePolicy(
        self, request: pb.UpdateMergePolicyRequest, context: Context
    ) -> pb.UpdateMergePolicyResponse:
        change = convert.policy_change(request)
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        policy = await self._policies.update(current_tenant(), policy_id, change, request.etag)
        return pb.UpdateMergePolicyResponse(merge_policy=convert.merge_policy(policy))

    async def DeleteMergePolicy(
        self, request: pb.DeleteMergePolicyRequest, context: Context
    ) -> pb.DeleteMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        await self._policies.delete(current_tenant(), policy_id, request.etag)
        return pb.DeleteMergePolicyResponse()

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.GetProfileResponse:
        found, policy = await self._profiles.profile(convert.asked(current_tenant(), request))
        return await compute(convert.found_profile, found, policy)

    async def ListProfileEvents(
        self, request: pb.ListProfileEventsRequest, context: Context
    ) -> pb.ListProfileEventsResponse:
        listing, page = convert.event_listing(request), await self._pages.of(request)
        found = await self._profiles.events(convert.asked(current_tenant(), request), listing, page)
        events, token = await compute(fitting, found, convert.event)
        return pb.ListProfileEventsResponse(events=events, next_page_token=token)

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: Context
    ) -> pb.DeleteProfileResponse:
        raise UnimplementedError.of_method("DeleteProfile")
