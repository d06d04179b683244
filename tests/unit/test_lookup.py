"""What is told of one person, whatever an export would make of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.errors import (
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from profile_export.domain.export.lookup import (
    EventListing,
    FoundProfile,
    events_of,
    plan_events,
    plan_profile,
    profile_of,
)
from profile_export.domain.export.plan import Snapshot
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.lists import MAX_PAGE_SIZE, cut_page
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.policy import BUILT_IN_POLICY, IdentityGraph
from profile_export.domain.schemas.types import EMPTY, IDENTITY_MEMBERS, LONG, TEXT, DecimalType
from tests.builders import Part, at, events, plan_of, records, row, rows_of
from tests.pages import page_of

NONE, PDG = IdentityGraph.NONE, IdentityGraph.PDG


def who(text: str) -> Identity:
    namespace, _, identity = text.partition(":")
    return Identity(namespace, identity)


def look_up(parts: Sequence[Part], text: str, **options: Any) -> FoundProfile:
    return profile_of(plan_of(parts, **options), rows_of(parts), who(text))


def crm(*rows: Any, **options: Any) -> Part:
    return records("crm", {"name": TEXT, "city": TEXT}, *rows, **options)


def visits(*rows: Any, dataset_id: str = "visits") -> Part:
    return events(dataset_id, {"page": TEXT}, *rows)


def visit(event_id: str, time: datetime, primary: str = "Email:ann", **place: Any) -> Any:
    value = {"_id": event_id, "timestamp": time, "page": f"page {event_id}"}
    return row(place.pop("dataset_id", "visits"), primary, value, **place)


ANN = crm(
    row("crm", "CRM:1", {"name": "Ann", "city": "Oslo"}, links=["Email:ann"], batch="b1"),
    row("crm", "CRM:2", {"name": "Bob"}, batch="b1", number=1),
    row("crm", "CRM:1", {"name": "Anna"}, links=["Phone:7"], batch="b3"),
)


# --- Profiles ---


@pytest.mark.parametrize("identity", ["CRM:1", "crm:1", "Email:ann", "EMAIL:ann", "Phone:7"])
def test_a_profile_is_found_by_any_of_its_identities_whatever_the_case_of_the_namespace(
    identity: str,
) -> None:
    shop = records("shop", {"city": TEXT}, row("shop", "email:ann", {"city": "Bergen"}, batch="b2"))

    found = look_up([ANN, shop], identity, graph=PDG)

    assert found.values["name"] == "Anna"
    assert found.values["city"] == "Bergen"
    assert found.identities == (who("CRM:1"), who("Email:ann"), who("Phone:7"))
    assert found.dataset_ids == ("crm", "shop")
    assert found.ingest_time == at(3)


@pytest.mark.parametrize(
    ("identity", "graph"),
    [
        ("CRM:9", PDG),
        ("CRM:Ann", PDG),
        ("Email:1", PDG),
        ("CRM:9", NONE),
        ("Phone:7", NONE),
        ("Email:ann", NONE),
    ],
)
def test_s5_nothing_is_told_of_an_identity_that_is_nobodys(identity: str, graph: IdentityGraph) -> None:
    with pytest.raises(NotFoundError) as refused:
        look_up([ANN], identity, graph=graph)

    assert refused.value.reason == "PROFILE_NOT_FOUND"
    assert refused.value.metadata == {"id": identity}
    assert ("primary" in refused.value.message) == (graph is NONE)


@pytest.mark.parametrize("graph", IdentityGraph)
def test_s4_an_excluded_identity_is_found_only_where_it_is_the_primary_one(graph: IdentityGraph) -> None:
    shop = records("shop", {"city": TEXT}, row("shop", "Phone:7", {"city": "Bergen"}, links=["CRM:1"]))
    excluded = [who("phone:7")]

    anna = look_up([ANN, shop], "CRM:1", graph=graph, excluded=excluded)
    phone = look_up([ANN, shop], "PHONE:7", graph=graph, excluded=excluded)
    with pytest.raises(NotFoundError) as refused:
        look_up([ANN], "Phone:7", graph=graph, excluded=excluded)

    assert (anna.values["name"], "Phone" in anna.values["identityMap"]) == ("Anna", False)
    assert (phone.values["city"], phone.identities) == ("Bergen", (who("Phone:7"),))
    assert ("it excludes this identity" in refused.value.message) == (graph is PDG)
    assert "primary" in refused.value.message


def test_fields_choose_what_is_told_and_may_leave_nothing() -> None:
    assert look_up([ANN], "CRM:1", fields=["name"]).values == {"name": "Anna"}
    assert look_up([ANN], "CRM:2", fields=["city"]).values == {}


def test_a_profile_that_has_events_only_is_found_with_its_identities() -> None:
    happened = visits(visit("e1", at(0), batch="b1"), visit("e2", at(0), batch="b2"))

    found = look_up([happened], "Email:ann")

    assert found.values == {"identityMap": {"Email": [{"id": "ann", "primary": True}]}}
    assert (found.dataset_ids, found.ingest_time) == (("visits",), at(2))


def test_events_do_not_make_a_profile_newer_that_has_records() -> None:
    found = look_up([ANN, visits(visit("e1", at(0), "CRM:1", batch="b9"))], "CRM:1")

    assert (found.dataset_ids, found.ingest_time) == (("crm", "visits"), at(2))


def test_s10_who_is_in_no_dataset_that_takes_part_is_not_found_though_linked() -> None:
    shop = records("shop", {"city": TEXT}, row("shop", "Email:ann", {"city": "Bergen"}, batch="b4"))
    parts = [ANN, shop]

    for identity, graph in (("CRM:2", PDG), ("CRM:2", NONE), ("CRM:1", NONE)):
        with pytest.raises(NotFoundError):
            look_up(parts, identity, graph=graph, order=["shop"])
    found = look_up(parts, "CRM:1", graph=PDG, order=["shop"], fields=["name", "city"])

    assert found.values == {"city": "Bergen"}
    assert found.dataset_ids == ("shop",)


@pytest.mark.parametrize("identities", [50, 51])
def test_s7_who_has_too_many_identities_is_refused_as_an_export_leaves_them_out(identities: int) -> None:
    part = crm(row("crm", "CRM:1", links=[f"Email:{number}" for number in range(identities - 1)]))

    if identities == 50:
        assert len(look_up([part], "Email:3", graph=PDG).identities) == 50
        return
    with pytest.raises(FailedPreconditionError) as refused:
        look_up([part], "Email:3", graph=PDG)

    assert refused.value.reason == "TOO_MANY_IDENTITIES"
    assert refused.value.metadata == {"id": "Email:3", "identities": "51"}


LOYALTY = records(
    "loyalty",
    {"name": TEXT, "city": TEXT},
    row("loyalty", "Loyalty:5625458", {"name": "Daniel", "city": "New York City"}, links=["CRM:112ca06e"]),
)
PHONE_BOOK = records(
    "crm",
    {"name": TEXT, "city": TEXT, "phone": TEXT},
    row("crm", "CRM:112ca06e", {"name": "Danny", "city": "Portland", "phone": "+1 503"}, batch="b2"),
)


@pytest.mark.parametrize(
    ("graph", "order", "identity", "told"),
    [
        (PDG, None, "CRM:112ca06e", ("Danny", "Portland", "+1 503")),
        (PDG, ["loyalty", "crm"], "CRM:112ca06e", ("Daniel", "New York City", "+1 503")),
        (NONE, ["loyalty"], "CRM:112ca06e", None),
        (NONE, ["loyalty"], "Loyalty:5625458", ("Daniel", "New York City", None)),
    ],
)
def test_adobes_published_example_is_told_as_published(
    graph: IdentityGraph, order: list[str] | None, identity: str, told: tuple[str | None, ...] | None
) -> None:
    visit_of_it = visits(visit("e", at(0), "Loyalty:5625458", links=["CRM:112ca06e"], batch="b3"))
    parts, options = [LOYALTY, PHONE_BOOK, visit_of_it], {"graph": graph, "order": order}

    if told is None:
        with pytest.raises(NotFoundError):
            look_up(parts, identity, **options)
        return
    found = look_up(parts, identity, **options)

    assert tuple(found.values.get(field) for field in ("name", "city", "phone")) == told
    assert "visits" in found.dataset_ids


def test_a_number_has_the_digits_that_its_column_has_in_an_export() -> None:
    whole = records("shop", {"spent": LONG}, row("shop", "CRM:1", {"spent": 7}))
    cents = records("web", {"spent": DecimalType(8, 2)}, row("web", "CRM:2", batch="b2"))

    assert str(look_up([whole, cents], "CRM:1").values["spent"]) == "7.00"


# --- Plans ---


def snapshot() -> Snapshot:
    plan = plan_of([ANN, visits(visit("e1", at(0)))])
    return Snapshot(
        datasets={"crm": DatasetKind.RECORD, "visits": DatasetKind.EVENT},
        sources=plan.sources,
        batches=plan.batches,
        unions={DatasetKind.RECORD: plan.record_fields, DatasetKind.EVENT: plan.event_fields},
        namespaces={},
        segment_namespaces={},
        spellings={"identityMap": {}, "segmentMembership": {}},
    )


def test_a_profile_is_planned_without_events_and_events_without_a_profile() -> None:
    policy = replace(BUILT_IN_POLICY, graph=PDG)

    profile, listed = plan_profile(policy, snapshot(), ["name"]), plan_events(policy, snapshot(), ["page"])

    assert (list(profile.fields.fields), profile.identities, profile.events) == (
        ["name"],
        IdentitySelection(),
        None,
    )
    assert (listed.fields, listed.identities) == (EMPTY, IdentitySelection())
    assert listed.events is not None
    assert list(listed.events.fields.fields) == ["page"]
    assert profile.graph is listed.graph is PDG
    assert plan_profile(policy, snapshot(), []).identities == IdentitySelection(IDENTITY_MEMBERS)


def test_an_unknown_path_is_told_by_its_place_in_the_request() -> None:
    for plan, path in ((plan_profile, "nam"), (plan_events, "pag")):
        with pytest.raises(InvalidArgumentError) as refused:
            plan(BUILT_IN_POLICY, snapshot(), ["identityMap", path])

        assert refused.value.reason == "UNKNOWN_FIELD"
        assert refused.value.metadata == {"field": "fields[1]", "path": path}


# --- Events ---


def listed(
    parts: Sequence[Part],
    *,
    size: int = 0,
    start: Any = None,
    end: Any = None,
    condition: str = "",
    order: str = "",
) -> list[str]:
    """The ids of Ann's events, read page by page."""
    plan, listing = plan_of(parts, event_fields=[]), EventListing.of(start, end, condition, order)
    found: list[str] = []
    token = ""
    while True:
        page = events_of(plan, rows_of(parts), who("Email:ann"), listing, page_of(size, token))
        assert len(page.items) <= (size or MAX_PAGE_SIZE)
        found += [event.id for event in page.items]
        token = page.next_token
        if not token:
            return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 0])
