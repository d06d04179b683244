"""Merge policies as messages and back. Pure."""

from __future__ import annotations

from profile_export.api.convert import refuse_unbuilt, required, timestamp
from profile_export.domain.errors import InvalidArgumentError, UnimplementedError
from profile_export.domain.policy import BUILT_IN_POLICY, IdentityGraph, MergePolicy
from profile_export.v1 import merge_policy_pb2, profile_service_pb2

_GRAPHS = {
    merge_policy_pb2.IDENTITY_GRAPH_NONE: IdentityGraph.NONE,
    merge_policy_pb2.IDENTITY_GRAPH_PDG: IdentityGraph.PDG,
}


def new_policy(request: profile_service_pb2.CreateMergePolicyRequest, policy_id: str) -> MergePolicy:
    """Read and check a request to make a merge policy.

    Raises:
        InvalidArgumentError: A field is wrong.
        UnimplementedError: It asks for what is not built yet.
    """
    refuse_unbuilt(request, "is_default")
    merge = request.attribute_merge
    if merge.type == merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE:
        raise UnimplementedError.of_field("attribute_merge.type: dataSetPrecedence")
    if merge.type != merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED:
        raise InvalidArgumentError.of_field("attribute_merge.type", "is required.", "FIELD_REQUIRED")
    if merge.order:
        raise InvalidArgumentError.of_field(
            "attribute_merge.order", "ranks datasets under dataSetPrecedence only.", "ORDER_INVALID"
        )
    if request.identity_graph not in _GRAPHS:
        raise InvalidArgumentError.of_field("identity_graph", "is required.", "FIELD_REQUIRED")
    if request.schema_name not in {"", BUILT_IN_POLICY.schema_name}:
        raise InvalidArgumentError.of_field("schema_name", f"must be '{BUILT_IN_POLICY.schema_name}'.")
    graph = _GRAPHS[request.identity_graph]
    return MergePolicy(id=policy_id, version=1, name=required(request.name, "name"), graph=graph)


def merge_policy(value: MergePolicy) -> merge_policy_pb2.MergePolicy:
    """Write a merge policy."""
    return merge_policy_pb2.MergePolicy(
        id=value.id,
        version=value.version,
        name=value.name,
        schema_name=value.schema_name,
        attribute_merge=merge_policy_pb2.AttributeMerge(
            type=merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
        ),
        identity_graph=next(wire for wire, graph in _GRAPHS.items() if graph is value.graph),
        is_default=value is BUILT_IN_POLICY,
        built_in=value.id == BUILT_IN_POLICY.id,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.create_time),
    )
