from collections.abc import Mapping
from typing import Any

import pytest

from profile_export.domain.schemas.xdm import NOTHING, VALUE, row_rules
from profile_export.domain.schemas.xdm_places import SchemaInvalidError, read_place

NO = {"$ref": NOTHING}
YES = {"allOf": [{"$ref": VALUE}]}


def rules_of(document: Mapping[str, Any]) -> dict[str, Any] | None:
    rules = row_rules(read_place({"$id": "it", **document}, {}))
    if rules is not None:
        assert set(rules.pop("definitions")) == {"nothing", "value"}
    return rules


def rules_of_field(schema: Mapping[str, Any]) -> object:
    """Return the rules for an optional field."""
    rules = rules_of({"properties": {"xdm:a": schema}})
    return rules and rules["properties"]["a"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "title": "t", "default": "x"},
        {"type": "string", "format": "date-time"},
        {"format": "uri-reference"},
        {"uniqueItems": False},
        {
            "minProperties": 1,
            "propertyNames": {"maxLength": 1},
            "dependencies": {"a": ["b"]},
            "contains": {"minimum": 1},
        },
        {"items": [{"minimum": 1}]},
        {"patternProperties": {".+": {"minimum": 1}}, "additionalProperties": False},
        {"additionalProperties": {"type": "string"}},
        {"anyOf": [{"type": "string"}, {"minimum": 1}]},
        {"not": {"properties": {"a": {"type": "string"}}}},
        {"not": {"items": {"format": "date"}}},
        {"not": {"items": [{"minimum": 1}]}},
        {"not": {"additionalProperties": {"not": {"minProperties": 1}}}},
    ],
)
def test_what_says_nothing_beyond_types_gives_no_rules(schema: Mapping[str, Any]) -> None:
    assert rules_of({"properties": {"a": schema}, "title": "it"}) is None


def test_the_rules_of_values_are_kept_and_names_are_as_in_data() -> None:
    rules = rules_of(
        {
            "properties": {
                "xdm:a": {"type": "string", "pattern": "^x", "minLength": 1, "maxLength": 9, "meta:enum": {}},
                "schema:b": {"minimum": 1, "maximum": 2, "exclusiveMinimum": 0, "exclusiveMaximum": 3},
                "@c": {"items": {"multipleOf": 2}, "minItems": 1, "maxItems": 2, "uniqueItems": True},
                "d": {"additionalProperties": {"format": "email"}},
                "e": {"type": "string"},
            }
        }
    )

    assert rules == {
        "properties": {
            "a": {"pattern": "^x", "minLength": 1, "maxLength": 9},
            "_schema": {
                "properties": {
                    "b": {"minimum": 1, "maximum": 2, "exclusiveMinimum": 0, "exclusiveMaximum": 3}
                }
            },
            "_c": {"items": {"multipleOf": 2}, "minItems": 1, "maxItems": 2, "uniqueItems": True},
            "d": {"additionalProperties": {"format": "email"}},
        }
    }


def test_rules_of_several_parts_hold_together() -> None:
    parts = [{"pattern": "a"}, {"pattern": "b", "minLength": 1}, {"minLength": 1, "pattern": "a"}]

    assert rules_of({"allOf": parts}) == {"pattern": "a", "minLength": 1, "allOf": [{"pattern": "b"}]}


@pytest.mark.parametrize(
    ("schema", "rules"),
    [
        ({"enum": ["a", {"xdm:b": 1}]}, {"anyOf": [NO, {"enum": ["a", {"b": 1}]}]}),
        ({"const": 1}, {"anyOf": [NO, {"enum": [1]}]}),
        ({"const": 1, "enum": [1, 2]}, {"anyOf": [NO, {"enum": [1], "allOf": [{"enum": [1, 2]}]}]}),
        ({"required": ["xdm:b"]}, {"anyOf": [NO, {"required": ["b"], "properties": {"b": YES}}]}),
        ({"not": {"enum": [1]}}, {"anyOf": [NO, {"not": {"enum": [1]}}]}),
        ({"anyOf": [{"minimum": 1}, {}]}, {"anyOf": [NO, {"anyOf": [{"minimum": 1}, {}]}]}),
        ({"items": {"enum": [1]}}, {"items": {"anyOf": [NO, {"enum": [1]}]}}),
        (False, NO),
    ],
)
def test_an_optional_field_may_be_without_a_value(schema: Any, rules: Mapping[str, Any]) -> None:
    assert rules_of_field(schema) == rules


def test_a_required_field_needs_a_value() -> None:
    rules = rules_of(
        {
            "properties": {
                "xdm:a": {"enum": [1]},
                "xdm:b": {"allOf": [{"enum": [1]}, {"enum": [2]}]},
                "xdm:d": False,
            },
            "required": ["xdm:a", "xdm:b", "xdm:d"],
            "allOf": [{"required": ["schema:c", "xdm:a"]}],
        }
    )

    assert rules == {
        "required": ["a", "b", "d", "_schema"],
        "properties": {
            "a": {"enum": [1], **YES},
            "b": {"enum": [1], "allOf": [{"enum": [2]}, *YES["allOf"]]},
            "d": {"not": {}, **YES},
            "_schema": {"required": ["c"], "properties": {"c": YES}, **YES},
        },
    }


def test_where_no_other_names_are_allowed_they_may_be_there_without_a_value() -> None:
    closed = {"properties": {"xdm:a": {}, "schema:b": {}}, "additionalProperties": False}

    assert rules_of(closed) == {
        "properties": {
            "a": {},
            "_schema": {"properties": {"b": {}}, "additionalProperties": NO},
        },
        "additionalProperties": NO,
    }


def test_choices_between_rules_stay() -> None:
    choice = {"anyOf": [{"required": ["xdm:a"]}, {"properties": {"xdm:b": {"minimum": 1}}, "title": "b"}]}

    assert rules_of({**choice, "oneOf": [{"anyOf": [True, {"type": "string"}]}], "not": False}) == {
        "anyOf": [{"required": ["a"], "properties": {"a": YES}}, {"properties": {"b": {"minimum": 1}}}],
        "not": {"not": {}},
    }


def test_the_identity_map_has_no_rules_but_may_be_required() -> None:
    ruled = {"additionalProperties": {"minItems": 2}, "required": ["Email"]}

    assert rules_of({"properties": {"xdm:identityMap": ruled}}) is None
    assert rules_of({"properties": {"xdm:identityMap": ruled}, "required": ["xdm:identityMap"]}) == {
        "required": ["identityMap"],
        "properties": {"identityMap": YES},
    }


def test_the_segment_membership_keeps_its_rules() -> None:
    entry = {"properties": {"xdm:status": {"enum": ["realized", "exited"]}}}

    rules = rules_of_field({"additionalProperties": {"additionalProperties": entry}})

    assert rules == {
        "additionalProperties": {
            "additionalProperties": {
                "properties": {"status": {"anyOf": [NO, {"enum": ["realized", "exited"]}]}}
            }
        }
    }


def test_a_required_column_of_the_system_is_no_rule() -> None:
    assert rules_of({"required": ["timeSeriesEvents", "_ROW"]}) is None


def test_a_value_with_two_names_that_are_one_in_data_is_refused() -> None:
    with pytest.raises(SchemaInvalidError) as refused:
        rules_of_field({"const": {"xdm:b": 1, "b": 2}})

    assert (refused.value.path, refused.value.rule) == ("a", "enum")
