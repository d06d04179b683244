"""ProfileService: merge policies, and looking single profiles up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert_policies, convert_profiles
from profile_export.api.convert import required
from profile_export.api.lookups import Asked, Lookups
from profile_export.api.pages import Pages, fitting
from profile_export.api.tenancy import current_tenant
from profile_export.domain.errors import UnimplementedError
from profile_export.processes.computing import compute
from profile_export.store.policies import Policies
from profile_export.v1 import profile_service_pb2 as pb
from profile_export.v1.profile_service_pb2_grpc import ProfileServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ProfileService(ProfileServiceServicer):
    """Serves merge policies from the store, and profiles from what a snapshot of it holds."""

    def __init__(self, policies: Policies, lookups: Lookups, pages: Pages, new_id: Callable[[], str]) -> None:
        self._policies = policies
        self._lookups = lookups
        self._pages = pages
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
        page = await self._policies.list_policies(current_tenant(), await self._pages.of_all(request))
        listed, token = fitting(page, convert_policies.merge_policy)
        return pb.ListMergePoliciesResponse(merge_policies=listed, next_page_token=token)

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
        asked = await self._asked(request)
        found = await self._lookups.profile(asked)
        return await compute(
            lambda: pb.GetProfileResponse(profile=convert_profiles.profile(found, asked.policy))
        )

    async def ListProfileEvents(
        self, request: pb.ListProfileEventsRequest, context: _Context
    ) -> pb.ListProfileEventsResponse:
        listing, page = convert_profiles.event_listing(request), await self._pages.of(request)
        found = await self._lookups.events(await self._asked(request), listing, page)
        events, token = await compute(fitting, found, convert_profiles.event)
        return pb.ListProfileEventsResponse(events=events, next_page_token=token)

    async def _asked(self, request: convert_profiles.Request) -> Asked:
        tenant, identity = current_tenant(), convert_profiles.identity(request)
        policy = await self._policies.find_policy(tenant, *convert_profiles.policy_ref(request))
        return Asked(tenant, identity, policy, request.fields)

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: _Context
    ) -> pb.DeleteProfileResponse:
        raise UnimplementedError.of_method("DeleteProfile")
