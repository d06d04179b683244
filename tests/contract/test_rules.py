"""Rows checked against the rules of a schema, by the library and by the meaning of JSON Schema on paper."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.xdm import read_document
from profile_export.domain.schemas.xdm_places import data_form
from profile_export.ingest.schema_documents import Rules


def rules_of(schema: Mapping[str, Any]) -> Rules:
    return Rules(read_document({"$id": "it", **schema}, {}).rules or "{}")


def complaint(schema: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    try:
        rules_of(schema).check(record)
    except ValueRefusedError as refused:
        return refused.reason
    return None


def field(schema: Any, value: object) -> str | None:
    """The complaint about the value of one optional field."""
    return complaint({"properties": {"xdm:a": schema}}, {"a": value})


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"enum": ["x", 1]}, "y", "is 'y', but the schema says enum: [\"x\", 1]"),
        ({"const": "x"}, "y", "is 'y', but the schema says enum: [\"x\"]"),
        ({"pattern": "^[A-Z]{2}$"}, "nl", "is 'nl', but the schema says pattern: '^[A-Z]{2}$'"),
        ({"pattern": "^(?!x)"}, "xy", "is 'xy', but the schema says pattern: '^(?!x)'"),
        ({"minLength": 2}, "é", "is 'é', but the schema says minLength: 2"),
        ({"maxLength": 200}, "y" * 201, f"is '{'y' * 199}…, but the schema says maxLength: 200"),
        ({"minimum": 1}, 0.5, "is 0.5, but the schema says minimum: 1"),
        ({"maximum": 1}, 2, "is 2, but the schema says maximum: 1"),
        ({"exclusiveMinimum": 1}, 1, "is 1, but the schema says exclusiveMinimum: 1"),
        ({"exclusiveMaximum": 1.5}, 1.5, "is 1.5, but the schema says exclusiveMaximum: 1.5"),
        ({"multipleOf": 0.01}, 0.005, "is 0.005, but the schema says multipleOf: 0.01"),
        ({"minItems": 1}, [], "is [], but the schema says minItems: 1"),
        ({"maxItems": 1}, ["a", "é"], 'is ["a", "é"], but the schema says maxItems: 1'),
        ({"uniqueItems": True}, [1, 1.0], "does not satisfy the rule uniqueItems of the schema"),
        ({"format": "email"}, "ann", "is 'ann', but the schema says format: 'email'"),
        ({"format": "uri"}, "//x", "is '//x', but the schema says format: 'uri'"),
        ({"format": "ipv4"}, "1.2.3.256", "is '1.2.3.256', but the schema says format: 'ipv4'"),
        ({"format": "ipv6"}, "1.2.3.4", "is '1.2.3.4', but the schema says format: 'ipv6'"),
        ({"anyOf": [{"minimum": 3}, {"maximum": 1}]}, 2, "does not satisfy the rule anyOf of the schema"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, 2, "does not satisfy the rule oneOf of the schema"),
        ({"not": {"enum": ["x"]}}, "x", "does not satisfy the rule not of the schema"),
        (False, "x", "may not be there, since the schema allows no such field (additionalProperties)"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_with_both(schema: Any, value: object, said: str) -> None:
    assert field(schema, value) == f"The field 'a' {said}."


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["x", 1]}, 1.0),
        ({"pattern": "b"}, "abc"),
        ({"pattern": "b"}, 5),
        ({"maxLength": 1}, "💩"),
        ({"multipleOf": 0.01}, 4.35),
        ({"format": "email"}, "ann@example.com"),
        ({"format": "uri"}, "https://example.com/a"),
        ({"format": "ipv6"}, "::1"),
        ({"format": "date-time"}, "x"),
        ({"format": "uri-reference"}, "{ }"),
    ],
)
def test_a_value_that_keeps_the_rules_passes(schema: Any, value: object) -> None:
    assert field(schema, value) is None


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        (Decimal("4.35"), True),
        (Decimal("4.351"), False),
        (Decimal("9007199254740993.01"), False),
        (Decimal("1e400"), False),
        (Decimal("-1e4000000"), True),
        (10**400, False),
        (9007199254740993, False),
        (9007199254740992, True),
    ],
)
def test_numbers_are_compared_with_all_their_digits(value: object, *, passes: bool) -> None:
    said = field({"maximum": 9007199254740992, "multipleOf": 0.01}, value)

    assert (said is None) is passes


def test_a_complaint_names_the_field_inside_objects_arrays_and_maps() -> None:
    rows = {"items": {"items": {"properties": {"xdm:sku": {"pattern": "^x"}}}}}
    schema = {"properties": {"acme:orders": {"additionalProperties": rows}}}

    assert (
        complaint(schema, {"_acme": {"orders": {"May": [[{"sku": "x"}, {"sku": "y"}]]}}})
        == "The field '_acme.orders.May[][].sku' is 'y', but the schema says pattern: '^x'."
    )


@pytest.mark.parametrize(
    "record", [{}, {"a": None}, {"a": {}}, {"a": {"b": {"c": None}}}, {"a": None, "x": 1}]
)
def test_a_required_field_needs_to_be_there_with_a_value(record: Mapping[str, Any]) -> None:
    schema = {"properties": {"xdm:a": {"properties": {"xdm:b": {"enum": [{"x": 1}]}}}}, "required": ["xdm:a"]}

    assert complaint(schema, record) == "The field 'a' is missing, but the schema requires it."


def test_a_required_field_with_rules_of_its_own_is_missing_when_it_is_null() -> None:
    schema = {"properties": {"schema:a": {"enum": ["x"]}}, "required": ["schema:a"]}

    assert complaint(schema, {"_schema": {"a": None, "b": 1}}) == (
        "The field '_schema.a' is missing, but the schema requires it."
    )


def test_an_optional_object_is_held_to_its_rules_only_where_it_is_there() -> None:
    schema = {"properties": {"a": {"required": ["xdm:b"], "not": {"required": ["xdm:c"]}}}}

    assert [
        complaint(schema, {"a": value}) for value in (None, {}, {"c": None}, {"b": 1}, {"b": 0, "c": {}})
    ] == [None] * 5
    assert complaint(schema, {"a": {"d": 1}}) == "The field 'a.b' is missing, but the schema requires it."
    assert (
        complaint(schema, {"a": {"b": 1, "c": 1}})
        == "The field 'a' does not satisfy the rule not of the schema."
    )


def test_a_field_that_a_closed_schema_does_not_list_may_only_be_there_without_a_value() -> None:
    schema = {"properties": {"xdm:a": {}}, "additionalProperties": False}

    assert complaint(schema, {"a": 1, "b": None, "c": {"d": None}}) is None
    assert complaint(schema, {"b": {"d": 1}}) == (
        "The field 'b' may not be there, since the schema allows no such field (additionalProperties)."
    )


def test_a_rule_of_the_whole_row_is_told_of_the_row() -> None:
    schema = {"anyOf": [{"required": ["xdm:a"]}, {"required": ["xdm:b"]}]}

    assert complaint(schema, {"a": None, "b": 1}) is None
    assert complaint(schema, {"a": None}) == "The row does not satisfy the rule anyOf of the schema."


def test_a_choice_that_a_closed_object_breaks_is_told_as_a_choice() -> None:
    schema = {"anyOf": [{"properties": {"xdm:b": {}}, "additionalProperties": False}]}

    assert complaint(schema, {"a": 1}) == "The row does not satisfy the rule anyOf of the schema."


def test_half_of_a_surrogate_pair_is_refused_and_not_a_fault() -> None:
    said = "The row holds half of a surrogate pair, which is not text."

    assert field({"pattern": "x"}, "\ud800") == said


def test_a_record_is_left_as_it_is() -> None:
    record = {"a": {"b": [1, None, Decimal("1.50")]}}

    assert complaint({"properties": {"a": {"required": ["b"]}}}, record) is None
    assert record == {"a": {"b": [1, None, Decimal("1.50")]}}


# --- Against JSON Schema itself ---

_NAMES = ("xdm:a", "schema:b", "schema:c", "@id", "d", "https://x/e/f")
_TEXTS = st.sampled_from(["", "x", "xy", "ann@example.com"])
_VALUES = st.one_of(_TEXTS, st.integers(-1, 3), st.booleans(), st.sampled_from([0.5, 2.0]))
_LEAF_RULES = st.fixed_dictionaries(
    {},
    optional={
        "enum": st.lists(_VALUES, min_size=1, max_size=3),
        "pattern": st.sampled_from(["^x", "y$"]),
        "minLength": st.integers(0, 2),
        "maximum": st.integers(0, 2),
        "multipleOf": st.sampled_from([1, 0.5]),
        "format": st.just("email"),
    },
)


def _lists_prefixes(schema: dict[str, Any]) -> dict[str, Any]:
    """List every name with a prefix where a schema speaks of other names: in data, no other name has a prefix."""
    if isinstance(schema.get("additionalProperties"), dict):
        listed = {name: True for name in _NAMES if ":" in name and not name.startswith("xdm:")}
        schema["properties"] = {**listed, **schema.get("properties", {})}
    return schema


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3),
            "required": st.lists(st.sampled_from(_NAMES), max_size=2, unique=True),
            "additionalProperties": st.one_of(inner, st.just(value=False)),
            "items": inner,
            "minItems": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "allOf": some,
            "anyOf": some,
            "oneOf": some,
            "not": inner,
        },
    ).map(_lists_prefixes)


_SCHEMAS = st.recursive(st.one_of(_LEAF_RULES, _LEAF_RULES, st.booleans()), _composed, max_leaves=8).filter(
    lambda schema: isinstance(schema, dict)
)


def _full(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Arrays and objects with a value in each."""
    return st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from([*_NAMES, "xdm:other"]), inner, min_size=1, max_size=3),
    )


