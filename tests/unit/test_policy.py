"""Merge policies: what is built in, the words they are written with, how they change, and what may be ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profile_export.domain.errors import FailedPreconditionError, InvalidArgumentError
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.policy import (
    BUILT_IN_POLICY,
    AttributeMerge,
    IdentityGraph,
    MergePolicy,
    PolicyChange,
    check_changeable,
    check_order,
    each_once,
)

TIME, RANKED = AttributeMerge.TIMESTAMP_ORDERED, AttributeMerge.DATASET_PRECEDENCE
PLACEHOLDER, UNKNOWN = Identity("Email", "NULL"), Identity("Phone", "unknown")
HOUSEHOLD = MergePolicy(
    "p1",
    2,
    "Household",
    IdentityGraph.PDG,
    RANKED,
    order=("crm", "shop"),
    excluded_identities=(PLACEHOLDER,),
)
IS_SOURCE = {"crm": True, "shop": True, "union": False}


def test_the_built_in_policy_is_adobes_default() -> None:
    policy = BUILT_IN_POLICY

    assert (policy.id, policy.version) == ("timestampOrdered-none-mp", 1)
    assert (policy.graph, policy.attribute_merge) == (IdentityGraph.NONE, AttributeMerge.TIMESTAMP_ORDERED)
    assert policy.schema_name == "_xdm.context.profile"
    assert policy.create_time is None


def test_a_policy_orders_by_time_and_merges_profiles_unless_it_says_otherwise() -> None:
    policy = MergePolicy("p1", 2, "Household", IdentityGraph.PDG)

    assert (policy.attribute_merge, policy.order, policy.is_default) == (TIME, (), False)
    assert policy.schema_name == "_xdm.context.profile"


def test_graphs_and_merges_are_stored_under_adobes_words() -> None:
    words = [*IdentityGraph, *AttributeMerge]

    assert [str(word) for word in words] == ["none", "pdg", "timestampOrdered", "dataSetPrecedence"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (PolicyChange(name="Home"), {"name": "Home"}),
        (PolicyChange(graph=IdentityGraph.NONE), {"graph": IdentityGraph.NONE}),
        (PolicyChange(attribute_merge=TIME), {"attribute_merge": TIME, "order": ()}),
        (PolicyChange(attribute_merge=RANKED, order=("shop", "crm")), {"order": ("shop", "crm")}),
        (PolicyChange(excluded_identities=()), {"excluded_identities": ()}),
        (PolicyChange(excluded_identities=(UNKNOWN,)), {"excluded_identities": (UNKNOWN,)}),
    ],
)
def test_a_change_of_name_or_rules_makes_the_next_version(
    change: PolicyChange, changed: dict[str, object]
) -> None:
    following = change.next_version(HOUSEHOLD)

    assert following == replace(HOUSEHOLD, version=3, **changed)  # type: ignore[arg-type]  # as parametrized


@pytest.mark.parametrize(
    "change",
    [
        PolicyChange(),
        PolicyChange(is_default=True),
        PolicyChange("Household", IdentityGraph.PDG, RANKED, ("crm", "shop"), is_default=False),
        PolicyChange(excluded_identities=(PLACEHOLDER,)),
    ],
)
def test_a_repetition_and_a_change_of_default_leave_the_version(change: PolicyChange) -> None:
    assert change.next_version(HOUSEHOLD) is HOUSEHOLD


def test_excluded_identities_are_in_order_and_each_is_there_once_in_its_first_spelling() -> None:
    given = [
        ("Phone", "1"),
        ("email", "NULL"),
        ("EMAIL", "NULL"),
        ("email", "null"),
        ("Straße", ""),
        ("STRASSE", ""),
    ]

    assert each_once(Identity(*one) for one in given) == (
        Identity("Phone", "1"),
        Identity("Straße", ""),
        Identity("email", "NULL"),
        Identity("email", "null"),
    )


def test_what_is_built_in_is_not_changed() -> None:
    check_changeable("p1")

    with pytest.raises(FailedPreconditionError) as refused:
        check_changeable(BUILT_IN_POLICY.id)

    assert (refused.value.reason, refused.value.metadata) == (
        "MERGE_POLICY_BUILT_IN",
        {"id": BUILT_IN_POLICY.id},
    )


def test_an_order_ranks_sources_and_a_rule_by_time_has_none() -> None:
    check_order(RANKED, ("shop", "crm"), IS_SOURCE)
    check_order(TIME, (), {})


@pytest.mark.parametrize(
    ("merge", "order", "field"),
    [
        (RANKED, (), "attribute_merge.order"),
        (TIME, ("crm",), "attribute_merge.order"),
        (RANKED, ("crm", "union"), "attribute_merge.order[1]"),
        (RANKED, ("crm", "shop", "crm"), "attribute_merge.order[2]"),
    ],
)
def test_an_order_that_cannot_be_is_told_by_its_place(
    merge: AttributeMerge, order: tuple[str, ...], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_order(merge, order, IS_SOURCE)

    assert refused.value.reason == "ORDER_INVALID"
    assert [violation.field for violation in refused.value.violations] == [field]


def test_s10_an_order_that_names_what_is_not_there_is_refused_at_its_place() -> None:
    with pytest.raises(InvalidArgumentError, match="no dataset 'nowhere'") as refused:
        check_order(RANKED, ("crm", "nowhere"), IS_SOURCE)

    assert (refused.value.reason, refused.value.metadata["field"]) == (
        "ORDER_INVALID",
        "attribute_merge.order[1]",
    )
