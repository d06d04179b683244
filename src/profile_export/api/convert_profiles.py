"""Profiles and their events as messages, and what is asked of them. Pure."""

from __future__ import annotations

from typing import TypeAlias

from profile_export.api.convert import instant, required, timestamp
from profile_export.api.values import row
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.event_listing import EventListing, FoundEvent
from profile_export.domain.identity import Identity
from profile_export.domain.lookup import FoundProfile
from profile_export.domain.policy import MergePolicy
from profile_export.v1 import merge_policy_pb2, profile_pb2
from profile_export.v1 import profile_service_pb2 as pb

Request: TypeAlias = pb.GetProfileRequest | pb.ListProfileEventsRequest


def identity(request: Request) -> Identity:
    """Read whom a request asks for.

    Raises:
        InvalidArgumentError: The identity, or a part of it, is missing.
    """
    if not request.HasField("identity"):
        raise InvalidArgumentError.of_field("identity", "is required.", "FIELD_REQUIRED")
    return Identity(
        required(request.identity.namespace, "identity.namespace"),
        required(request.identity.id, "identity.id"),
    )


def policy_ref(request: Request) -> tuple[str, int | None]:
    """Read id and version of a merge policy; an empty id where none is named, None for the latest version.

    Raises:
        InvalidArgumentError: The reference has no id.
    """
    if not request.HasField("merge_policy"):
        return "", None
    named = request.merge_policy
    return required(named.id, "merge_policy.id"), named.version if named.HasField("version") else None


def event_listing(request: pb.ListProfileEventsRequest) -> EventListing:
    """Read which events are asked for.

    Raises:
        InvalidArgumentError: A time, the filter or the order is wrong.
    """
    return EventListing.of(
        instant(request, "start_time"), instant(request, "end_time"), request.filter, request.order_by
    )


def profile(found: FoundProfile, policy: MergePolicy) -> profile_pb2.Profile:
    """Write a profile and the policy that it was merged under."""
    return profile_pb2.Profile(
        values=row(found.values),
        identities=[profile_pb2.Identity(namespace=one.namespace, id=one.id) for one in found.identities],
        dataset_ids=found.dataset_ids,
        merge_policy=merge_policy_pb2.MergePolicyRef(id=policy.id, version=policy.version),
        ingest_time=timestamp(found.ingest_time),
    )


def event(found: FoundEvent) -> profile_pb2.ProfileEvent:
    """Write an experience event."""
    return profile_pb2.ProfileEvent(
        id=found.id,
        event_time=timestamp(found.event_time),
        ingest_time=timestamp(found.ingest_time),
        dataset_id=found.dataset_id,
        values=row(found.values),
    )
