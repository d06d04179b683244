"""Calls about single profiles."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.client.calls import PAGE, Calls, stamp
from profile_export.v1 import merge_policy_pb2 as policies
from profile_export.v1 import profile_pb2 as profiles
from profile_export.v1 import profile_service_pb2 as pb


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
            start_time=stamp(asked.start_time) if asked.start_time else None,
            end_time=stamp(asked.end_time) if asked.end_time else None,
            page_size=asked.page_size,
            filter=asked.condition,
            order_by="event_time desc" if asked.latest_first else "",
        )
        async for page in self._pages(self._profiles.ListProfileEvents, request):
            for event in page.events:
                yield event


def _policy(policy_id: str, version: int | None) -> policies.MergePolicyRef | None:
    return policies.MergePolicyRef(id=policy_id, version=version) if policy_id else None
