"""What a caller asks of an export, and how it is bound to what exists."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, Dataset, DatasetKind, SchemaRef
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.request import (
    BoundRequest,
    EventList,
    ExportRequest,
    bind,
    without_unknown_fields,
)
from profile_export.domain.export.selection import SegmentFilter, SegmentSelection, UnknownPath
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import IDENTITY_MAP_TYPE, TEXT, ObjectType
from tests.builders import at

RECORDS = ObjectType({"identityMap": IDENTITY_MAP_TYPE, "name": TEXT})
EVENTS = ObjectType({"identityMap": IDENTITY_MAP_TYPE, "_id": TEXT})


def dataset(kind: DatasetKind = DatasetKind.UNION) -> Dataset:
    schema = next(schema for schema in BUILT_IN_SCHEMAS.values() if schema.kind is kind)
    return Dataset("d1", "Exports", "", SchemaRef(schema.id), kind, {}, (), (), schema.fields, at(0), at(0))


def bound(request: ExportRequest, destination: Dataset | None = None) -> BoundRequest:
    return bind(request, destination or dataset(), BUILT_IN_POLICY, RECORDS, EVENTS, ["duckdb"])


# --- As sent ---


def test_a_request_needs_nothing_but_a_destination() -> None:
    request = ExportRequest("d1")

    assert (request.fields, request.policy_id, request.policy_version) == ((), "", None)
    assert (request.event_list, request.empty_profiles) == (None, False)


def test_a_request_without_a_destination_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="is required") as refused:
        ExportRequest("")

    assert refused.value.reason == "FIELD_REQUIRED"
    assert refused.value.metadata["field"] == "spec.destination.dataset_id"


@pytest.mark.parametrize("engine", ["", "duckdb"])
def test_the_engine_may_be_left_out_or_be_the_one_there_is(engine: str) -> None:
    assert bound(ExportRequest("d1", engine=engine)).resolved.engine == "duckdb"


@pytest.mark.parametrize("engine", ["spark", "DuckDB", " "])
def test_an_engine_that_this_server_has_not_is_refused(engine: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"has no '{engine}'") as refused:
        bound(ExportRequest("d1", engine=engine))

    assert (refused.value.reason, refused.value.metadata["field"]) == ("ENGINE_UNKNOWN", "spec.engine")


def test_s18_a_window_that_ends_before_it_begins_is_refused() -> None:
    window = EventList(from_ingest_time=at(2), to_ingest_time=at(1))

    with pytest.raises(InvalidArgumentError, match="later than to_ingest_time") as refused:
        ExportRequest("d1", event_list=window)

    assert refused.value.reason == "TIME_WINDOW_INVALID"
    assert refused.value.metadata["field"] == "spec.event_list.filter.from_ingest_time"


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (at(2), None), (None, at(1)), (at(1), at(2)), (at(1), at(1))]
)
def test_s18_a_window_may_be_open_at_either_end_or_be_empty(
    start: datetime | None, end: datetime | None
) -> None:
    window = EventList(from_ingest_time=start, to_ingest_time=end)

    assert ExportRequest("d1", event_list=window).event_list is window


@pytest.mark.parametrize("limit", [timedelta(microseconds=1), timedelta(days=366)])
def test_a_run_time_counts_from_the_creation_of_the_job(limit: timedelta) -> None:
    assert ExportRequest("d1", max_run_time=limit).deadline(at(0)) == at(0) + limit
    assert ExportRequest("d1").deadline(at(0)) is None


@pytest.mark.parametrize("limit", [timedelta(), timedelta(seconds=-1), timedelta(days=366, microseconds=1)])
def test_a_run_time_of_nothing_or_of_more_than_a_year_is_refused(limit: timedelta) -> None:
    with pytest.raises(InvalidArgumentError, match="more than zero and at most 366 days") as refused:
        ExportRequest("d1", max_run_time=limit)

    assert refused.value.metadata["field"] == "spec.max_run_time"


# --- Segments ---

GOLD, VIP = SegmentFilter("gold"), SegmentFilter("vip")


def test_s21_a_request_without_segments_lets_everybody_in() -> None:
    assert ExportRequest("d1").selection is None


def test_s21_a_request_selects_by_its_segments_and_their_qualification_time() -> None:
    request = ExportRequest(
        "d1", segments=(GOLD, VIP), policy_id="p1", qualified_from=at(1), qualified_to=at(1)
    )

    assert request.selection == SegmentSelection((GOLD, VIP), at(1), at(1))


def test_s21_segments_start_later_than_end_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="later than end_time") as refused:
        ExportRequest("d1", segments=(GOLD,), qualified_from=at(2), qualified_to=at(1))

    assert refused.value.reason == "TIME_WINDOW_INVALID"
    assert refused.value.metadata["field"] == "spec.filter.segment_qualification_time.start_time"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"segment_per_batch": True}, "spec.destination.segment_per_batch"),
        ({"qualified_from": at(1)}, "spec.filter.segment_qualification_time"),
        ({"qualified_to": at(1)}, "spec.filter.segment_qualification_time"),
    ],
)
def test_s21_what_is_about_segments_needs_some(wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match="needs segments") as refused:
        ExportRequest("d1", **wanted)

    assert (refused.value.reason, refused.value.metadata["field"]) == ("SEGMENTS_REQUIRED", field)
    assert ExportRequest("d1", segments=(GOLD,), **wanted).segments == (GOLD,)


def test_several_segments_need_a_policy() -> None:
    with pytest.raises(InvalidArgumentError, match="several segments") as refused:
        ExportRequest("d1", segments=(GOLD, VIP))

    assert (refused.value.reason, refused.value.metadata["field"]) == (
        "MERGE_POLICY_REQUIRED",
        "spec.merge_policy",
    )
    assert ExportRequest("d1", segments=(GOLD,)).policy_id == ""


# --- Without unknown fields ---


def test_fields_that_are_known_stay_and_the_others_are_told_apart() -> None:
    request = ExportRequest("d1", ("name", "nmae"), event_list=EventList(("_idd", "_id")))

    reduced, unknown = without_unknown_fields(request, RECORDS, EVENTS)

    assert reduced == ExportRequest("d1", ("name",), event_list=EventList(("_id",)))
    assert unknown == [UnknownPath("nmae", RECORDS), UnknownPath("_idd", EVENTS)]


def test_where_no_field_is_known_identities_are_kept_and_the_ids_of_events() -> None:
    request = ExportRequest("d1", ("nmae",), event_list=EventList(("_idd",), at(1)))

    reduced, _ = without_unknown_fields(request, RECORDS, EVENTS)

    assert reduced == ExportRequest("d1", ("identityMap",), event_list=EventList(("_id",), at(1)))


@pytest.mark.parametrize("event_list", [None, EventList()])
def test_a_request_of_every_field_stays_as_it_is(event_list: EventList | None) -> None:
    request = ExportRequest("d1", event_list=event_list)

    assert without_unknown_fields(request, RECORDS, EVENTS) == (request, [])


def test_a_path_that_is_wrong_in_another_way_is_refused_all_the_same() -> None:
    with pytest.raises(InvalidArgumentError, match="event_list") as refused:
        without_unknown_fields(ExportRequest("d1", ("nmae", "timeSeriesEvents")), RECORDS, EVENTS)

    assert refused.value.metadata["field"] == "spec.fields[1]"


# --- Bound ---


def test_a_bound_request_keeps_what_was_sent_and_the_policy_it_was_created_with() -> None:
    request = ExportRequest(
        "d1", ("name",), event_list=EventList(("_id",)), schema_name="_xdm.context.profile"
    )

    assert bound(request) == BoundRequest(request, BUILT_IN_POLICY, "duckdb")


def test_a_request_without_an_event_list_is_bound_whatever_events_have() -> None:
    request = ExportRequest("d1", ("name",))

    assert bound(request) == BoundRequest(request, BUILT_IN_POLICY, "duckdb")


@pytest.mark.parametrize("kind", [DatasetKind.RECORD, DatasetKind.EVENT])
def test_a_destination_must_be_a_union_dataset(kind: DatasetKind) -> None:
    with pytest.raises(InvalidArgumentError, match="profile__union") as refused:
        bound(ExportRequest("d1"), dataset(kind))

    assert refused.value.reason == "DESTINATION_NOT_UNION"
    assert refused.value.metadata["field"] == "spec.destination.dataset_id"
    assert f"'d1' follows '{dataset(kind).schema.id}'" in refused.value.message


def test_the_schema_name_must_be_the_destinations_class() -> None:
    with pytest.raises(InvalidArgumentError, match=r"_xdm\.context\.profile") as refused:
        bound(ExportRequest("d1", schema_name="_xdm.context.experienceevent"))

    assert refused.value.reason == "SCHEMA_NAME_MISMATCH"
    assert refused.value.metadata["field"] == "spec.schema_name"


def test_s23_an_unknown_field_is_refused_with_its_place_in_the_request() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        bound(ExportRequest("d1", ("name", "nmae")))

    assert refused.value.metadata == {"field": "spec.fields[1]", "path": "nmae"}


def test_s23_fields_of_events_are_looked_up_among_events() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        bound(ExportRequest("d1", ("name",), event_list=EventList(("_id", "name"))))

    assert refused.value.metadata["field"] == "spec.event_list.fields[1]"
    assert refused.value.reason == "UNKNOWN_FIELD"


def test_a_resolved_request_has_everything_filled_in_that_was_left_to_the_server() -> None:
    resolved = BoundRequest(ExportRequest("d", fields=("name",)), BUILT_IN_POLICY, "duckdb").resolved

    assert (resolved.policy_id, resolved.policy_version) == ("timestampOrdered-none-mp", 1)
    assert (resolved.schema_name, resolved.engine) == ("_xdm.context.profile", "duckdb")
    assert (resolved.destination_id, resolved.fields) == ("d", ("name",))
