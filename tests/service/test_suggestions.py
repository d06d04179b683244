"""The nearest known path for one that no source has: S23, and that it stays cheap however many are known."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.application.suggestions import nearest_path, nearest_paths, suggesting
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.selection import UnknownPath, select_fields
from profile_export.domain.schemas.types import (
    DOUBLE,
    IDENTITY_MAP_TYPE,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    ArrayType,
    MapType,
    ObjectType,
)

SCHEMA = ObjectType(
    {
        "identityMap": IDENTITY_MAP_TYPE,
        "person": ObjectType({"name": ObjectType({"firstName": TEXT, "lastName": TEXT})}),
        "loyal": TEXT,
        "orders": ArrayType(ObjectType({"sku": TEXT, "tags": ArrayType(TEXT)})),
        "scores": MapType(ObjectType({"value": DOUBLE})),
        "shops": ArrayType(MapType(TEXT)),
        "segmentMembership": SEGMENT_MEMBERSHIP_TYPE,
    }
)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("loyl", "loyal"),
        ("loyall", "loyal"),
        ("loyel", "loyal"),
        (" Loyal ", "loyal"),
        ("person.name.firstname", "person.name.firstName"),
        ("person.names", "person.name"),
        ("orders.skus", "orders.sku"),
        ("orders[].sku", "orders.sku"),
        ("loyal.since", "loyal"),
        ("orders.tags.x", "orders.tags"),
        ("person..name", "person.name"),
        ("identityMpa", "identityMap"),
        ("scores.a.valeu", "scores.a.value"),
        ("segmentMembership.ups.s1.state", "segmentMembership.ups.s1.status"),
        ("identityMap.Email.idd", "identityMap.Email.id"),
        ("shops.ghent.street", "shops"),
    ],
)
def test_s23_the_nearest_path_is_the_one_of_the_fewest_changed_characters(path: str, nearest: str) -> None:
    assert nearest_path(UnknownPath(path, SCHEMA)) == nearest


@cache
def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance as its definition has it."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        edit_distance(one[1:], other) + 1,
        edit_distance(one, other[1:]) + 1,
        edit_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


names = st.text("aAbé", min_size=1, max_size=6)


@given(names, st.sets(names, min_size=1, max_size=8))
def test_s23_the_nearest_path_is_the_one_of_the_definition(path: str, known: set[str]) -> None:
    schema = ObjectType(dict.fromkeys(known - {path} or {"b" * 7}, TEXT))

    nearest = nearest_path(UnknownPath(path, schema))

    assert nearest == min(schema.fields, key=lambda name: (edit_distance(path, name), name.encode()))


@pytest.mark.parametrize("far", [0, 499, 500, 501, 1_999])
def test_s23_the_nearest_of_very_many_is_found_wherever_it_stands(far: int) -> None:
    known = [f"field_{number:05}" for number in range(2_000)]

    assert nearest_path(UnknownPath(f"{known[far]}#", ObjectType(dict.fromkeys(known, TEXT)))) == known[far]


def test_s23_of_equally_near_paths_the_first_in_utf_8_is_named() -> None:
    assert nearest_path(UnknownPath("nx", ObjectType({"né": TEXT, "nz": TEXT, "nZ": TEXT}))) == "nZ"
    assert nearest_path(UnknownPath("nx", ObjectType({"né": TEXT, "nz": TEXT}))) == "nz"


def test_where_nothing_is_known_nothing_is_near() -> None:
    assert not nearest_path(UnknownPath("name", ObjectType({})))


def test_the_first_five_unknown_paths_get_a_suggestion() -> None:
    unknown = [UnknownPath(f"loya{number}", SCHEMA) for number in range(7)]

    assert nearest_paths(unknown) == ["loyal"] * 5 + [""] * 2


def test_a_refusal_of_an_unknown_path_tells_the_nearest() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        suggesting(select_fields)(SCHEMA, ["loyal", "loyel"], "fields")

    assert refused.value.metadata == {"field": "fields[1]", "path": "loyel", "nearest": "loyal"}


@pytest.mark.parametrize("length", [20, 1_000, 100_000])
def test_a_suggestion_among_twenty_thousand_paths_takes_no_second(length: int) -> None:
    known = [f"{number:05}{'x' * min(length, 1_000)}" for number in range(20_000)]
    unknown = UnknownPath("y" * length, ObjectType(dict.fromkeys(known, TEXT)))

    started = time.perf_counter()
    assert nearest_path(unknown)

    assert time.perf_counter() - started < 1.0
