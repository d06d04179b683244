from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import TEXT, ArrayType, MapType, ObjectType
from profile_export.domain.schemas.xdm_places import data_form, data_path, with_data_names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("xdm:firstName", ("firstName",)),
        ("xdm:_id", ("_id",)),
        ("firstName", ("firstName",)),
        ("_acme", ("_acme",)),
        ("@id", ("_id",)),
        ("@type", ("_type",)),
        ("schema:latitude", ("_schema", "latitude")),
        ("repo:createDate", ("_repo", "createDate")),
        ("https://ns.adobe.com/xdm/channels/email", ("_channels", "email")),
        ("https://ns.adobe.com/experience/mcid", ("_experience", "mcid")),
        (
            "https://ns.adobe.com/experience/analytics/customDimensions",
            ("_experience", "analytics", "customDimensions"),
        ),
    ],
)
def test_a_name_loses_its_prefix_or_moves_into_an_object(name: str, path: tuple[str, ...]) -> None:
    assert data_path(name) == path


@pytest.mark.parametrize(
    "name",
    ["", "xdm:", ":x", "a:b:c", "@a:b", "https://ns.adobe.com", "https://a.b/c", "https://a/b//c", "http://"],
)
def test_a_name_that_the_rule_cannot_take_apart_stays(name: str) -> None:
    assert data_path(name) == (name,)


@given(st.text(alphabet="ax:/@.", max_size=12))
def test_a_name_in_data_form_stays_as_it_is(name: str) -> None:
    assert all(data_path(part) == (part,) for part in data_path(name))


def test_the_names_of_a_value_are_rewritten_and_objects_that_come_together_become_one() -> None:
    value = {
        "@id": "1",
        "schema:latitude": 1.5,
        "schema:longitude": 2.5,
        "_schema": {"description": "a place"},
        "xdm:tags": [{"xdm:name": "a"}, None, 3],
        "plain": True,
    }

    assert data_form(value) == {
        "_id": "1",
        "_schema": {"latitude": 1.5, "longitude": 2.5, "description": "a place"},
        "tags": [{"name": "a"}, None, 3],
        "plain": True,
    }


def test_the_keys_of_a_known_map_stay_as_they_are() -> None:
    entry = ObjectType({"name": TEXT})
    known = ObjectType({"ids": MapType(ArrayType(entry)), "_acme": ObjectType({"byDay": MapType(TEXT)})})
    value = {"xdm:ids": {"https://a/b/c": [{"xdm:name": "x"}]}, "acme:byDay": {"xdm:monday": "y"}}

    assert data_form(value, known) == {
        "ids": {"https://a/b/c": [{"name": "x"}]},
        "_acme": {"byDay": {"xdm:monday": "y"}},
    }


@pytest.mark.parametrize("second", [1, 2, {"x": 1}])
def test_two_values_for_one_name_in_data_are_refused(second: Any) -> None:
    with pytest.raises(ValueRefusedError) as refused:
        data_form({"schema:a": 1.5, "_schema": {"a": second}})

    assert refused.value.reason == "The field '_schema.a' is sent under two names that are the same in data."


def test_an_object_schema_gets_an_object_for_each_prefix() -> None:
    schema = {
        "title": "a place",
        "properties": {
            "xdm:a": {"minLength": 1},
            "schema:b": True,
            "https://x/c/d/e": {},
            "@id": {},
            "_id": False,
        },
        "required": ["xdm:a", "schema:b", "schema:f"],
        "additionalProperties": False,
    }

    assert with_data_names(schema) == {
        "title": "a place",
        "properties": {
            "a": {"minLength": 1},
            "_id": {"allOf": [{}, False]},
            "_schema": {"properties": {"b": True}, "required": ["b", "f"], "additionalProperties": False},
            "_c": {
                "properties": {"d": {"properties": {"e": {}}, "required": [], "additionalProperties": False}},
                "required": [],
                "additionalProperties": False,
            },
        },
        "required": ["a", "_schema"],
        "additionalProperties": False,
    }


def test_what_patterns_of_names_say_and_what_they_leave_over_is_dropped() -> None:
    schema = {"patternProperties": {"^xdm:": {}}, "additionalProperties": False}

    assert "additionalProperties" not in with_data_names(schema)
