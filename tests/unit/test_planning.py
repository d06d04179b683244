"""From a bound request and a snapshot to the plan of a job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.plan import (
    EventSelection,
    ExportPlan,
    PinnedBatch,
    PinnedFile,
    Snapshot,
    Source,
    SourcePart,
    plan_export,
    takes_long,
)
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.export.selection import IdentitySelection, SegmentFilter, SegmentSelection
from profile_export.domain.merging.identity import Identity, identity_key
from profile_export.domain.merging.policy import BUILT_IN_POLICY, AttributeMerge, IdentityGraph, MergePolicy
from profile_export.domain.schemas.types import (
    IDENTITY_MAP_TYPE,
    IDENTITY_MEMBERS,
    TEXT,
    TIMESTAMP,
    ObjectType,
)
from tests.builders import at, who

PDG_POLICY = replace(BUILT_IN_POLICY, id="household", graph=IdentityGraph.PDG)
RECORDS = ObjectType({"identityMap": IDENTITY_MAP_TYPE, "name": TEXT, "city": TEXT})
EVENTS = ObjectType({"identityMap": IDENTITY_MAP_TYPE, "_id": TEXT, "timestamp": TIMESTAMP})


def bound(*fields: str, event_list: EventList | None = None, empty_profiles: bool = False) -> BoundRequest:
    return BoundRequest(
        ExportRequest("d1", fields, event_list=event_list, empty_profiles=empty_profiles), PDG_POLICY
    )


def snapshot() -> Snapshot:
    """A record dataset with one batch in one file."""
    part = SourcePart(RECORDS, (PinnedFile("crm/1.parquet", 10, 1000),))
    return Snapshot(
        datasets={"crm": DatasetKind.RECORD},
        sources=(Source("crm", DatasetKind.RECORD, (part,)),),
        batches=(PinnedBatch("b1", 1, at(0), "crm"),),
        unions={DatasetKind.RECORD: RECORDS, DatasetKind.EVENT: EVENTS},
        namespaces={"email": "Email"},
        segment_namespaces={"UPS": "ups"},
        spellings={"identityMap": {"email": "Email"}, "segmentMembership": {"ups": "ups"}},
        graph_folder="graphs/1",
    )


def test_a_plan_is_made_of_the_request_the_policy_and_the_snapshot() -> None:
    plan = plan_export(bound("name", "identities.id", empty_profiles=True), snapshot(), "batch-1", job_id=7)

    assert plan == ExportPlan(
        batch_id="batch-1",
        graph=IdentityGraph.PDG,
        sources=snapshot().sources,
        batches=snapshot().batches,
        namespaces={"email": "Email"},
        segment_namespaces={"UPS": "ups"},
        record_fields=RECORDS,
        event_fields=EVENTS,
        fields=ObjectType({"name": TEXT}),
        identities=IdentitySelection(("id",)),
        events=None,
        empty_profiles=True,
        graph_folder="graphs/1",
        origin={
            "job-id": "7",
            "policy-id": "household",
            "policy-version": "1",
            "identity-graph": "pdg",
            "attribute-merge": "timestampOrdered",
        },
    )


def test_s4_a_plan_has_the_keys_of_what_its_policy_excludes_and_takes_no_kept_graph() -> None:
    excluded = (Identity("Phone", "0"), Identity("eMail", "NULL"))
    policy = replace(PDG_POLICY, excluded_identities=excluded)

    plan = plan_export(replace(bound("name"), policy=policy), snapshot(), "batch-1")

    assert plan.excluded == tuple(
        sorted(identity_key(who(one).identity) for one in ("Phone:0", "Email:NULL"))
    )
    assert plan.graph_folder == ""


def test_without_fields_a_plan_keeps_everything_and_no_event() -> None:
    plan = plan_export(bound(), snapshot(), "batch-1")

    assert plan.fields == ObjectType({"name": TEXT, "city": TEXT})
    assert plan.identities == IdentitySelection(IDENTITY_MEMBERS)
    assert plan.events is None
    assert not plan.empty_profiles


def test_an_event_list_attaches_events_with_its_fields_and_its_window() -> None:
    wanted = EventList(("_id", "identityMap"), at(1), at(2))

    plan = plan_export(bound("name", event_list=wanted), snapshot(), "batch-1")

    assert plan.events == EventSelection(
        ObjectType({"_id": TEXT}), IdentitySelection(IDENTITY_MEMBERS), at(1), at(2)
    )
    assert plan.fields == ObjectType({"name": TEXT})


def test_an_empty_event_list_attaches_whole_events_of_any_time() -> None:
    plan = plan_export(bound(event_list=EventList()), snapshot(), "batch-1")

    everything = ObjectType({"_id": TEXT, "timestamp": TIMESTAMP})
    assert plan.events == EventSelection(everything, IdentitySelection(IDENTITY_MEMBERS), None, None)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (bound("name", "gone"), "spec.fields[1]"),
        (bound("name", event_list=EventList(("name",))), "spec.event_list.fields[0]"),
    ],
    ids=["of records", "of events"],
)
def test_a_field_that_is_not_known_any_more_is_refused(request_: BoundRequest, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        plan_export(request_, snapshot(), "batch-1")

    assert (refused.value.reason, refused.value.metadata["field"]) == ("UNKNOWN_FIELD", field)


def test_s2_segments_are_looked_for_in_the_registered_spelling() -> None:
    segments = (SegmentFilter("gold", "UPS"), SegmentFilter("gold", "AAM"))
    wanted = ExportRequest("d1", segments=segments, policy_id="household", qualified_from=at(1))

    plan = plan_export(BoundRequest(wanted, PDG_POLICY), snapshot(), "", ("b1", "b2"))

    registered = (SegmentFilter("gold", "ups"), SegmentFilter("gold", "AAM"))
    assert plan.segments == SegmentSelection(registered, at(1), None)
    assert plan.batch_ids == ("b1", "b2")


def test_s20_a_plan_knows_what_is_new() -> None:
    wanted = ExportRequest("d1", from_ingest_time=at(3))

    assert plan_export(BoundRequest(wanted, PDG_POLICY), snapshot(), "batch-1").newer_than == at(3)


# --- Precedence ---


def planned(*order: str, merge: AttributeMerge = AttributeMerge.DATASET_PRECEDENCE) -> ExportPlan:
    """The plan of two record and two event datasets, of which `web` has no batch."""
    kinds = {
        "crm": DatasetKind.RECORD,
        "shop": DatasetKind.RECORD,
        "app": DatasetKind.EVENT,
        "web": DatasetKind.EVENT,
    }
    filled = ("crm", "shop", "app")
    found = replace(
        snapshot(),
        datasets=kinds,
        sources=tuple(Source(name, kinds[name], ()) for name in filled),
        batches=tuple(PinnedBatch(f"b-{name}", 1, at(0), name) for name in filled),
    )
    policy = MergePolicy("p1", 1, "", IdentityGraph.NONE, merge, order=order)
    return plan_export(BoundRequest(ExportRequest("d1"), policy), found, "batch-1")


def taking_part(plan: ExportPlan) -> set[str]:
    return {source.dataset_id for source in plan.sources if source.takes_part}


def strengths(plan: ExportPlan) -> dict[str, int]:
    return {batch.dataset_id: batch.strength for batch in plan.batches}


def test_s10_by_time_all_sources_take_part_and_none_is_stronger() -> None:
    plan = planned(merge=AttributeMerge.TIMESTAMP_ORDERED)

    assert taking_part(plan) == {"crm", "shop", "app"}
    assert strengths(plan) == {"crm": 0, "shop": 0, "app": 0}
    assert plan.notes == ()


def test_s10_the_dataset_named_earlier_is_stronger_and_records_that_are_not_named_take_no_part() -> None:
    both, alone = planned("shop", "crm"), planned("crm")

    assert strengths(both)["shop"] > strengths(both)["crm"] > 0
    assert taking_part(both) == {"crm", "shop", "app"}
    assert taking_part(alone) == {"crm", "app"}


@pytest.mark.parametrize(
    ("order", "taking"),
    [(("crm", "app"), {"crm", "app"}), (("web", "crm"), {"crm"}), (("app",), {"app"})],
    ids=["named", "another is named, without a batch", "events only"],
)
def test_s10_events_are_restricted_only_if_events_are_named_and_never_ranked(
    order: tuple[str, ...], taking: set[str]
) -> None:
    plan = planned(*order)

    assert taking_part(plan) == taking
    assert strengths(plan)["app"] == 0


def test_s10_what_is_no_source_any_more_is_ignored_with_a_note() -> None:
    plan = planned("gone", "shop", "crm")

    assert strengths(plan) == strengths(planned("shop", "crm"))
    (note,) = plan.notes
    assert note.startswith("The dataset 'gone', which the merge policy 'p1' names, is no source any more")


def test_s10_where_all_that_is_named_has_gone_no_record_takes_part() -> None:
    assert taking_part(planned("gone")) == {"app"}


def test_a_plan_takes_long_for_many_paths_or_many_fields_alone() -> None:
    wide = ObjectType({f"f{number}": TEXT for number in range(1_000)})

    assert not takes_long(snapshot(), ["name"])
    assert takes_long(snapshot(), ["name"] * 1_000)
    assert takes_long(replace(snapshot(), unions={DatasetKind.RECORD: wide}), ["name"])
