"""The types of fields: how they grow by union, what is a conflict, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    IDENTITY_MAP_TYPE,
    LARGE_LONG,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    GrowingObject,
    Holder,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    TypeConflictError,
    dotted_path,
    leaves,
    to_json,
    type_at,
    union_objects,
    union_types,
)

SCALARS = [Scalar(kind) for kind in ScalarKind]
CONFLICT = "conflict"


# --- Builders ---

# Few names and types, so that two objects often share some; "A" beside "a" makes conflicts of case.
names = st.sampled_from(["a", "b", "c", "d", "A"])
some_decimals = st.builds(DecimalType, st.integers(10, 38), st.integers(0, 10))
numbers = st.sampled_from([LONG, LARGE_LONG, DOUBLE]) | some_decimals


def nested(single: st.SearchStrategy[FieldType]) -> st.SearchStrategy[FieldType]:
    return st.recursive(
        single,
        lambda inner: st.one_of(inner.map(ArrayType), inner.map(MapType), objects_of(inner)),
        max_leaves=8,
    )


def objects_of(member: st.SearchStrategy[FieldType]) -> st.SearchStrategy[ObjectType]:
    pairs = st.lists(st.tuples(names, member), max_size=4, unique_by=lambda pair: pair[0].casefold())
    return pairs.map(lambda found: ObjectType(dict(found)))


types = nested(st.sampled_from(SCALARS))
objects = objects_of(types)
number_types = nested(numbers)


def united(*members: FieldType | str) -> FieldType | str:
    """The union, from left to right; a conflict stays one."""
    known, *others = members
    try:
        for found in others:
            if isinstance(known, str) or isinstance(found, str):
                return CONFLICT
            known = union_types(known, found)
    except TypeConflictError:
        return CONFLICT
    return known


def conflict_of(known: FieldType, found: FieldType) -> TypeConflictError:
    with pytest.raises(TypeConflictError) as refused:
        union_types(known, found)
    return refused.value


def decimal(precision: int, scale: int) -> DecimalType:
    return DecimalType(precision, scale)


# --- Laws of the union ---


@given(types, types)
def test_a_union_is_the_same_from_either_side_up_to_the_order_of_fields(
    one: FieldType, two: FieldType
) -> None:
    assert united(one, two) == united(two, one)


@given(types, types, types)
def test_a_union_is_the_same_in_whatever_order_batches_come(
    one: FieldType, two: FieldType, three: FieldType
) -> None:
    assert united(united(one, two), three) == united(one, united(two, three))


@given(number_types, number_types, number_types)
def test_numbers_grow_to_the_same_in_any_order_unless_an_order_meets_a_conflict(
    one: FieldType, two: FieldType, three: FieldType
) -> None:
    outcomes = {
        to_text(united(united(one, two), three)),
        to_text(united(one, united(two, three))),
        to_text(united(united(one, three), two)),
    }

    assert len(outcomes - {CONFLICT}) <= 1


def to_text(outcome: FieldType | str) -> str:
    return outcome if isinstance(outcome, str) else json.dumps(to_json(outcome), sort_keys=True)


@given(types | number_types)
def test_a_union_with_itself_adds_nothing(one: FieldType) -> None:
    assert united(one, one) == one


@given(types | number_types, types | number_types)
def test_a_union_holds_both(one: FieldType, two: FieldType) -> None:
    both = united(one, two)

    if both is not CONFLICT:
        assert united(both, one) == united(both, two) == both


@given(objects, objects)
def test_a_union_that_adds_nothing_is_the_known_object_itself(one: ObjectType, two: ObjectType) -> None:
    both = united(one, two)

    if isinstance(both, ObjectType):
        assert union_objects(both, one) is both
        assert union_objects(both, two) is both
        assert union_objects(both, EMPTY) is both
        assert (union_objects(one, both) is one) == (both == one)


@given(objects, objects)
def test_a_union_changes_neither_side(one: ObjectType, two: ObjectType) -> None:
    before = json.dumps([to_json(one), to_json(two)])

    united(one, two)

    assert json.dumps([to_json(one), to_json(two)]) == before


def test_new_fields_come_behind_the_known_ones() -> None:
    known, found = ObjectType({"b": TEXT, "a": TEXT}), ObjectType({"c": LONG, "a": TEXT, "0": DATE})

    assert list(union_objects(known, found).fields) == ["b", "a", "c", "0"]


def test_objects_arrays_and_maps_grow_within() -> None:
    known = ObjectType(
        {"o": ObjectType({"a": LONG}), "l": ArrayType(LONG), "m": MapType(ObjectType({"a": TEXT}))}
    )
    found = ObjectType(
        {"o": ObjectType({"b": TEXT}), "l": ArrayType(DOUBLE), "m": MapType(ObjectType({"b": DATE}))}
    )

    assert union_objects(known, found) == ObjectType(
        {
            "o": ObjectType({"a": LONG, "b": TEXT}),
            "l": ArrayType(DOUBLE),
            "m": MapType(ObjectType({"a": TEXT, "b": DATE})),
        }
    )


# --- Widening ---


@pytest.mark.parametrize(
    ("one", "two", "wider"),
    [
        (LONG, DOUBLE, DOUBLE),
        (LONG, LARGE_LONG, LARGE_LONG),
        (decimal(10, 2), decimal(12, 2), decimal(12, 2)),
        (decimal(10, 2), decimal(10, 4), decimal(12, 4)),
        (decimal(10, 0), decimal(4, 4), decimal(14, 4)),
        (decimal(34, 0), decimal(4, 4), decimal(38, 4)),
        (LONG, decimal(5, 2), decimal(21, 2)),
        (LONG, decimal(30, 2), decimal(30, 2)),
        (LONG, decimal(19, 0), decimal(19, 0)),
        (LONG, decimal(19, 19), decimal(38, 19)),
        (LARGE_LONG, decimal(5, 2), decimal(21, 2)),
    ],
)
def test_s27_numbers_widen_from_either_side(one: FieldType, two: FieldType, wider: FieldType) -> None:
    assert union_types(one, two) == wider
    assert union_types(two, one) == wider


@pytest.mark.parametrize("one", SCALARS)
@pytest.mark.parametrize("two", SCALARS)
def test_of_single_values_only_equal_ones_and_numbers_go_together(one: Scalar, two: Scalar) -> None:
    expected = one if one == two else DOUBLE if {one, two} == {LONG, DOUBLE} else CONFLICT

    assert united(one, two) == expected


@pytest.mark.parametrize(
    "within", [lambda kind: kind, ArrayType, MapType, lambda kind: ObjectType({"a": kind})]
)
@pytest.mark.parametrize(
    ("known", "found", "reason", "loss"),
    [
        (
            DOUBLE,
            LARGE_LONG,
            "NUMBER_NOT_EXACT",
            "is long, but it is known as double, and no double holds some of",
        ),
        (
            LARGE_LONG,
            DOUBLE,
            "FIELD_TYPE_CONFLICT",
            "is double, but it is known as long, and no double holds some of",
        ),
        (
            decimal(10, 2),
            DOUBLE,
            "FIELD_TYPE_CONFLICT",
            "decimal(10,2), whose digits no double keeps. Send it as dec",
        ),
        (
            DOUBLE,
            decimal(38, 38),
            "FIELD_TYPE_CONFLICT",
            "double, whose digits no double keeps. Send it as double",
        ),
        (
            LONG,
            decimal(20, 20),
            "FIELD_TYPE_CONFLICT",
            "long, and both together have more than 38 digits. Send",
        ),
    ],
)
def test_s27_what_would_cost_a_digit_is_a_conflict_that_says_so(
    within: Callable[[FieldType], FieldType], known: FieldType, found: FieldType, reason: str, loss: str
) -> None:
    conflict = conflict_of(within(known), within(found))

    assert conflict.reason == reason
    assert loss in conflict.message


@pytest.mark.parametrize(
    ("known", "found", "way_out"),
    [
        (LARGE_LONG, DOUBLE, "Create the dataset that has a double with the field declared as long, or"),
        (DOUBLE, LARGE_LONG, "Create the dataset that has a double with the field declared as long, or"),
        (
            decimal(9, 2),
            DOUBLE,
            "Create the dataset that has a double with the field declared as decimal(9,2), or",
        ),
        (decimal(38, 0), decimal(9, 2), "Declare it as text in both, or"),
        (DOUBLE, TEXT, "Send the same type, or"),
    ],
)
def test_a_conflict_of_numbers_between_datasets_says_which_to_declare(
    known: FieldType, found: FieldType, way_out: str
) -> None:
    between = conflict_of(known, found).between(Holder("1", "Shop"), Holder("2", "Our customers"))

    assert f"{found} in 'Shop' (1), but {known} in 'Our customers' (2)" in between.message
    assert f". {way_out} create the dataset with the tag unifiedProfile: enabled:false." in between.message


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (decimal(35, 0), decimal(4, 4)),
        (LONG, decimal(20, 20)),
        (decimal(10, 2), TEXT),
        (decimal(10, 2), TIMESTAMP),
    ],
)
def test_decimals_that_no_decimal_holds_are_a_conflict(one: FieldType, two: FieldType) -> None:
    assert united(one, two) == united(two, one) == CONFLICT


KINDS: list[FieldType] = [TEXT, decimal(5, 2), ArrayType(TEXT), MapType(TEXT), ObjectType({"a": TEXT})]


@pytest.mark.parametrize(
    ("one", "two"), [(one, two) for one in KINDS for two in KINDS if one is not two], ids=str
)
def test_kinds_do_not_go_together(one: FieldType, two: FieldType) -> None:
    assert united(one, two) == CONFLICT


# --- Conflicts ---


def test_a_conflict_names_the_path_and_both_types() -> None:
    known = ObjectType({"person": ObjectType({"age": DOUBLE})})
    found = ObjectType({"person": ObjectType({"age": TEXT})})

    conflict = conflict_of(known, found)

    assert conflict.reason == "FIELD_TYPE_CONFLICT"
    assert (conflict.path, conflict.known, conflict.found) == (("person", "age"), DOUBLE, TEXT)
    assert conflict.message == "The field 'person.age' is string, but it is known as double."
    assert conflict.metadata == {"path": "person.age", "type": "string", "other_type": "double"}


@pytest.mark.parametrize(
    ("known", "found", "path"),
    [
        (ArrayType(TEXT), ArrayType(LONG), "x[]"),
        (ArrayType(ArrayType(TEXT)), ArrayType(ArrayType(LONG)), "x[][]"),
        (ArrayType(ObjectType({"a": TEXT})), ArrayType(ObjectType({"a": LONG})), "x[].a"),
        (MapType(TEXT), MapType(LONG), "x.*"),
        (MapType(ObjectType({"a": TEXT})), MapType(ObjectType({"a": LONG})), "x.*.a"),
    ],
)
def test_a_conflict_is_named_by_its_path_through_arrays_and_maps(
    known: FieldType, found: FieldType, path: str
) -> None:
    conflict = conflict_of(ObjectType({"x": known}), ObjectType({"x": found}))

    assert conflict.metadata == {"path": path, "type": "long", "other_type": "string"}


@pytest.mark.parametrize(
    ("field_type", "word"),
    [
        (TEXT, "string"),
        (BOOLEAN, "boolean"),
        (LONG, "long"),
        (DOUBLE, "double"),
        (DATE, "date"),
        (TIMESTAMP, "timestamp"),
        (decimal(10, 2), "decimal(10,2)"),
        (ArrayType(MapType(LONG)), "array<map<long>>"),
        (ObjectType({"a": TEXT}), "object"),
    ],
)
def test_types_are_named_in_messages_by_one_word(field_type: FieldType, word: str) -> None:
    assert str(field_type) == word


def test_names_that_differ_in_case_alone_are_a_conflict() -> None:
    known = ObjectType({"person": ObjectType({"eMail": TEXT})})
    found = ObjectType({"person": ObjectType({"email": TEXT})})

    conflict = conflict_of(known, found)

    assert conflict.path == ("person", "email")
    assert conflict.message == (
        "The field 'person.email' differs from 'eMail' beside it in case alone: write it as that, or choose another "
        "name."
    )


def test_names_of_one_newcomer_that_differ_in_case_alone_are_a_conflict_too() -> None:
    found = ObjectType({"STRASSE": TEXT, "straße": TEXT})

    conflict = conflict_of(EMPTY, found)

    assert conflict.metadata["path"] == "straße"


def test_names_may_differ_in_case_in_different_objects() -> None:
    known, found = ObjectType({"a": ObjectType({"x": TEXT})}), ObjectType({"b": ObjectType({"X": TEXT})})

    assert union_objects(known, found) == ObjectType({**known.fields, **found.fields})


def test_a_conflict_between_datasets_names_both_and_the_way_out() -> None:
    conflict = conflict_of(ObjectType({"age": DOUBLE}), ObjectType({"age": TEXT}))

    between = conflict.between(Holder("shop"), Holder("crm", "Our customers"))

    assert between.message == (
        "The field 'age' is string in 'shop', but double in 'Our customers' (crm). Send the same type, or create the "
        "dataset with the tag unifiedProfile: enabled:false."
    )
    assert between.metadata == {**conflict.metadata, "dataset_id": "shop", "other_dataset_id": "crm"}
    assert (between.path, between.known, between.found) == (("age",), DOUBLE, TEXT)
    assert conflict.metadata == {"path": "age", "type": "string", "other_type": "double"}


# --- Paths ---


@pytest.mark.parametrize(
    ("path", "dotted"),
    [
        ((), ""),
        (("name",), "name"),
        (("personalEmail", "address"), "personalEmail.address"),
        (("orders", "[]", "items", "[]", "sku"), "orders[].items[].sku"),
        (("baskets", "[]", "[]"), "baskets[][]"),
        (("scores", "*", "value"), "scores.*.value"),
    ],
)
def test_paths_are_written_with_dots(path: FieldPath, dotted: str) -> None:
    assert dotted_path(path) == dotted


def test_leaves_are_everything_but_objects_in_their_order() -> None:
    array = ArrayType(ObjectType({"sku": TEXT}))
    schema = ObjectType(
        {
            "a": ObjectType({"b": TEXT, "c": ObjectType({"d": LONG}), "e": EMPTY}),
            "f": array,
            "g": MapType(EMPTY),
        }
    )

    assert list(leaves(schema)) == [
        (("a", "b"), TEXT),
        (("a", "c", "d"), LONG),
        (("f",), array),
        (("g",), MapType(EMPTY)),
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (("identityMap",), IDENTITY_MAP_TYPE),
        (("identityMap", "Email"), IDENTITY_MAP_TYPE.value),
        (("identityMap", "Email", "[]", "primary"), BOOLEAN),
        (("person", "age"), LONG),
        (("person", "name"), None),
        (("person", "name", "first"), None),
        (("person", "age", "years"), None),
        (("price", "currency"), None),
    ],
)
def test_the_type_at_a_path_is_found_through_arrays_and_maps(
    path: FieldPath, found: FieldType | None
) -> None:
    schema = ObjectType(
        {"identityMap": IDENTITY_MAP_TYPE, "person": ObjectType({"age": LONG}), "price": decimal(10, 2)}
    )

    assert type_at(schema, path) == found


def test_the_type_at_no_path_is_the_schema_itself() -> None:
    assert type_at(EMPTY, ()) is EMPTY


@given(objects)
def test_every_leaf_is_found_at_its_path(schema: ObjectType) -> None:
    assert all(type_at(schema, path) == field_type for path, field_type in leaves(schema))


# --- Written down ---


def test_types_are_written_as_words_and_one_key_objects() -> None:
    schema = ObjectType(
        {
            "id": TEXT,
            "price": decimal(10, 2),
            "tags": ArrayType(TEXT),
            "scores": MapType(ObjectType({"x": DOUBLE})),
        }
    )

    assert to_json(schema) == {
        "object": {
            "id": "string",
            "price": {"decimal": [10, 2]},
            "tags": {"array": "string"},
            "scores": {"map": {"object": {"x": "double"}}},
        }
    }


def test_what_is_kept_of_a_map_is_written_beside_what_the_map_is() -> None:
    some = MapSelection(TEXT, {"a": TEXT})
    rest = MapSelection(ObjectType({"x": LONG}), {}, ObjectType({"x": LONG}))

    assert to_json(some) == {"map": "string", "keys": {"a": "string"}, "others": None}
    assert to_json(rest) == {
        "map": {"object": {"x": "long"}},
        "keys": {},
        "others": {"object": {"x": "long"}},
    }


def test_a_selection_of_a_map_keeps_its_keys_and_what_is_said_of_all_others() -> None:
    chosen = MapSelection(LONG, {"a": TEXT})

    assert (chosen.kept("a"), chosen.kept("b")) == (TEXT, None)
    assert MapSelection(LONG, {"a": TEXT}, DATE).kept("b") == DATE
    assert MapType(LONG).kept("b") == LONG


def test_what_grows_is_known_at_every_path_meanwhile() -> None:
    growing = GrowingObject(ObjectType({"a": ObjectType({"b": TEXT})}))
    growing.add(ObjectType({"a": ObjectType({"c": TEXT})}))

    assert growing.at(("a",)) == ObjectType({"b": TEXT, "c": TEXT})
    assert growing.at(("a", "b")) == growing.at(("a", "c")) == TEXT
    assert growing.at(("a", "d")) is None
    assert growing.at(("e",)) is None
