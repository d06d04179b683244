"""Merge policies, profiles, their events, and the requests for them as messages and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TypeVar

from profile_export.api.convert.values import (
    given,
    instant,
    plain,
    refuse_no_change,
    required,
    row,
    timestamp,
)
from profile_export.application.profiles import Asked
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.lookup import EventListing, FoundEvent, FoundProfile
from profile_export.domain.merging.explain import Explanation, FieldSource
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.policy import (
    BUILT_IN_POLICY,
    AttributeMerge,
    IdentityGraph,
    MergePolicy,
    PolicyChange,
    each_once,
)
from profile_export.domain.schemas.types import dotted_path
from profile_export.v1 import merge_policy_pb2, profile_pb2
from profile_export.v1 import profile_service_pb2 as pb

_MOST_SHOWN = 200
"""Characters of a value that is explained."""
_Wire = TypeVar("_Wire", bound=int)
_Value = TypeVar("_Value")

_GRAPHS = {
    merge_policy_pb2.IdentityGraph.Value(f"IDENTITY_GRAPH_{graph.name}"): graph for graph in IdentityGraph
}
_MERGES = {
    merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED: AttributeMerge.TIMESTAMP_ORDERED,
    merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE: AttributeMerge.DATASET_PRECEDENCE,
}
WIRE_GRAPHS = {graph: wire for wire, graph in _GRAPHS.items()}
WIRE_MERGES = {merge: wire for wire, merge in _MERGES.items()}


def new_policy(request: pb.CreateMergePolicyRequest, policy_id: str) -> MergePolicy:
    """Read and check a request to make a merge policy; whether its order can be is for the store to say.

    Raises:
        InvalidArgumentError: A field is wrong.
    """
    if request.schema_name not in {"", BUILT_IN_POLICY.schema_name}:
        raise InvalidArgumentError.of_field("schema_name", f"must be '{BUILT_IN_POLICY.schema_name}'.")
    return MergePolicy(
        id=policy_id,
        version=1,
        name=required(request.name, "name"),
        graph=_known(_GRAPHS, request.identity_graph, "identity_graph"),
        attribute_merge=_known(_MERGES, request.attribute_merge.type, "attribute_merge.type"),
        order=tuple(request.attribute_merge.order),
        is_default=request.is_default,
        excluded_identities=_excluded(request.excluded_identities, "excluded_identities"),
    )


def policy_change(request: pb.UpdateMergePolicyRequest) -> PolicyChange:
    """Read and check a request to change a merge policy; whether its order can be is for the store to say.

    Raises:
        InvalidArgumentError: A field is wrong, or nothing is to change.
    """
    merge = request.attribute_merge
    change = PolicyChange(
        name=required(request.name, "name") if request.HasField("name") else None,
        graph=_known(_GRAPHS, request.identity_graph, "identity_graph") if request.identity_graph else None,
        attribute_merge=(
            _known(_MERGES, merge.type, "attribute_merge.type")
            if request.HasField("attribute_merge")
            else None
        ),
        order=tuple(merge.order),
        is_default=given(request, "is_default"),
        excluded_identities=(
            _excluded(request.excluded_identities.identities, "excluded_identities.identities")
            if request.HasField("excluded_identities")
            else None
        ),
    )
    refuse_no_change(change)
    return change


def merge_policy(value: MergePolicy) -> merge_policy_pb2.MergePolicy:
    """Write a merge policy."""
    return merge_policy_pb2.MergePolicy(
        id=value.id,
        version=value.version,
        name=value.name,
        schema_name=value.schema_name,
        attribute_merge=merge_policy_pb2.AttributeMerge(
            type=WIRE_MERGES[value.attribute_merge], order=value.order
        ),
        identity_graph=WIRE_GRAPHS[value.graph],
        is_default=value.is_default,
        built_in=value.id == BUILT_IN_POLICY.id,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        etag=value.etag,
        excluded_identities=[
            merge_policy_pb2.ExcludedIdentity(namespace=one.namespace, id=one.id)
            for one in value.excluded_identities
        ],
    )


def _excluded(identities: Iterable[merge_policy_pb2.ExcludedIdentity], field: str) -> tuple[Identity, ...]:
    """Read which identities link nobody.

    Raises:
        InvalidArgumentError: One has no namespace or no id.
    """
    return each_once(
        Identity(
            required(one.namespace, f"{field}[{place}].namespace"), required(one.id, f"{field}[{place}].id")
        )
        for place, one in enumerate(identities)
    )


def _known(values: Mapping[_Wire, _Value], wire: _Wire, field: str) -> _Value:
    """Read a member of an enum that has to be there.

    Raises:
        InvalidArgumentError: It is not said, or a number that the contract does not have.
    """
    if not wire:
        raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
    if wire not in values:
        raise InvalidArgumentError.of_field(field, f"must not be {wire}: the contract has no such value.")
    return values[wire]


def asked(tenant: Tenant, request: pb.GetProfileRequest | pb.ListProfileEventsRequest) -> Asked:
    """Read whom a request asks for, and under which merge policy: an empty id where none is named.

    Raises:
        InvalidArgumentError: The identity, a part of it, or the id of a policy is missing.
    """
    if not request.HasField("identity"):
        raise InvalidArgumentError.of_field("identity", "is required.", "FIELD_REQUIRED")
    identity, policy = request.identity, request.merge_policy
    return Asked(
        tenant,
        Identity(required(identity.namespace, "identity.namespace"), required(identity.id, "identity.id")),
        required(policy.id, "merge_policy.id") if request.HasField("merge_policy") else "",
        given(policy, "version"),
        request.fields,
        isinstance(request, pb.GetProfileRequest) and request.explain,
    )


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
        profile_id=found.id,
        values=row(found.values),
        identities=[profile_pb2.Identity(namespace=one.namespace, id=one.id) for one in found.identities],
        dataset_ids=found.dataset_ids,
        merge_policy=merge_policy_pb2.MergePolicyRef(id=policy.id, version=policy.version),
        ingest_time=timestamp(found.ingest_time),
    )


def found_profile(found: FoundProfile, policy: MergePolicy) -> pb.GetProfileResponse:
    """Write a profile, and where its values come from if that was asked for."""
    told = found.explanation or Explanation(())
    return pb.GetProfileResponse(
        profile=profile(found, policy),
        explanations=[
            profile_pb2.FieldExplanation(
                path=dotted_path(one.path),
                won=_source(one.won),
                lost=[_source(source) for source in one.lost],
                lost_count=one.lost_count,
            )
            for one in told.fields
        ],
        unexplained_fields=told.more,
    )


def _source(value: FieldSource) -> profile_pb2.FieldSource:
    return profile_pb2.FieldSource(
        dataset_id=value.dataset_id,
        batch_id=value.batch_id,
        ingest_time=timestamp(value.ingest_time),
        value=json.dumps(plain(value.value), ensure_ascii=False)[:_MOST_SHOWN],
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
