from collections.abc import Mapping
from typing import Any

import pytest

from profile_export.domain.errors import FailedPreconditionError
from profile_export.domain.schemas.learning import MAX_DEPTH, MAX_NAMES
from profile_export.domain.schemas.xdm_places import (
    MAX_ID,
    MAX_NESTING,
    MAX_SCHEMAS,
    Place,
    SchemaInvalidError,
    read_place,
)


def read(document: Mapping[str, Any], *others: Mapping[str, Any]) -> Place:
    document = {"$id": "https://a/it", **document}
    return read_place(document, {other["$id"]: other for other in (document, *others)})


def refused(document: Mapping[str, Any], *others: Mapping[str, Any]) -> SchemaInvalidError:
    with pytest.raises(SchemaInvalidError) as invalid:
        read(document, *others)
    return invalid.value


def titles(place: Place) -> list[str]:
    return [claim["title"] for claim in place.claims if "title" in claim]


# --- References ---


@pytest.mark.parametrize(
    ("ref", "title"),
    [
        ("#/definitions/own", "own"),
        ("https://a/it#/definitions/own", "own"),
        ("it#/definitions/own", "own"),
        ("#/definitions/a~1b~0c%20d", "escaped"),
        ("#/definitions/many/allOf/1", "second"),
        ("https://a/other", "other"),
        ("https://a/other#", "other"),
        ("other", "other"),
        ("https://a/other#/definitions/inner", "inner"),
        ("https://a/other#/definitions/own", "own of other"),
    ],
)
def test_a_reference_leads_to_a_schema_of_its_own_document_or_of_another(ref: str, title: str) -> None:
    other = {
        "$id": "https://a/other",
        "title": "other",
        "definitions": {
            "inner": {"$ref": "#/definitions/last"},
            "last": {"title": "inner"},
            "own": {"title": "own of other"},
        },
    }
    own = {
        "own": {"title": "own"},
        "a/b~c d": {"title": "escaped"},
        "many": {"allOf": [{}, {"title": "second"}]},
    }

    place = read({"properties": {"x": {"$ref": ref}}, "definitions": own}, other)

    assert titles(place.members["x"]) == [title]


@pytest.mark.parametrize(
    "ref",
    [
        "https://a/unknown",
        "#/definitions/unknown",
        "#/definitions/list/1",
        "#/definitions/list/x",
        "#/definitions/list",
        "#anchor",
        "#/title/x",
    ],
)
@pytest.mark.parametrize("keyword", ["allOf", "anyOf"])
def test_a_reference_to_nothing_known_is_refused_by_its_name(ref: str, keyword: str) -> None:
    with pytest.raises(FailedPreconditionError) as refusal:
        read({"title": "it", keyword: [{"$ref": ref}], "definitions": {"list": [{}]}})

    assert (refusal.value.reason, refusal.value.metadata) == ("SCHEMA_REF_NOT_FOUND", {"ref": ref})


def test_what_stands_beside_a_reference_does_not_count() -> None:
    place = read(
        {
            "properties": {"x": {"$ref": "#/definitions/d", "title": "beside"}},
            "definitions": {"d": {"title": "d"}},
        }
    )

    assert titles(place.members["x"]) == ["d"]


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"$ref": "#"}, "x"),
        ({"$ref": "https://a/it"}, "x"),
        ({"$ref": "#/definitions/self"}, "x"),
        ({"$ref": "#/definitions/child"}, "x.y"),
        ({"$ref": "#/definitions/list"}, "x[]"),
        ({"$ref": "https://a/other"}, "x"),
    ],
)
def test_a_reference_that_leads_back_to_itself_is_refused(schema: Mapping[str, Any], at: str) -> None:
    definitions = {
        "self": {"allOf": [{"$ref": "#/definitions/self"}]},
        "child": {"properties": {"y": {"$ref": "#/definitions/child"}}},
        "list": {"items": {"$ref": "#/definitions/list"}},
    }

    error = refused(
        {"properties": {"x": schema}, "definitions": definitions},
        {"$id": "https://a/other", "anyOf": [{"$ref": "https://a/it"}]},
    )

    assert (error.path, error.rule) == (at, "$ref")


def test_one_schema_may_be_used_in_many_places() -> None:
    used = {"$ref": "#/definitions/d"}

    place = read(
        {
            "properties": {"x": used, "y": {"properties": {"x": used}}},
            "allOf": [used, used],
            "definitions": {"d": {"title": "d"}},
        }
    )

    assert titles(place) == ["d", "d"]
    assert titles(place.members["x"]) == titles(place.members["y"].members["x"]) == ["d"]


