"""ProfileService: merge policies, and looking single profiles up."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api.convert import profiles as convert_profiles
from profile_export.api.convert.values import required
from profile_export.api.pages import Pages, fitting
from profile_export.api.tenancy import current_tenant
from profile_export.application.doors import compute
from profile_export.application.profiles import Asked, PolicyUseCases, ProfileUseCases
from profile_export.domain.errors import UnimplementedError
from profile_export.v1 import profile_service_pb2 as pb
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ProfileService(ProfileServiceServicer):
    """Converts calls about merge policies and single profiles."""

    def __init__(self, policies: PolicyUseCases, profiles: ProfileUseCases, pages: Pages) -> None:
        self._policies, self._profiles, self._pages = policies, profiles, pages

    async def CreateMergePolicy(
        self, request: pb.CreateMergePolicyRequest, context: _Context
    ) -> pb.CreateMergePolicyResponse:
        stored = await self._policies.create(current_tenant(), partial(convert_profiles.new_policy, request))
        return pb.CreateMergePolicyResponse(merge_policy=convert_profiles.merge_policy(stored))

    async def GetMergePolicy(
        self, request: pb.GetMergePolicyRequest, context: _Context
    ) -> pb.GetMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        version = request.version if request.HasField("version") else None
        policy = await self._policies.get(current_tenant(), policy_id, version)
        return pb.GetMergePolicyResponse(merge_policy=convert_profiles.merge_policy(policy))

    async def ListMergePolicies(
        self, request: pb.ListMergePoliciesRequest, context: _Context
    ) -> pb.ListMergePoliciesResponse:
        page = await self._policies.list(current_tenant(), await self._pages.of_all(request))
        listed, token = fitting(page, convert_profiles.merge_policy)
        return pb.ListMergePoliciesResponse(merge_policies=listed, next_page_token=token)

    async def UpdateMergePolicy(
        self, request: pb.UpdateMergePolicyRequest, context: _Context
    ) -> pb.UpdateMergePolicyResponse:
        change = convert_profiles.policy_change(request)
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        policy = await self._policies.update(current_tenant(), policy_id, change)
        return pb.UpdateMergePolicyResponse(merge_policy=convert_profiles.merge_policy(policy))

    async def DeleteMergePolicy(
        self, request: pb.DeleteMergePolicyRequest, context: _Context
    ) -> pb.DeleteMergePolicyResponse:
        policy_id = required(request.merge_policy_id, "merge_policy_id")
        await self._policies.delete(current_tenant(), policy_id)
        return pb.DeleteMergePolicyResponse()

    async def GetProfile(self, request: pb.GetProfileRequest, context: _Context) -> pb.GetProfileResponse:
        found, policy = await self._profiles.profile(_asked(request))
        return await compute(lambda: pb.GetProfileResponse(profile=convert_profiles.profile(found, policy)))

    async def ListProfileEvents(
        self, request: pb.ListProfileEventsRequest, context: _Context
    ) -> pb.ListProfileEventsResponse:
        listing, page = convert_profiles.event_listing(request), await self._pages.of(request)
        found = await self._profiles.events(_asked(request), listing, page)
        events, token = await compute(fitting, found, convert_profiles.event)
        return pb.ListProfileEventsResponse(events=events, next_page_token=token)

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: _Context
    ) -> pb.DeleteProfileResponse:
        raise UnimplementedError.of_method("DeleteProfile")


def _asked(request: convert_profiles.Request) -> Asked:
    identity = convert_profiles.identity(request)
    return Asked(current_tenant(), identity, *convert_profiles.policy_ref(request), request.fields)
