"""From a bound request and a snapshot to the plan of a job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.plan import EventSelection, ExportPlan, PinnedBatch, PinnedFile, Source, SourcePart
from profile_export.domain.planning import Snapshot, plan_export
from profile_export.domain.policy import BUILT_IN_POLICY, IdentityGraph
from profile_export.domain.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.schema import (
    IDENTITY_MAP_TYPE,
    IDENTITY_MEMBERS,
    TEXT,
    TIMESTAMP,
    IdentitySelection,
    ObjectType,
)
from tests.builders import at

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
    plan = plan_export(bound("name", "identities.id", empty_profiles=True), snapshot(), "batch-1")

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
    )


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