# --- Limits ---


def test_a_document_that_unfolds_without_measure_is_refused() -> None:
    doubled = {
        f"d{depth}": {"properties": {name: {"$ref": f"#/definitions/d{depth + 1}"} for name in "ab"}}
        for depth in range(30)
    }

    error = refused({"$ref": "#/definitions/d0", "definitions": {**doubled, "d30": {}}})

    assert (error.path, error.rule) == ("", "$ref")
    assert str(MAX_SCHEMAS) in error.message


def nested(depth: int, keyword: str) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = {}
    for _ in range(depth):
        schema = {keyword: {"x": schema} if keyword == "properties" else [schema]}
    return schema


def test_fields_and_schemas_may_be_nested_to_a_limit() -> None:
    assert list(read(nested(MAX_DEPTH, "properties")).members) == ["x"]
    assert [keyword for keyword, _ in read(nested(MAX_NESTING, "anyOf")).choices] == ["anyOf"]

    assert refused(nested(MAX_DEPTH + 1, "properties")).path == "x.x.x"
    assert refused(nested(MAX_NESTING + 1, "anyOf")).rule == "allOf"
    assert refused(nested(MAX_NESTING + 1, "allOf")).rule == "allOf"


def test_an_object_may_have_names_to_a_limit() -> None:
    names: dict[str, object] = {f"n{number}": {} for number in range(MAX_NAMES)}

    assert len(read({"properties": names}).members) == MAX_NAMES

    assert refused({"properties": {"a": {"properties": {**names, "more": {}}}}}).path == "a"


# --- Names ---


@pytest.mark.parametrize("name", ["", "a.b", "\ud800", "https://ns.adobe.com"])
def test_a_name_that_no_field_can_have_is_refused(name: str) -> None:
    error = refused({"properties": {"xdm:p": {"properties": {name: {}}}}})

    assert (error.path, error.rule) == (f"p.{name}", "properties")


def test_of_names_that_differ_in_case_alone_the_one_that_is_not_deprecated_stands() -> None:
    names = {
        "xdm:POIDetail": {"title": "old", "meta:status": "deprecated"},
        "xdm:poiDetail": {"title": "new", "meta:status": "stable"},
        "xdm:gone": {"meta:status": "deprecated"},
    }

    place = read({"allOf": [{"properties": {name: said}} for name, said in names.items()]})

    assert list(place.members) == ["poiDetail", "gone"]


@pytest.mark.parametrize("status", ["stable", "deprecated"])
def test_names_that_differ_in_case_alone_are_refused(status: str) -> None:
    error = refused({"properties": {"a": {"meta:status": status}, "A": {"meta:status": status}}})

    assert (error.path, error.rule) == ("A", "properties")
    assert "a and A differ in case alone" in error.message


# --- Places ---


def test_what_is_said_of_other_names_holds_for_each_name_that_its_own_part_does_not_list() -> None:
    place = read(
        {
            "allOf": [
                {"properties": {"xdm:a": {"title": "a"}}, "additionalProperties": {"title": "rest of a"}},
                {"properties": {"xdm:b": {"title": "b"}}},
                {"additionalProperties": False, "required": ["xdm:a", "xdm:b", "xdm:c"]},
            ]
        }
    )

    assert {name: titles(member) for name, member in place.members.items()} == {
        "a": ["a"],
        "b": ["rest of a", "b"],
        "c": ["rest of a"],
    }
    assert all(member.forbidden for member in place.members.values())
    assert place.rest
    assert titles(place.rest) == ["rest of a"]
    assert (place.rest.path, place.rest.forbidden, place.forbidden) == (("*",), True, False)


def test_items_and_choices_are_places_too() -> None:
    place = read({"items": {"title": "item"}, "not": {"title": "no"}, "oneOf": [True, False]})

    assert place.item
    assert (place.item.path, titles(place.item)) == (("[]",), ["item"])
    (one_of, (yes, never)), (no, (said,)) = place.choices
    assert (one_of, no, titles(said)) == ("oneOf", "not", ["no"])
    assert (yes.forbidden, never.forbidden) == (False, True)


def test_an_id_has_a_limit() -> None:
    longest = f"https://a/{'x' * (MAX_ID - 10)}"

    invalid = refused({"$id": f"{longest}x"})

    assert (invalid.path, invalid.rule) == ("/$id", "$id")
    assert read({"$id": longest}).claims
