"""Why a profile has the values it has, with worked examples."""

from __future__ import annotations

from typing import Any

import pytest

from profile_export.domain.merging import explain
from profile_export.domain.merging.explain import Explanation, explained
from profile_export.domain.merging.merge import merge_profiles, people_in
from profile_export.domain.schemas.types import (
    LONG,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    dotted_path,
)
from tests.builders import Part, at, plan_of, records, row, rows_of

ANN = "CRMID:1"


def explanation(*parts: Part, **options: Any) -> Explanation:
    """Explain the one person of these parts."""
    plan = plan_of(parts, **options)
    [person] = people_in(plan, rows_of(parts))
    return explained(plan, rows_of(parts), person)


def told(found: Explanation) -> dict[str, list[tuple[str, str, Any]]]:
    """Of each field dataset, batch and value: first of what won, then of what lost."""
    return {
        dotted_path(one.path): [
            (source.dataset_id, source.batch_id, source.value) for source in (one.won, *one.lost)
        ]
        for one in found.fields
    }


PERSON: dict[str, FieldType] = {
    "name": ObjectType({"first": TEXT, "last": TEXT}),
    "tags": ArrayType(TEXT),
    "consents": MapType(TEXT),
}
CRM = records(
    "crm",
    PERSON,
    row("crm", ANN, {"name": {"first": "Ann", "last": "Old"}, "consents": {"mail": "y"}}, batch="b1"),
)
SHOP = records(
    "shop",
    PERSON,
    row(
        "shop",
        ANN,
        {"name": {"first": "Anna"}, "tags": ["a"], "consents": {"mail": "n", "call": "y", "fax": None}},
        batch="b2",
    ),
)


def test_the_later_record_wins_each_field_that_it_has_and_the_other_has_lost_it() -> None:
    found = explanation(CRM, SHOP)

    assert told(found) == {
        "name.first": [("shop", "b2", "Anna"), ("crm", "b1", "Ann")],
        "name.last": [("crm", "b1", "Old")],
        "tags": [("shop", "b2", ["a"])],
        "consents.call": [("shop", "b2", "y")],
        "consents.mail": [("shop", "b2", "n"), ("crm", "b1", "y")],
    }
    assert [(one.lost_count, one.won.ingest_time) for one in found.fields][:2] == [(1, at(2)), (0, at(1))]
    assert found.more == 0


def test_s10_under_precedence_the_dataset_named_first_wins_though_it_is_older() -> None:
    found = told(explanation(CRM, SHOP, order=["crm", "shop"]))

    assert found["name.first"] == [("crm", "b1", "Ann"), ("shop", "b2", "Anna")]
    assert found["consents.call"] == [("shop", "b2", "y")]


def test_s9_in_a_dataset_that_upserts_each_record_is_told_by_its_own_batch() -> None:
    fields: dict[str, FieldType] = {"city": TEXT, "age": LONG}
    crm = records(
        "crm",
        fields,
        row("crm", ANN, {"city": "Oslo", "age": 1}, batch="b1"),
        row("crm", ANN, {"city": "Bergen"}, batch="b3"),
        upserts=True,
    )
    replacing = records(
        "shop",
        fields,
        row("shop", ANN, {"city": "Rome", "age": 2}, batch="b2"),
        row("shop", ANN, {"city": "Paris"}, batch="b4"),
    )

    assert told(explanation(crm, replacing)) == {
        "city": [("shop", "b4", "Paris"), ("crm", "b3", "Bergen"), ("crm", "b1", "Oslo")],
        "age": [("crm", "b1", 1)],
    }


def test_s15_of_a_membership_the_newest_qualification_wins_and_of_equals_the_stronger_record() -> None:
    def member(minute: int | None, status: str) -> dict[str, Any]:
        return {"status": status} | ({} if minute is None else {"lastQualificationTime": at(minute)})

    fields: dict[str, FieldType] = {"segmentMembership": SEGMENT_MEMBERSHIP_TYPE}
    crm = records(
        "crm",
        fields,
        row(
            "crm",
            ANN,
            {"segmentMembership": {"ups": {"gold": member(5, "exited"), "vip": member(1, "exited")}}},
            batch="b1",
        ),
    )
    shop = records(
        "shop",
        fields,
        row(
            "shop",
            ANN,
            {"segmentMembership": {"UPS": {"gold": member(None, "realized"), "vip": member(1, "realized")}}},
            batch="b2",
        ),
    )

    found = explanation(crm, shop)

    winners = {dotted_path(one.path): (one.won.dataset_id, one.won.value["status"]) for one in found.fields}
    assert winners == {
        "segmentMembership.ups.gold": ("crm", "exited"),
        "segmentMembership.ups.vip": ("shop", "realized"),
    }
    assert [one.lost_count for one in found.fields] == [1, 1]
    assert explanation(crm, shop, fields=["segmentMembership.ups.vip"]).fields == found.fields[1:]


def test_s23_fields_choose_what_is_explained_and_never_who_wins() -> None:
    orders: dict[str, FieldType] = {"orders": ArrayType(ObjectType({"sku": TEXT, "price": LONG}))}
    crm = records("crm", orders, row("crm", ANN, {"orders": [{"sku": "a", "price": 1}]}, batch="b1"))
    shop = records("shop", orders, row("shop", ANN, {"orders": [{"price": 2}]}, batch="b2"))

    assert told(explanation(crm, shop, fields=["orders.sku"])) == {
        "orders": [("shop", "b2", [None]), ("crm", "b1", [{"sku": "a"}])]
    }
    assert told(explanation(CRM, SHOP, fields=["consents.call", "name.last"])) == {
        "name.last": [("crm", "b1", "Old")],
        "consents.call": [("shop", "b2", "y")],
    }


def test_of_very_much_only_the_strongest_are_told_and_how_much_more_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"d{number}" for number in range(9)]
    parts = [
        records(
            name,
            {"a": TEXT, "b": TEXT, "c": TEXT},
            row(name, ANN, {"a": name, "b": "", "c": name}, batch=name),
        )
        for name in names
    ]
    monkeypatch.setattr(explain, "MOST_FIELDS", 2)

    found = explanation(*parts)

    first = found.fields[0]
    assert [source.dataset_id for source in (first.won, *first.lost)] == ["d8", "d7", "d6", "d5", "d4", "d3"]
    assert (first.lost_count, len(found.fields), found.more) == (8, 2, 1)


def test_what_wins_is_what_the_profile_has() -> None:
    parts = (CRM, SHOP)
    [profile] = merge_profiles(plan_of(parts), rows_of(parts)).profiles

    for one in explanation(*parts).fields:
        value: Any = profile
        for step in one.path:
            value = value[step]
        assert value == one.won.value
