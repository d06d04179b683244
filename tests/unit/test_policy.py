"""Merge policies: what is built in, and the words they are written with."""

from __future__ import annotations

from profile_export.domain.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, MergePolicy


def test_the_built_in_policy_is_adobes_default() -> None:
    policy = BUILT_IN_POLICY

    assert (policy.id, policy.version) == ("timestampOrdered-none-mp", 1)
    assert (policy.graph, policy.attribute_merge) == (IdentityGraph.NONE, AttributeMerge.TIMESTAMP_ORDERED)
    assert policy.schema_name == "_xdm.context.profile"
    assert policy.create_time is None


def test_a_policy_orders_by_time_and_merges_profiles_unless_it_says_otherwise() -> None:
    policy = MergePolicy("p1", 2, "Household", IdentityGraph.PDG)

    assert policy.attribute_merge is AttributeMerge.TIMESTAMP_ORDERED
    assert policy.schema_name == "_xdm.context.profile"


def test_graphs_and_merges_are_stored_under_adobes_words() -> None:
    words = [*IdentityGraph, *AttributeMerge]

    assert [str(word) for word in words] == ["none", "pdg", "timestampOrdered", "dataSetPrecedence"]