def test_s17_events_come_in_their_order_or_the_reverse_whatever_the_size_of_a_page(size: int) -> None:
    first = visits(
        visit("b", at(1), batch="b1"), visit("a", at(1), batch="b2"), visit("c", at(0), batch="b2", number=1)
    )
    other = visits(
        visit("a", at(1), dataset_id="shop", batch="b3"),
        visit("é", at(1), dataset_id="shop", batch="b3", number=1),
        dataset_id="shop",
    )

    assert listed([first, other], size=size) == ["c", "a", "a", "b", "é"]
    assert listed([first, other], size=size, order="event_time desc") == ["é", "b", "a", "a", "c"]
    assert listed([first, other], size=size, order="event_time", condition="dataset_id = shop") == ["a", "é"]


def test_s16_an_event_sent_again_is_one_the_latest_ingested_also_for_the_window() -> None:
    part = visits(visit("e", at(0), batch="b1"), visit("e", at(9), batch="b2"))

    assert listed([part]) == ["e"]
    assert listed([part], end=at(5)) == []
    assert listed([part], condition='ingest_time <= "2024-05-01T12:01:00Z"') == []


def test_a_window_has_its_start_and_not_its_end() -> None:
    part = visits(*(visit(str(minute), at(minute), number=minute) for minute in range(4)))

    assert listed([part], start=at(1), end=at(3)) == ["1", "2"]
    assert listed([part], start=at(1)) == ["1", "2", "3"]
    assert listed([part], start=at(2), end=at(2)) == []
    with pytest.raises(InvalidArgumentError, match="later than end_time") as refused:
        listed([part], start=at(2), end=at(1))
    assert refused.value.reason == "TIME_WINDOW_INVALID"


