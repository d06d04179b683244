"""SEMANTICS, sentence by sentence, in the reference that every engine is held to."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.selection import SegmentFilter, SegmentSelection
from profile_export.domain.merging.identity import identity_key
from profile_export.domain.merging.merge import merge_profiles, resolve
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    DOUBLE,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)
from tests.builders import Part, at, events, plan_of, records, row, rows_of, who

PDG = IdentityGraph.PDG
ANN, BEN = "Email:ann@example.com", "Email:ben@example.com"
NAMES: dict[str, FieldType] = {"name": TEXT, "city": TEXT}


def merged(*parts: Part, **options: Any) -> list[dict[str, Any]]:
    return list(merge_profiles(plan_of(parts, **options), rows_of(parts)).profiles)


def counted(*parts: Part, **options: Any) -> ExportCounts:
    return merge_profiles(plan_of(parts, **options), rows_of(parts)).counts


def one(*parts: Part, **options: Any) -> dict[str, Any]:
    (profile,) = merged(*parts, **options)
    return profile


def attributes(fields: Mapping[str, FieldType], strong: Any, weak: Any) -> dict[str, Any]:
    """What remains of two fragments of one profile, without its identity map."""
    profile = one(
        records("crm", fields, row("crm", ANN, weak, batch="b1")),
        records("shop", fields, row("shop", ANN, strong, batch="b2")),
    )
    del profile["identityMap"]
    return profile


# --- Identities ---


def test_s2_namespaces_are_one_without_regard_to_case_and_are_written_as_registered() -> None:
    profile = one(
        records("crm", NAMES, row("crm", "EMAIL:ann", {"name": "Ann"}, batch="b1")),
        records("shop", NAMES, row("shop", "email:ann", {"city": "Ghent"}, batch="b2")),
    )

    assert profile == {
        "name": "Ann",
        "city": "Ghent",
        "identityMap": {"EMAIL": [{"id": "ann", "primary": True}]},
    }


def test_s2_events_have_namespaces_in_the_registered_spelling_too() -> None:
    profile = one(
        records("crm", NAMES, row("crm", "EMAIL:ann", batch="b1")),
        events("web", {}, row("web", "email:ann", {"_id": "1", "timestamp": at(0)}, batch="b2")),
        event_fields=["identityMap"],
    )

    assert profile["timeSeriesEvents"] == [{"identityMap": {"EMAIL": [{"id": "ann", "primary": True}]}}]


def test_s2_segment_namespaces_of_events_are_written_as_registered() -> None:
    segments = MapType(MapType(ObjectType({"status": TEXT})))
    value = {"_id": "1", "timestamp": at(0), "segmentMembership": {"ups": {"s": {"status": "existing"}}}}
    profile = one(
        records("crm", {}, row("crm", ANN, {"segmentMembership": {"UPS": {"t": {"status": "realized"}}}})),
        events("web", {"segmentMembership": segments}, row("web", ANN, value, batch="b2")),
        event_fields=["segmentMembership"],
    )

    assert profile["timeSeriesEvents"] == [{"segmentMembership": {"UPS": {"s": {"status": "existing"}}}}]


def test_s4_the_graph_joins_through_any_chain_of_records_and_events() -> None:
    profile = one(
        records("crm", NAMES, row("crm", ANN, {"name": "Ann"}, links=["CRMID:1"])),
        records("shop", NAMES, row("shop", "Phone:9", {"city": "Ghent"}, number=1)),
        events(
            "web", {}, row("web", "CRMID:1", {"_id": "1", "timestamp": at(0)}, links=["Phone:9"], number=2)
        ),
        graph=PDG,
        fields=["name", "city"],
    )

    assert profile == {"name": "Ann", "city": "Ghent"}


def test_s4_a_replaced_record_still_links_but_its_values_are_gone() -> None:
    profile = one(
        records(
            "crm",
            NAMES,
            row("crm", ANN, {"name": "Ann", "city": "Ghent"}, links=["CRMID:1"], batch="b1"),
            row("crm", ANN, {"name": "Anna"}, batch="b2"),
            row("crm", "CRMID:1", batch="b3"),
        ),
        graph=PDG,
    )

    assert profile["name"] == "Anna"
    assert "city" not in profile
    assert profile["identityMap"] == {
        "CRMID": [{"id": "1", "primary": True}],
        "Email": [{"id": "ann@example.com", "primary": True}],
    }


@pytest.mark.parametrize("graph", IdentityGraph)
def test_s4_an_excluded_identity_links_nobody_and_its_own_rows_are_a_profile_apart(
    graph: IdentityGraph,
) -> None:
    parts = [
        records(
            "crm",
            NAMES,
            row("crm", ANN, {"name": "Ann"}, links=["Phone:none", "CRMID:1"]),
            row("crm", BEN, {"name": "Ben"}, links=["PHONE:none"], number=1),
            row("crm", "phone:none", {"name": "Nobody"}, links=[BEN], number=2),
            row("crm", "Phone:NONE", {"name": "Cem"}, links=["CRMID:3"], number=3),
        ),
        records("shop", NAMES, row("shop", "Phone:none", {"city": "Ghent"}, links=[ANN], number=4)),
        events(
            "web",
            {},
            row("web", BEN, {"_id": "1", "timestamp": at(0)}, links=["Phone:none"], number=5),
            row("web", "Phone:none", {"_id": "2", "timestamp": at(0)}, links=[BEN], number=6),
        ),
        # What takes no part links nobody by what is excluded, either (S10).
        records("others", {}, row("others", ANN, links=["Phone:none"], number=7)),
    ]

    profiles = merged(
        *parts,
        graph=graph,
        order=["crm", "shop"],
        event_fields=["identityMap"],
        excluded=[who("pHONE:none").identity],
    )

    def listed(*identities: str, primary: str) -> dict[str, Any]:
        marks: dict[str, Any] = {"primary": True}
        stated = [(who(one).identity, marks if one == primary else {}) for one in identities]
        return {identity.namespace: [{"id": identity.id} | marked] for identity, marked in stated}

    ben, phone = listed(BEN, primary=BEN), listed("Phone:none", primary="Phone:none")
    expected = [
        {"name": "Ann", "identityMap": listed(ANN, "CRMID:1", primary=ANN)},
        {"name": "Ben", "identityMap": ben, "timeSeriesEvents": [{"identityMap": ben}]},
        {
            "name": "Nobody",
            "city": "Ghent",
            "identityMap": phone,
            "timeSeriesEvents": [{"identityMap": phone}],
        },
        {"name": "Cem", "identityMap": listed("Phone:NONE", "CRMID:3", primary="Phone:NONE")},
    ]
    assert sorted(profiles, key=str) == sorted(expected, key=str)


def test_s5_without_a_graph_every_primary_identity_is_a_profile_of_its_own() -> None:
    profiles = merged(
        records(
            "crm",
            NAMES,
            row("crm", ANN, {"name": "Ann"}, links=[BEN]),
            row("crm", BEN, {"name": "Ben"}, links=["CRMID:1"], number=1),
        ),
        fields=["name"],
    )

    assert sorted(profile["name"] for profile in profiles) == ["Ann", "Ben"]


def test_s6_the_identity_map_of_the_graph_is_the_whole_component_sorted_by_id() -> None:
    profile = one(
        records("crm", {}, row("crm", "CRMID:b", links=["CRMID:a", "CRMID:é", "CRMID:Z", "A:1"])), graph=PDG
    )

    assert profile["identityMap"] == {
        "A": [{"id": "1"}],
        "CRMID": [{"id": "Z"}, {"id": "a"}, {"id": "b", "primary": True}, {"id": "é"}],
    }


def test_s6_without_a_graph_the_identity_map_is_that_of_current_records_and_events() -> None:
    profile = one(
        records(
            "crm",
            {},
            row("crm", ANN, links=["CRMID:old"], batch="b1"),
            row("crm", ANN, links=["CRMID:new"], batch="b2"),
        ),
        events(
            "web",
            {},
            row("web", ANN, {"_id": "1", "timestamp": at(0)}, links=["ECID:7"], batch="b2", number=1),
        ),
    )

    assert profile["identityMap"] == {
        "CRMID": [{"id": "new"}],
        "ECID": [{"id": "7"}],
        "Email": [{"id": "ann@example.com", "primary": True}],
    }


def test_s6_the_state_comes_from_the_strongest_fragment_that_has_one_else_from_the_latest_event() -> None:
    profile = one(
        records("crm", {}, row("crm", who("A:1", "loggedOut"), links=[who("B:2", "loggedOut")], batch="b1")),
        records("shop", {}, row("shop", who("A:1", "authenticated"), links=["B:2"], batch="b2")),
        events(
            "web",
            {},
            row(
                "web",
                who("A:1", "late"),
                {"_id": "1", "timestamp": at(9)},
                links=[who("C:3", "old")],
                batch="b3",
            ),
            row("web", "A:1", {"_id": "2", "timestamp": at(1)}, links=[who("C:3", "new")], batch="b4"),
        ),
        fields=["identities.authenticatedState"],
    )

    assert profile["identityMap"] == {
        "A": [{"authenticatedState": "authenticated"}],
        "B": [{"authenticatedState": "loggedOut"}],
        "C": [{"authenticatedState": "new"}],
    }


@pytest.mark.parametrize(("links", "left_out"), [(49, 0), (50, 1)])
def test_s7_more_than_fifty_identities_are_left_out_and_counted(links: int, left_out: int) -> None:
    counts = counted(
        records("crm", {}, row("crm", ANN, links=[f"CRMID:{number}" for number in range(links)])),
        records("shop", {}, row("shop", ANN, number=1)),
    )

    assert (counts.profiles_read, counts.profiles_exported) == (1, 1 - left_out)
    assert counts.too_many_identities == left_out
    assert counts.identities_left_out == 51 * left_out
    assert counts.fragments_left_out == 2 * left_out


# --- Fragments and order ---


def test_s8_the_place_is_the_batch_number_then_the_row_number() -> None:
    later_batch = row("crm", ANN, {"name": "later batch"}, batch="b2", number=0)
    later_row = row("crm", ANN, {"name": "later row"}, batch="b1", number=9)

    assert one(records("crm", NAMES, later_batch, later_row), fields=["name"]) == {"name": "later batch"}
    assert one(
        records("crm", NAMES, later_row, row("crm", ANN, {"name": "earlier row"}, number=8)), fields=["name"]
    ) == {"name": "later row"}


def test_s9_within_a_dataset_the_newest_record_replaces_the_older_one_whole() -> None:
    parts = records(
        "crm",
        NAMES,
        row("crm", ANN, {"name": "Ann", "city": "Ghent"}, batch="b1"),
        row("crm", ANN, {"name": "Anna"}, batch="b2"),
    )

    assert one(parts, fields=["name", "city"]) == {"name": "Anna"}
    assert counted(parts).fragments_read == 1


def test_s9_in_a_dataset_that_upserts_a_record_patches_the_older_ones() -> None:
    fields = NAMES | {"person": ObjectType({"age": LONG, "title": TEXT})}
    parts = records(
        "crm",
        fields,
        row("crm", ANN, {"name": "Ann", "city": "Ghent", "person": {"age": 7, "title": "Ms"}}, batch="b1"),
        row("crm", ANN, {"name": "Anna", "person": {"age": None}}, batch="b2"),
        row("crm", ANN, {"person": {"age": 8}}, batch="b2", number=1),
        upserts=True,
    )

    profile = one(parts, fields=["name", "city", "person"])

    assert profile == {"name": "Anna", "city": "Ghent", "person": {"age": 8, "title": "Ms"}}
    counts = counted(parts)
    assert (counts.fragments_read, counts.profiles_merged) == (1, 0)


def test_s9_an_empty_array_patches_and_maps_are_patched_per_key() -> None:
    fields: dict[str, FieldType] = {"tags": ArrayType(TEXT), "consents": MapType(TEXT)}
    parts = records(
        "crm",
        fields,
        row("crm", ANN, {"tags": ["a"], "consents": {"mail": "y", "call": "y"}}, batch="b1"),
        row("crm", ANN, {"tags": [], "consents": {"mail": "n"}}, batch="b2"),
        upserts=True,
    )

    assert one(parts, fields=["tags", "consents"]) == {"tags": [], "consents": {"mail": "n", "call": "y"}}


def test_s9_segments_are_patched_by_their_qualification_and_among_equals_by_the_newest_record() -> None:
    segments = MapType(MapType(ObjectType({"status": TEXT, "lastQualificationTime": TIMESTAMP})))
    older = {"s": {"status": "realized", "lastQualificationTime": at(2)}, "t": {"status": "realized"}}
    newer = {"s": {"status": "exited", "lastQualificationTime": at(1)}, "t": {"status": "exited"}}
    profile = one(
        records(
            "crm",
            {"segmentMembership": segments},
            row("crm", ANN, {"segmentMembership": {"ups": older}}, batch="b1"),
            row("crm", ANN, {"segmentMembership": {"ups": newer}}, batch="b2"),
            upserts=True,
        ),
        fields=["segmentMembership"],
    )

    assert profile["segmentMembership"] == {"ups": {"s": older["s"], "t": newer["t"]}}


def test_s9_what_is_patched_together_stands_in_the_place_of_its_newest_record() -> None:
    patched = records(
        "crm",
        NAMES,
        row("crm", ANN, {"name": "Ann", "city": "Ghent"}, batch="b1"),
        row("crm", ANN, {"name": "Anna"}, batch="b3"),
        upserts=True,
    )
    between = records("shop", NAMES, row("shop", ANN, {"name": "A.", "city": "Delft"}, batch="b2"))
    later = records("shop", NAMES, row("shop", ANN, {"name": "A.", "city": "Delft"}, batch="b4"))

    assert one(patched, between, fields=["name", "city"]) == {"name": "Anna", "city": "Ghent"}
    assert one(patched, later, fields=["name", "city"]) == {"name": "A.", "city": "Delft"}


def test_s9_identities_of_all_records_that_patch_count_each_with_the_newest_state() -> None:
    profile = one(
        records(
            "crm",
            {},
            row("crm", who("A:1", "old"), links=[who("B:2", "old"), "C:3"], batch="b1"),
            row("crm", who("A:1", "new"), links=["B:2"], batch="b3"),
            upserts=True,
        ),
        records("shop", {}, row("shop", who("A:1", "between"), links=[who("B:2", "between")], batch="b2")),
    )

    assert profile["identityMap"] == {
        "A": [{"id": "1", "authenticatedState": "new", "primary": True}],
        "B": [{"id": "2", "authenticatedState": "old"}],
        "C": [{"id": "3"}],
    }


def test_s10_the_fragment_of_the_later_place_is_the_stronger() -> None:
    assert attributes(NAMES, strong={"name": "Anna"}, weak={"name": "Ann"}) == {"name": "Anna"}


BOTH = (
    records("crm", NAMES, row("crm", ANN, {"name": "Ann", "city": "Ghent"}, batch="b1")),
    records("shop", NAMES, row("shop", ANN, {"name": "Anna"}, batch="b2")),
)
FIELDS = ["name", "city"]


def test_s10_the_dataset_named_earlier_in_order_is_the_stronger_whatever_its_place() -> None:
    assert one(*BOTH, fields=FIELDS, order=["crm", "shop"]) == {"name": "Ann", "city": "Ghent"}
    assert one(*BOTH, fields=FIELDS, order=["shop", "crm"]) == {"name": "Anna", "city": "Ghent"}


def test_s10_among_fragments_of_one_dataset_the_later_place_is_the_stronger() -> None:
    crm = records(
        "crm",
        NAMES,
        row("crm", ANN, {"name": "Ann"}, links=["CRMID:1"], batch="b1"),
        row("crm", "CRMID:1", {"name": "Anna"}, batch="b2"),
    )

    assert one(crm, fields=FIELDS, graph=PDG, order=["crm"]) == {"name": "Anna"}


def test_s10_records_of_a_dataset_that_is_not_named_take_no_part() -> None:
    assert one(*BOTH, fields=FIELDS, order=["shop"]) == {"name": "Anna"}
    assert counted(*BOTH, order=["shop"]).fragments_read == 1


@pytest.mark.parametrize(
    ("order", "ids"), [(["crm"], ["1", "2"]), (["crm", "web"], ["2"]), (["app", "crm"], ["1"])]
)
def test_s10_events_all_take_part_unless_an_event_dataset_is_named(order: list[str], ids: list[str]) -> None:
    profile = one(
        *BOTH,
        events("app", {}, row("app", ANN, {"_id": "1", "timestamp": at(1)}, batch="b3")),
        events("web", {}, row("web", ANN, {"_id": "2", "timestamp": at(2)}, batch="b4")),
        event_fields=["_id"],
        order=order,
    )

    assert [found["_id"] for found in profile["timeSeriesEvents"]] == ids


def test_s4_a_dataset_that_takes_no_part_still_says_who_is_one_person() -> None:
    parts = (
        records("crm", NAMES, row("crm", ANN, {"name": "Ann"}, links=[BEN])),
        records("shop", NAMES, row("shop", ANN, {"city": "Ghent"}, batch="b2")),
        records("shop", NAMES, row("shop", BEN, {"name": "Ben"}, batch="b3")),
    )

    profile = one(*parts, graph=PDG, order=["shop"])

    assert (profile["name"], profile["city"]) == ("Ben", "Ghent")
    assert profile["identityMap"]["Email"] == [
        {"id": "ann@example.com", "primary": True},
        {"id": "ben@example.com", "primary": True},
    ]


def test_s6_identities_are_primary_only_by_what_takes_part() -> None:
    parts = (
        records("crm", {}, row("crm", who(ANN, "authenticated"), links=["CRMID:1"])),
        records("shop", {}, row("shop", "CRMID:1", batch="b2")),
    )

    assert one(*parts, graph=PDG, order=["shop"]) == {
        "identityMap": {"CRMID": [{"id": "1", "primary": True}], "Email": [{"id": "ann@example.com"}]}
    }


# --- Merging ---


def test_s12_objects_are_merged_by_leaf() -> None:
    fields = {"person": ObjectType({"name": ObjectType({"first": TEXT, "last": TEXT}), "age": LONG})}

    assert attributes(
        fields,
        strong={"person": {"name": {"first": "Anna"}}},
        weak={"person": {"name": {"first": "Ann", "last": "Day"}, "age": 7}},
    ) == {"person": {"name": {"first": "Anna", "last": "Day"}, "age": 7}}


@pytest.mark.parametrize("nothing", [None, {}, {"inner": None}, {"inner": {}}])
def test_s13_an_object_or_map_without_any_value_never_overrides(nothing: Any) -> None:
    value = {"inner": {"text": "kept"}}
    for fields in (
        {"field": ObjectType({"inner": ObjectType({"text": TEXT})})},
        {"field": MapType(ObjectType({"text": TEXT}))},
    ):
        assert attributes(fields, strong={"field": nothing}, weak={"field": value}) == {"field": value}
        assert attributes(fields, strong={"field": nothing}, weak={}) == {}


def test_s13_an_empty_text_and_an_empty_array_are_values() -> None:
    fields: dict[str, FieldType] = {"text": TEXT, "array": ArrayType(TEXT)}

    assert attributes(fields, strong={"text": "", "array": []}, weak={"text": "weak", "array": ["weak"]}) == {
        "text": "",
        "array": [],
    }


def test_s13_nulls_inside_an_array_stay() -> None:
    fields: dict[str, FieldType] = {
        "texts": ArrayType(TEXT),
        "objects": ArrayType(ObjectType({"text": TEXT})),
    }

    assert attributes(
        fields,
        strong={"texts": [None], "objects": [{}, None, {"text": "a"}, {"text": None}]},
        weak={"texts": ["weak"]},
    ) == {"texts": [None], "objects": [None, None, {"text": "a"}, None]}


def test_s14_arrays_come_whole() -> None:
    fields = {"orders": ArrayType(ObjectType({"sku": TEXT, "price": LONG}))}

    assert attributes(
        fields,
        strong={"orders": [{"sku": "a"}]},
        weak={"orders": [{"sku": "b", "price": 2}, {"sku": "c", "price": 3}]},
    ) == {"orders": [{"sku": "a"}]}


def test_s14_maps_merge_by_key_and_what_a_key_holds_comes_whole() -> None:
    fields = {"scores": MapType(ObjectType({"value": LONG, "unit": TEXT}))}

    assert attributes(
        fields,
        strong={"scores": {"a": {"value": 1}, "b": {"value": None}}},
        weak={"scores": {"a": {"value": 9, "unit": "kg"}, "b": {"value": 2}, "c": {"unit": "m"}}},
    ) == {"scores": {"a": {"value": 1}, "b": {"value": 2}, "c": {"unit": "m"}}}


def test_numbers_take_the_type_that_holds_those_of_every_source() -> None:
    profile = one(
        records("crm", {"a": LONG, "b": LONG}, row("crm", ANN, {"a": 1, "b": 2})),
        records("shop", {"a": DOUBLE, "b": DecimalType(5, 2)}),
        fields=["a", "b"],
    )

    assert (type(profile["a"]), type(profile["b"])) == (float, Decimal)
    assert profile == {"a": 1.0, "b": Decimal(2)}


# --- Segments ---


def membership(**segments: dict[str, Any]) -> dict[str, Any]:
    return {"segmentMembership": {"ups": segments}}


def test_s15_the_newest_qualification_wins_whole_and_none_is_oldest() -> None:
    newer, older = at(2), at(1)

    assert attributes(
        {},
        strong=membership(
            a={"lastQualificationTime": older, "status": "exited"},
            b={"status": "exited"},
            c={"lastQualificationTime": newer},
        ),
        weak=membership(
            a={"lastQualificationTime": newer},
            b={"lastQualificationTime": older, "status": "realized"},
            c={"lastQualificationTime": older, "status": "realized"},
            d={"status": "realized"},
        ),
    ) == membership(
        a={"lastQualificationTime": newer},
        b={"lastQualificationTime": older, "status": "realized"},
        c={"lastQualificationTime": newer},
        d={"status": "realized"},
    )


@pytest.mark.parametrize("time", [{}, {"lastQualificationTime": at(1)}])
def test_s15_among_equal_times_the_stronger_fragment_wins(time: dict[str, Any]) -> None:
    strong, weak = membership(a={**time, "status": "exited"}), membership(a={**time, "status": "realized"})

    assert attributes({}, strong=strong, weak=weak) == strong


def test_s15_an_entry_without_any_value_is_none() -> None:
    weak = membership(a={"status": "realized"})

    assert attributes({}, strong=membership(a={"status": None}), weak=weak) == weak
    assert attributes({}, strong=membership(a={}), weak={}) == {}


@pytest.mark.parametrize("later", [0, 1])
def test_s15_within_one_record_the_first_by_the_namespace_as_sent_wins_a_tie(later: int) -> None:
    one_record = {
        "segmentMembership": {
            "ups": {"a": {"lastQualificationTime": at(1 + later), "status": "existing"}},
            "UPS": {"a": {"lastQualificationTime": at(1), "status": "realized"}},
        }
    }

    profile = one(records("crm", {}, row("crm", ANN, one_record)), fields=["segmentMembership"])

    assert profile["segmentMembership"]["UPS"]["a"]["status"] == ("existing" if later else "realized")


# --- Events ---


def event(identifier: str, minutes: float, text: str | None = None, **place: Any) -> Any:
    return row("web", ANN, {"_id": identifier, "timestamp": at(minutes), "text": text}, **place)


def texts(*web: Any, **options: Any) -> list[Any]:
    """The texts of the attached events of one profile."""
    profile = one(
        records("crm", {}, row("crm", ANN)),
        events("web", {"text": TEXT}, *web),
        event_fields=["text"],
        **options,
    )
    return [found and found["text"] for found in profile.get("timeSeriesEvents", ())]


def test_s16_the_same_id_of_one_dataset_and_identity_is_one_event_the_latest_ingested() -> None:
    assert texts(event("1", 5, "first", batch="b1"), event("1", 3, "second", batch="b2")) == ["second"]


def test_s16_the_same_id_in_two_datasets_or_of_two_identities_is_two_events() -> None:
    profile = one(
        events("app", {}, row("app", ANN, {"_id": "1", "timestamp": at(0)}, links=[BEN])),
        events("web", {}, row("web", ANN, {"_id": "1", "timestamp": at(0)}, number=1)),
        events("web", {}, row("web", BEN, {"_id": "1", "timestamp": at(0)}, number=2)),
        graph=PDG,
        empty_profiles=True,
        event_fields=["_id"],
    )

    assert profile["timeSeriesEvents"] == [{"_id": "1"}] * 3


def test_s16_the_window_looks_at_the_latest_ingested_only() -> None:
    web = event("1", 0, "first", batch="b1"), event("1", 0, "second", batch="b2")

    assert texts(*web, window=(None, at(1))) == []
    assert texts(*web, window=(at(1), None)) == ["second"]


def test_s17_events_are_sorted_by_time_then_id_then_dataset_then_place() -> None:
    def happened(dataset_id: str, identifier: str, minutes: float, text: str, **place: Any) -> Any:
        return row(
            dataset_id,
            place.pop("of", ANN),
            {"_id": identifier, "timestamp": at(minutes), "text": text},
            **place,
        )

    profile = one(
        events(
            "b-web",
            {"text": TEXT},
            happened("b-web", "é", 1, "5", number=0),
            happened("b-web", "z", 1, "4", number=1, of=BEN),
            happened("b-web", "z", 1, "3", number=0, batch="b0", links=[BEN]),
            happened("b-web", "a", 2, "6", number=3),
        ),
        events(
            "a-app",
            {"text": TEXT},
            happened("a-app", "z", 1, "2", number=4),
            happened("a-app", "Z", 1, "1", number=5),
        ),
        graph=PDG,
        empty_profiles=True,
        event_fields=["text"],
    )

    assert [found["text"] for found in profile["timeSeriesEvents"]] == ["1", "2", "3", "4", "5", "6"]


def test_s17_without_an_event_list_there_is_no_column() -> None:
    parts = (records("crm", {}, row("crm", ANN)), events("web", {}, event("1", 0)))

    assert "timeSeriesEvents" not in one(*parts)
    assert counted(*parts).events_exported == 0


def test_s18_the_window_is_after_from_and_up_to_to() -> None:
    web = (
        event("1", 0, "one", batch="b1"),
        event("2", 0, "two", batch="b2"),
        event("3", 0, "three", batch="b3"),
    )

    assert texts(*web, window=(at(1), at(2))) == ["two"]
    assert texts(*web, window=(at(2), at(2))) == []
    assert texts(*web, window=(at(0), None)) == ["one", "two", "three"]


# --- Which profiles ---


def test_s19_a_profile_without_a_record_is_left_out_unless_empty_profiles() -> None:
    web = events("web", {}, event("1", 0))

    assert merged(web, event_fields=[]) == []
    assert counted(web).events_only == 1
    assert merged(web, empty_profiles=True) == [
        {"identityMap": {"Email": [{"id": "ann@example.com", "primary": True}]}}
    ]


def test_s19_the_window_does_not_matter_to_empty_profiles() -> None:
    web = events("web", {}, event("1", 0))

    assert merged(
        web, fields=["segmentMembership"], event_fields=[], window=(at(9), None), empty_profiles=True
    ) == [{}]


@pytest.mark.parametrize(("minutes", "kept"), [(1.9, 1), (2, 0), (3, 0)])
def test_s20_the_newest_record_counts_and_must_be_strictly_newer(minutes: float, kept: int) -> None:
    counts = counted(*BOTH, newer_than=at(minutes))

    assert (counts.profiles_exported, counts.not_newer) == (kept, 1 - kept)


def test_s20_the_newest_record_need_not_win_any_value_but_must_take_part() -> None:
    assert one(*BOTH, fields=["name"], order=["crm", "shop"], newer_than=at(1)) == {"name": "Ann"}
    assert counted(*BOTH, order=["crm"], newer_than=at(1)).not_newer == 1


def test_s20_events_count_only_where_there_is_no_record() -> None:
    parts = (
        records("crm", {}, row("crm", ANN, batch="b1")),
        events("web", {}, event("1", 0, batch="b2")),
        events("web", {}, row("web", BEN, {"_id": "1", "timestamp": at(0)}, batch="b2", number=1)),
    )

    counts = counted(*parts, newer_than=at(1), empty_profiles=True)

    assert (counts.profiles_exported, counts.not_newer, counts.events_only) == (1, 1, 0)


GOLD, VIP = SegmentFilter("gold"), SegmentFilter("vip", "UPS")
MEMBERS = records(
    "crm",
    {"name": TEXT},
    row("crm", "CRMID:1", {"name": "both"} | membership(gold={"status": "realized"}, vip={})),
    row(
        "crm",
        "CRMID:2",
        {"name": "both"} | membership(gold={"status": "existing"}, vip={"status": "realized"}),
        number=1,
    ),
    row("crm", "CRMID:3", {"name": "left"} | membership(gold={"status": "exited"}), number=2),
    row("crm", "CRMID:4", {"name": "neither"}, number=3),
)


def test_s21_a_profile_needs_to_be_in_one_of_the_segments() -> None:
    selection = SegmentSelection((GOLD, VIP))

    assert sorted(found["name"] for found in merged(MEMBERS, segments=selection)) == ["both", "both"]
    counts = counted(MEMBERS, segments=selection)
    assert counts.not_in_segments == 2
    assert counts.segment_members == {0: 3, 1: 1}


def test_s21_each_profile_says_in_which_segments_it_is() -> None:
    plan = plan_of([MEMBERS], fields=["identities.id"], segments=SegmentSelection((GOLD, VIP)))

    result = merge_profiles(plan, rows_of([MEMBERS]))

    found = {
        profile["identityMap"]["CRMID"][0]["id"]: segments
        for profile, segments in zip(result.profiles, result.segments, strict=True)
    }
    assert found == {"1": (0,), "2": (0, 1)}


def test_s21_a_segment_that_nobody_is_in_gives_nothing_and_no_member() -> None:
    counts = counted(MEMBERS, segments=SegmentSelection((SegmentFilter("silver"),)))

    assert (counts.profiles_exported, counts.not_in_segments, counts.segment_members) == (0, 4, {})


def test_s22_each_profile_that_is_left_out_counts_under_the_first_reason() -> None:
    # Each has the reason it is named for, and all that come later.
    many = [f"ECID:{number}" for number in range(50)]
    parts = (
        records(
            "crm",
            {},
            row("crm", "CRMID:not in segments", batch="b9"),
            row("crm", "CRMID:not newer", batch="b1"),
            row("crm", "CRMID:too many identities", links=many, batch="b1", number=1),
        ),
        records("shop", {}, row("shop", "CRMID:not listed", links=[f"{name}'" for name in many], batch="b0")),
        events("web", {}, row("web", "CRMID:events only", {"_id": "1", "timestamp": at(0)}, batch="b2")),
    )

    counts = counted(*parts, graph=PDG, order=["crm"], newer_than=at(3), segments=SegmentSelection((GOLD,)))

    assert (counts.profiles_read, counts.profiles_exported) == (5, 0)
    assert (
        counts.not_listed,
        counts.too_many_identities,
        counts.events_only,
        counts.not_newer,
        counts.not_in_segments,
    ) == (1, 1, 1, 1, 1)


def test_s22_a_profile_left_out_for_two_reasons_counts_under_the_first() -> None:
    web = events(
        "web",
        {},
        row("web", ANN, {"_id": "1", "timestamp": at(0)}, links=[f"CRMID:{number}" for number in range(50)]),
    )

    counts = counted(web)

    assert (counts.too_many_identities, counts.events_only, counts.fragments_left_out) == (1, 0, 0)


def test_counts_say_what_was_read_and_exported() -> None:
    counts = counted(
        records("crm", {}, row("crm", ANN, links=["CRMID:1"]), row("crm", BEN, number=1)),
        records("crm", {}, row("crm", ANN, links=["CRMID:1"], batch="b2")),
        events(
            "web", {}, event("1", 0, batch="b1", number=2), event("1", 0, batch="b2", number=2), event("2", 0)
        ),
        event_fields=["_id"],
        window=(at(1), None),
    )

    assert counts == ExportCounts(
        fragments_read=2,
        events_read=2,
        profiles_read=2,
        profiles_exported=2,
        events_exported=1,
        events_with_record=2,
        by_namespace={"CRMID": 1, "Email": 2},
    )


def test_no_rows_give_no_profiles() -> None:
    assert merged() == []
    assert counted() == ExportCounts(by_namespace={})


# --- Columns ---


def test_s23_fields_choose_columns_and_never_which_value_wins() -> None:
    fields: dict[str, FieldType] = {
        "orders": ArrayType(ObjectType({"sku": TEXT, "price": LONG})),
        "name": TEXT,
    }
    parts = (
        records("crm", fields, row("crm", ANN, {"orders": [{"price": 1}]}, batch="b1")),
        records("shop", fields, row("shop", ANN, {"orders": [{"sku": "a"}], "name": "Ann"}, batch="b2")),
    )

    assert merged(*parts, fields=["orders.price"]) == [{"orders": [None]}]
    assert merged(*parts, fields=["identities.primary"]) == [{"identityMap": {"Email": [{"primary": True}]}}]


def test_s24_a_path_through_an_array_trims_its_items_and_keeps_number_and_order() -> None:
    line = ObjectType({"n": LONG, "unit": TEXT})
    fields = {"orders": ArrayType(ObjectType({"sku": TEXT, "lines": ArrayType(line)}))}
    value: dict[str, Any] = {
        "orders": [{"sku": "a"}, None, {"lines": [{"n": 1, "unit": "kg"}, {"unit": "m"}]}, {"lines": []}]
    }

    assert merged(records("crm", fields, row("crm", ANN, value)), fields=["orders.lines.n"]) == [
        {"orders": [None, None, {"lines": [{"n": 1}, None]}, {"lines": []}]}
    ]


def test_s24_an_event_left_with_nothing_keeps_its_place_as_null() -> None:
    assert texts(event("1", 0), event("2", 1, "two", number=1)) == [None, "two"]


def test_s25_members_of_identities_are_selected_for_every_item() -> None:
    parts = records("crm", {}, row("crm", who("A:1", "loggedOut"), links=["A:2"]))

    assert merged(parts, fields=["identities.primary"]) == [{"identityMap": {"A": [{"primary": True}, None]}}]
    assert merged(parts, fields=["identities.namespace.code", "identities.authenticatedState"]) == [
        {"identityMap": {"A": [{"id": "1", "authenticatedState": "loggedOut"}, {"id": "2"}]}}
    ]


# --- Components ---


def test_components_are_found_through_long_chains_and_named_by_the_smallest_low_half() -> None:
    chain = [who(f"CRMID:{number}").identity for number in range(5_000)]
    apart = who(BEN).identity
    links = [[one, other] for one, other in pairwise(chain)]

    forwards, backwards = resolve([*links, [apart]]), resolve([[apart], *reversed(links)])

    first = min(chain, key=lambda identity: identity_key(identity)[1])
    assert {forwards[identity] for identity in chain} == {first}
    assert forwards[apart] == apart
    assert forwards == backwards