_INSTANCES = st.dictionaries(
    st.sampled_from([*_NAMES, "xdm:other"]), st.recursive(_VALUES, _full, max_leaves=5), max_size=4
)


def passes(schema: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return complaint(schema, record) is None


@given(_SCHEMAS, _INSTANCES)
def test_a_row_keeps_the_rules_in_data_where_it_keeps_them_on_paper(
    schema: dict[str, Any], instance: dict[str, Any]
) -> None:
    on_paper = jsonschema_rs.Draft6Validator(schema, validate_formats=True, offline=True)

    assert passes(schema, data_form(instance)) == on_paper.is_valid(instance)


_NOTHING = st.recursive(st.none(), lambda inner: st.dictionaries(st.sampled_from("abd"), inner, max_size=2))


def _padded(value: Any, data: st.DataObject) -> Any:
    """Add names without a value to the objects in a value."""
    if isinstance(value, list):
        return [_padded(item, data) for item in value]
    if not isinstance(value, dict):
        return value
    added = data.draw(
        st.dictionaries(st.sampled_from(["a", "_schema", "_id", "d", "new"]), _NOTHING, max_size=3)
    )
    return {**added, **{name: _padded(member, data) for name, member in value.items()}}


@given(_SCHEMAS, _INSTANCES, st.data())
def test_a_field_without_a_value_changes_nothing(
    schema: dict[str, Any], instance: dict[str, Any], data: st.DataObject
) -> None:
    record = data_form(instance)

    assert passes(schema, _padded(record, data)) == passes(schema, record)
