"""The notes of a job: what went as asked and may still be unexpected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from profile_export.domain.export.notes import notes_before, notes_of
from profile_export.domain.export.plan import (
    ExportCounts,
    ExportPlan,
    IdentityFindings,
    LinkingIdentity,
    PinnedFile,
)
from profile_export.domain.export.selection import SegmentFilter, SegmentSelection
from profile_export.domain.merging.identity import Identity, identity_key
from profile_export.domain.merging.policy import IdentityGraph
from tests.builders import events, plan_of, records, row

NONE, PDG = IdentityGraph.NONE, IdentityGraph.PDG
CRM = records("crm", {}, row("crm", "CRM:1"))
SHOP = records("shop", {}, row("shop", "Email:a"))
WEB = events("web", {}, row("web", "CRM:1", {"_id": "1", "timestamp": 0}))


def plan_over(*parts: Any, graph: IdentityGraph = NONE, rows: int = 1, **values: Any) -> ExportPlan:
    """A plan whose sources have so many rows each, without files."""
    plan = plan_of(parts, graph=graph)
    sized = [
        replace(one, parts=tuple(replace(part, files=(PinnedFile("f", rows, 1),)) for part in one.parts))
        for one in plan.sources
    ]
    return replace(plan, sources=tuple(sized), **values)


def test_s21_a_segment_that_nobody_has_an_entry_for_is_worth_a_note() -> None:
    segments = SegmentSelection((SegmentFilter("gold"), SegmentFilter("vip"), SegmentFilter("old", "AAM")))
    plan = plan_over(CRM, notes=("Of the plan.",), segments=segments)

    notes = notes_of(plan, IdentityFindings(), ExportCounts(segment_members={0: 7}))

    assert notes == (
        "Of the plan.",
        "No profile has an entry for the segment 'vip' of the namespace 'ups'.",
        "No profile has an entry for the segment 'old' of the namespace 'AAM'.",
    )


def test_an_export_in_which_nothing_is_unexpected_has_the_notes_of_its_plan() -> None:
    plan = plan_over(CRM, WEB, notes=("Of the plan.",))
    counts = ExportCounts(events_read=3, events_with_record=1, profiles_merged=2)

    assert notes_of(plan, IdentityFindings(), counts) == ("Of the plan.",)
    assert notes_before(plan, IdentityFindings()) == ("Of the plan.",)


@pytest.mark.parametrize(
    ("graph", "findings", "counts", "note"),
    [
        (NONE, {"shared": 1}, {}, "though 1 identity occurs with several primary ones"),
        (
            NONE,
            {"shared": 2},
            {},
            "is none, which links nobody, though 2 identities occur with several primary ones",
        ),
        (
            PDG,
            {},
            {},
            "The graph pdg has linked nobody, and no profile has records of two datasets: no row has two",
        ),
        (
            NONE,
            {"spellings": {"email": 2}},
            {},
            "2 ids of the namespace 'Email' differ from another in case or blanks",
        ),
        (
            NONE,
            {},
            {"events_read": 7},
            (
                "None of the 7 experience events that were read belongs to a profile with a record: no record that "
                "takes part has the primary identity of one, and with the graph none other identities do not count."
            ),
        ),
        (
            PDG,
            {"linked": 9},
            {"events_read": 7},
            "belongs to a profile with a record: no record that takes part is linked with one.",
        ),
        (
            PDG,
            {"linked": 9},
            {"too_many_identities": 1},
            "1 profile was left out for more than 50 identities.",
        ),
        (
            PDG,
            {"linked": 9},
            {"too_many_identities": 3},
            "3 profiles were left out for more than 50 identities.",
        ),
        (
            PDG,
            {"linked": 99},
            {"links_most": LinkingIdentity("Email", "NULL", 21)},
            (
                "The identity 'NULL' of the namespace 'Email' links most: it occurs with 21 others. If it is nobody's "
                "own, leave it out where it comes from, or add it to the policy's excluded_identities "
                "(`profile-export policies update policy --exclude Email:NULL`)."
            ),
        ),
        (
            PDG,
            {"linked": 99},
            {"links_most": LinkingIdentity("Loyalty card", "it's", 21)},
            """(`profile-export policies update policy --exclude 'Loyalty card:it'"'"'s'`).""",
        ),
        (
            PDG,
            {"linked": 99},
            {"links_most": LinkingIdentity("Email", "x" * 101, 21)},
            (
                f"The identity '{'x' * 100}…' of the namespace 'Email' links most: it occurs with 21 others. If it is "
                "nobody's own, leave it out where it comes from, or add it to the policy's excluded_identities."
            ),
        ),
    ],
)
def test_what_explains_rows_that_nobody_expects_is_said_in_one_sentence(
    graph: IdentityGraph, findings: Mapping[str, Any], counts: Mapping[str, Any], note: str
) -> None:
    plan = plan_over(CRM, SHOP, graph=graph, namespaces={"email": "Email"})

    [said] = notes_of(plan, IdentityFindings(**findings), ExportCounts(**counts))

    assert note in said


def test_a_graph_that_links_nobody_is_told_with_what_its_policy_excludes() -> None:
    plan = plan_over(CRM, SHOP, graph=PDG, excluded=(identity_key(Identity("Email", "NULL")),))

    [said] = notes_of(plan, IdentityFindings(), ExportCounts())

    assert "no row has two identities that the policy does not exclude. Link them" in said


def test_events_of_nobody_are_told_with_what_the_policy_excludes() -> None:
    plan = plan_over(CRM, WEB, graph=PDG, excluded=(identity_key(Identity("Email", "NULL")),))

    [said] = notes_of(plan, IdentityFindings(linked=1), ExportCounts(events_read=1))

    assert said.endswith("is linked with one by identities that the policy does not exclude.")


@pytest.mark.parametrize(
    "plan", [plan_of([]), plan_over(CRM, WEB, rows=0), plan_over(CRM, graph=PDG, rows=0)]
)
def test_an_export_without_a_row_to_read_says_so(plan: ExportPlan) -> None:
    [said] = notes_before(plan, IdentityFindings())

    assert said.startswith("No source dataset has a row, so there is nobody to export: upload records, or")
    assert notes_of(plan, IdentityFindings(), ExportCounts()) == (said,)


@pytest.mark.parametrize(
    ("empty_profiles", "counts", "apart"),
    [
        (False, {"fragments_read": 3, "profiles_exported": 2, "not_newer": 1}, True),
        (False, {"fragments_read": 4, "profiles_exported": 2, "not_newer": 1}, False),
        (False, {"fragments_read": 2, "not_in_segments": 1}, False),
        (False, {"fragments_read": 5, "fragments_left_out": 3, "profiles_exported": 2}, True),
        (
            False,
            {"fragments_read": 1, "profiles_exported": 1, "events_read": 2, "events_with_record": 2},
            False,
        ),
        (True, {"fragments_read": 2, "profiles_exported": 3}, True),
        (
            True,
            {"fragments_read": 2, "profiles_exported": 2, "not_in_segments": 1},
            False,
        ),  # it cannot be known
    ],
)
def test_a_graph_has_brought_nobody_together_only_where_no_profile_has_rows_of_two_datasets(
    *, empty_profiles: bool, counts: Mapping[str, Any], apart: bool
) -> None:
    plan = plan_over(CRM, SHOP, WEB, graph=PDG, empty_profiles=empty_profiles)

    notes = notes_of(plan, IdentityFindings(), ExportCounts(**counts))

    assert any("The graph pdg has linked nobody" in note for note in notes) is apart


def test_what_could_not_be_otherwise_is_not_told() -> None:
    shared, few = IdentityFindings(shared=3), LinkingIdentity("Email", "a", 20)

    # A graph links what is shared; one dataset alone, or records that were merged, leave nothing to be linked.
    assert notes_before(plan_over(CRM, SHOP, graph=PDG), shared) == ()
    assert notes_of(plan_over(CRM, graph=PDG), IdentityFindings(), ExportCounts()) == ()
    assert (
        notes_of(plan_over(CRM, SHOP, graph=PDG), IdentityFindings(), ExportCounts(profiles_merged=1)) == ()
    )
    # An identity that links no more than others do is named where a profile was left out.
    linked = IdentityFindings(linked=9)
    assert notes_of(plan_over(CRM, SHOP, graph=PDG), linked, ExportCounts(links_most=few)) == ()
    left_out = ExportCounts(links_most=few, too_many_identities=1)
    assert "'a' of the namespace 'Email'" in notes_of(plan_over(CRM, graph=PDG), linked, left_out)[1]


def test_of_ranges_the_identity_that_links_most_in_any_is_the_one_of_all() -> None:
    ranges = [
        ExportCounts(links_most=LinkingIdentity("Email", "b", 30)),
        ExportCounts(),
        ExportCounts(links_most=LinkingIdentity("Email", "a", 30)),
        ExportCounts(links_most=LinkingIdentity("CRM", "c", 29)),
    ]

    assert ExportCounts.total(ranges).links_most == LinkingIdentity("Email", "a", 30)
