"""Filters and orders of lists, as callers write them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.lists import (
    Condition,
    Order,
    Reader,
    instant,
    read_filter,
    read_order,
    truth,
    word,
)
from profile_export.domain.merging.policy import IdentityGraph
from tests.builders import at

FIELDS: Mapping[str, Reader] = {"dataset_id": str, "rows": int, "ingest_time": instant}


def refusal(text: str) -> str:
    with pytest.raises(InvalidArgumentError) as refused:
        read_filter(text, FIELDS)
    assert refused.value.reason == "FIELD_INVALID"
    assert [violation.field for violation in refused.value.violations] == ["filter"]
    return refused.value.message


@pytest.mark.parametrize("text", ["", "  \n "])
def test_no_text_is_no_filter(text: str) -> None:
    assert read_filter(text, FIELDS) == ()


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("dataset_id = 5f0c", [Condition("dataset_id", "=", "5f0c")]),
        ("dataset_id=5f0c", [Condition("dataset_id", "=", "5f0c")]),
        (" rows >= -7 ", [Condition("rows", ">=", -7)]),
        ('dataset_id != "a b"', [Condition("dataset_id", "!=", "a b")]),
        ("dataset_id = ''", [Condition("dataset_id", "=", "")]),
        (r'dataset_id = "say \"so\" \\"', [Condition("dataset_id", "=", 'say "so" \\')]),
        ("dataset_id = 'AND'", [Condition("dataset_id", "=", "AND")]),
        ("ingest_time < 2024-05-01T12:01:00Z", [Condition("ingest_time", "<", at(1))]),
        ('ingest_time < "2024-05-01T14:01:00+02:00"', [Condition("ingest_time", "<", at(1))]),
        (
            "rows > 1 AND rows <= 9\nAND dataset_id = a",
            [
                Condition("rows", ">", 1),
                Condition("rows", "<=", 9),
                Condition("dataset_id", "=", "a"),
            ],
        ),
    ],
)
def test_a_filter_is_conditions_with_and_between_them(text: str, conditions: list[Condition]) -> None:
    assert read_filter(text, FIELDS) == tuple(conditions)


@pytest.mark.parametrize(
    ("operator", "holds_for"),
    [("=", {2}), ("!=", {1, 3}), ("<", {1}), ("<=", {1, 2}), (">", {3}), (">=", {2, 3})],
)
def test_a_condition_compares_the_value_of_a_field(operator: str, holds_for: set[int]) -> None:
    (condition,) = read_filter(f"rows {operator} 2", FIELDS)

    assert {value for value in (1, 2, 3) if condition.holds(value)} == holds_for


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size = 1", "knows no field 'size', only dataset_id, rows, ingest_time"),
        ("rows = many", "compares 'rows' with 'many'"),
        ("ingest_time > yesterday", "which is not a time with an offset"),
        ("ingest_time > 2024-05-01T12:00:00", "which is not a time with an offset"),
        ("rows", "needs a condition such as `dataset_id = value`, not 'rows'"),
        ("rows == 1", "not 'rows == 1'"),
        ('dataset_id = "open', "not 'dataset_id = \"open'"),
        ("rows = 1 OR rows = 2", "needs AND and a condition such as `dataset_id = value`, not 'OR rows = 2'"),
        ("rows = 1 AND", "not 'AND'"),
        ("AND rows = 1", "not 'AND rows = 1'"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_place_where_it_goes_wrong(text: str, told: str) -> None:
    assert told in refusal(text)


def test_a_long_filter_is_read_in_no_time() -> None:
    text = " AND ".join(["rows > 1"] * 100_000)

    assert len(read_filter(text, FIELDS)) == 100_000


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", None),
        (" name ", Order("name")),
        ("create_time desc", Order("create_time", descending=True)),
    ],
)
def test_an_order_is_a_field_perhaps_reversed(text: str, order: Order | None) -> None:
    assert read_order(text, ["create_time", "name"]) == order


@pytest.mark.parametrize("text", ["size", "name asc", "name desc please", "size desc", "name, create_time"])
def test_what_is_no_order_is_refused_with_what_may_be_said(text: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match="'create_time' or 'name', perhaps with ' desc'"
    ) as refused:
        read_order(text, ["create_time", "name"])

    assert [violation.field for violation in refused.value.violations] == ["order_by"]


# --- Words, and true or false ---

GRAPHS = {graph.name: graph for graph in IdentityGraph}
WORDS: Mapping[str, Reader] = {"graph": word(GRAPHS, "IDENTITY_GRAPH_"), "built_in": truth}


def test_an_enum_is_named_with_or_without_its_prefix_and_what_is_true_or_false_as_in_json() -> None:
    assert read_filter("graph = PDG AND graph != IDENTITY_GRAPH_NONE", WORDS) == (
        Condition("graph", "=", IdentityGraph.PDG),
        Condition("graph", "!=", IdentityGraph.NONE),
    )
    assert read_filter("built_in = true AND built_in != false", WORDS) == (
        Condition("built_in", "=", True),
        Condition("built_in", "!=", False),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("graph = pdg", "'pdg', which is not one of NONE, PDG"),
        ("graph = IDENTITY_GRAPH_", "which is not one of NONE, PDG"),
        ("graph < PDG", "by <; it can be compared with = and != only"),
        ("built_in = True", "'True', which is not true or false"),
        ("built_in >= true", "by >=; it can be compared with = and != only"),
    ],
)
def test_another_word_or_comparison_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        read_filter(text, WORDS)

    assert told in refused.value.message


@pytest.mark.parametrize("operator", ["=", "!=", "<", ">="])
def test_a_field_that_is_absent_meets_no_condition(operator: str) -> None:
    assert Condition("create_time", operator, at(1)).holds(None) is False