def test_an_event_is_told_with_its_place_and_the_fields_that_are_chosen() -> None:
    part = visits(visit("e", at(0), batch="b1"))
    listing, page = EventListing.of(None, None, "id = e", ""), page_of()

    for paths, values in ((["page"], {"page": "page e"}), (["segmentMembership"], {})):
        parts = [
            part,
            events("other", {"segmentMembership": plan_of([ANN]).record_fields.fields["segmentMembership"]}),
        ]
        (event,) = events_of(
            plan_of(parts, event_fields=paths), rows_of(parts), who("email:ann"), listing, page
        ).items

        assert (event.id, event.event_time, event.ingest_time, event.dataset_id) == (
            "e",
            at(0),
            at(1),
            "visits",
        )
        assert event.values == values


def test_a_person_without_events_has_an_empty_page_and_nobody_is_not_found() -> None:
    plan, rows = plan_of([ANN], event_fields=[]), rows_of([ANN])
    listing, page = EventListing.of(None, None, "", ""), page_of()

    assert events_of(plan, rows, who("CRM:1"), listing, page).items == ()
    with pytest.raises(NotFoundError):
        events_of(plan, rows, who("CRM:9"), listing, page)


@pytest.mark.parametrize(
    "cursor",
    [
        "7",
        "[]",
        "nothing",
        '["2024-05-01T12:00:00", "e", "d", [1, 2]]',
        '["2024-05-01T12:00:00Z", "e", "d", 1]',
        "[1, 2, 3, 4]",
    ],
)
def test_a_token_that_was_made_up_is_refused(cursor: str) -> None:
    token = cut_page([cursor, "more"], page_of(1), str).next_token
    part = visits(visit("e", at(0)))

    with pytest.raises(DomainError) as refused:
        events_of(
            plan_of([part], event_fields=[]),
            rows_of([part]),
            who("Email:ann"),
            EventListing.of(None, None, "", ""),
            page_of(1, token),
        )

    assert refused.value.reason == "PAGE_TOKEN_INVALID"
