import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from profile_export.domain.errors import Reason
from profile_export.domain.schemas.learning import (
    MAX_DEPTH,
    MAX_NAMES,
    ValueRefusedError,
    check_name,
    check_record,
)
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    LARGE_LONG,
    LONG,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    TypeConflictError,
)


def learn(record: dict[str, Any], **known: FieldType) -> tuple[dict[str, Any], dict[str, FieldType]]:
    value, fields = check_record(record, ObjectType(known), set())
    return value, dict(fields.fields)


def refusal(record: dict[str, Any], **known: FieldType) -> ValueRefusedError:
    with pytest.raises(ValueRefusedError) as refused:
        learn(record, **known)
    return refused.value


def conflict(record: dict[str, Any], **known: FieldType) -> str:
    with pytest.raises(TypeConflictError) as refused:
        learn(record, **known)
    return refused.value.message


# --- Learning ---


def test_types_are_learned_by_the_json_kind_alone() -> None:
    record = {"a": "2024-01-01", "b": True, "c": 1, "d": {"e": 1.5}, "f": [["x"]]}

    value, fields = learn(record)

    assert value == {"a": "2024-01-01", "b": True, "c": 1.0, "d": {"e": 1.5}, "f": [["x"]]}
    assert type(value["c"]) is float
    assert fields == {
        "a": TEXT,
        "b": BOOLEAN,
        "c": DOUBLE,
        "d": ObjectType({"e": DOUBLE}),
        "f": ArrayType(ArrayType(TEXT)),
    }


def test_nulls_empty_objects_and_empty_arrays_teach_nothing() -> None:
    untyped: set[FieldPath] = set()

    value, fields = check_record(
        {"a": None, "b": {}, "c": {"d": None}, "e": [], "f": [None, {}], "g": {"h": [[]]}}, EMPTY, untyped
    )

    assert value == {"e": [], "f": [None, None], "g": {"h": [[]]}}
    assert fields is EMPTY
    assert untyped == {("e",), ("f",), ("g", "h"), ("g", "h", "[]")}


def test_a_record_without_a_value_is_empty() -> None:
    assert learn({"a": None}, a=TEXT) == ({}, {"a": TEXT})


def test_what_is_known_stays_the_same_object_when_nothing_is_new() -> None:
    known = ObjectType(
        {"a": TEXT, "b": ObjectType({"c": DOUBLE}), "d": ArrayType(TEXT), "e": MapType(BOOLEAN)}
    )

    _, fields = check_record({"a": "x", "b": {"c": 1}, "d": ["y"], "e": {"k": True}}, known, set())

    assert fields is known


def test_objects_grow_inside_arrays_and_maps() -> None:
    known: dict[str, FieldType] = {
        "a": ArrayType(ObjectType({"x": TEXT})),
        "m": MapType(ObjectType({"x": TEXT})),
    }

    _, fields = learn({"a": [{"y": 1}, {"z": True}], "m": {"k": {"y": "1"}}}, **known)

    assert fields["a"] == ArrayType(ObjectType({"x": TEXT, "y": DOUBLE, "z": BOOLEAN}))
    assert fields["m"] == MapType(ObjectType({"x": TEXT, "y": TEXT}))


def test_nulls_inside_an_array_keep_their_place() -> None:
    assert learn({"a": [None, "x", None]})[0] == {"a": [None, "x", None]}


def test_a_map_keeps_its_keys_and_drops_those_without_a_value() -> None:
    value, fields = learn({"m": {"a.b": "x", "c": None}, "n": {"c": None}}, m=MapType(TEXT), n=MapType(TEXT))

    assert value == {"m": {"a.b": "x"}}
    assert fields == {"m": MapType(TEXT), "n": MapType(TEXT)}


def test_segment_membership_is_a_map_even_where_nobody_declared_it() -> None:
    entry = {"lastQualificationTime": "2024-01-01T01:00:00+01:00", "version": 2}

    value, fields = learn({"segmentMembership": {"ups": {"s1": entry}}})

    stored = value["segmentMembership"]["ups"]["s1"]
    assert stored == {"lastQualificationTime": datetime(2024, 1, 1, tzinfo=UTC), "version": 2.0}
    assert isinstance(fields["segmentMembership"], MapType)
    assert fields["segmentMembership"] != SEGMENT_MEMBERSHIP_TYPE


# --- Known types ---


def test_an_instant_is_stored_in_utc() -> None:
    value, fields = learn({"t": "2024-01-01T00:30:00.5+01:00"}, t=TIMESTAMP)

    assert value == {"t": datetime(2023, 12, 31, 23, 30, 0, 500_000, tzinfo=UTC)}
    assert value["t"].tzinfo is UTC
    assert fields == {"t": TIMESTAMP}


def test_anything_else_is_no_instant() -> None:
    error = refusal({"o": {"t": "2024-01-01T00:00:00"}}, o=ObjectType({"t": TIMESTAMP}))

    assert error.path == ("o", "t")
    assert "'2024-01-01T00:00:00', which has no offset" in error.reason


def test_a_date_is_read_where_one_is_known() -> None:
    assert learn({"d": "2024-02-29"}, d=DATE)[0] == {"d": date(2024, 2, 29)}
    assert "'2024-02-30', which is not a date" in refusal({"d": "2024-02-30"}, d=DATE).reason
    assert "not a date" in refusal({"d": "20240229"}, d=DATE).reason


@pytest.mark.parametrize(
    ("sent", "learned"),
    [
        (-(2**63), LONG),
        (2**63 - 1, LARGE_LONG),
        (2**53, LONG),
        (2**53 + 1, LARGE_LONG),
        (-(2**53) - 1, LARGE_LONG),
        (2**60, LONG),
        (3.0, LONG),
        (Decimal("3.0"), LONG),
        (Decimal("9007199254740993.00"), LARGE_LONG),
    ],
)
def test_s27_a_long_takes_integers_of_64_bits_and_says_whether_a_double_holds_them(
    sent: float | Decimal, learned: Scalar
) -> None:
    for known, wrapped, expected in (
        (LONG, sent, learned),
        (ArrayType(LONG), [1, sent, 2], ArrayType(learned)),
        (MapType(LONG), {"k": sent, "l": 1}, MapType(learned)),
        (ObjectType({"o": LONG}), {"o": sent}, ObjectType({"o": learned})),
    ):
        value, fields = learn({"n": wrapped}, n=known)

        assert value == {"n": wrapped}
        assert fields == {"n": expected}
    assert type(learn({"n": sent}, n=LONG)[0]["n"]) is int
    assert learn({"n": 1}, n=LARGE_LONG)[1] == {"n": LARGE_LONG}


@pytest.mark.parametrize("sent", [2**63, -(2**63) - 1, 3.5, math.inf, math.nan, Decimal("1e999999")])
def test_a_long_takes_nothing_else(sent: float | Decimal) -> None:
    assert "not an integer of 64 bits" in refusal({"n": sent}, n=LONG).reason


@pytest.mark.parametrize("sent", [0, 99.99, -99, Decimal("12.50"), Decimal("0.0000"), Decimal("9E+1")])
def test_a_decimal_takes_numbers_that_fit(sent: float | Decimal) -> None:
    assert learn({"n": sent}, n=DecimalType(4, 2))[0] == {"n": Decimal(str(sent))}


@pytest.mark.parametrize("sent", [100, 0.001, Decimal("1.234"), Decimal("1e999999"), math.inf, math.nan])
def test_a_decimal_takes_no_number_that_does_not_fit(sent: float | Decimal) -> None:
    assert "does not fit decimal(4,2)" in refusal({"n": sent}, n=DecimalType(4, 2)).reason


@pytest.mark.parametrize("sent", [2**53, -(2**53), 2**60, 10**22])
def test_a_double_takes_integers_that_it_holds_exactly(sent: int) -> None:
    assert learn({"n": sent})[0] == {"n": sent}


@pytest.mark.parametrize("sent", [2**53 + 1, -(2**53) - 1, 10**23])
def test_a_double_refuses_integers_that_it_does_not_hold_exactly(sent: int) -> None:
    error = refusal({"o": {"n": sent}}, o=ObjectType({"n": DOUBLE}))

    assert error.path == ("o", "n")
    assert "The field 'o.n' is the integer" in error.reason
    assert "send it as text" in error.reason


@pytest.mark.parametrize("sent", [math.nan, math.inf, -math.inf, 10**400, Decimal("1e999")])
def test_what_no_double_can_hold_is_refused(sent: float | Decimal) -> None:
    assert "which no double can hold" in refusal({"n": sent}).reason


@pytest.mark.parametrize(
    ("sent", "known", "message"),
    [
        (1, TEXT, "The field 'f' is double, but it is known as string."),
        ("1", DOUBLE, "The field 'f' is string, but it is known as double."),
        ("1", BOOLEAN, "The field 'f' is string, but it is known as boolean."),
        (True, LONG, "The field 'f' is boolean, but it is known as long."),
        (1, TIMESTAMP, "The field 'f' is double, but it is known as timestamp."),
        (1, MapType(TEXT), "The field 'f' is double, but it is known as map<string>."),
        ({"a": 1}, TEXT, "The field 'f' is object, but it is known as string."),
        ([None, "a"], TEXT, "The field 'f' is array, but it is known as string."),
        ("x", ArrayType(TEXT), "The field 'f' is string, but it is known as array<string>."),
        ([1], ArrayType(TEXT), "The field 'f[]' is double, but it is known as string."),
        ({"k": 1}, MapType(TEXT), "The field 'f.*' is double, but it is known as string."),
    ],
)
def test_a_conflict_names_the_path_and_both_types(sent: Any, known: FieldType, message: str) -> None:
    assert conflict({"f": sent}, f=known) == message


def test_items_of_one_array_have_one_type() -> None:
    assert conflict({"a": [1, "x"]}) == "The field 'a[]' is string, but it is known as double."


# --- Names and text ---


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"": 1}, "empty name"),
        ({"a.b": 1}, "a dot in its name"),
        ({"a\0": 1}, "a NUL character in its name"),
        ({"a\ud800": 1}, "half of a surrogate pair"),
        ({"_row": 1}, "system column '_row': give it another name"),
        ({"_ROW": 1}, "system column '_row': give it another name"),
        ({"timeSeriesEvents": [1]}, "system column 'timeSeriesEvents'"),
        ({"a": "\udfff"}, "The field 'a' holds half of a surrogate pair"),
    ],
)
def test_names_and_text_that_cannot_be_stored_are_refused(record: dict[str, Any], words: str) -> None:
    assert words in refusal(record).reason


def test_a_key_of_a_map_must_be_text_too() -> None:
    assert "half of a surrogate pair" in refusal({"m": {"\ud800": "x"}}, m=MapType(TEXT)).reason


def test_text_beyond_ascii_is_kept() -> None:
    assert learn({"straße": "\U0001f600é\0"}) == ({"straße": "\U0001f600é\0"}, {"straße": TEXT})


def test_system_names_are_free_below_the_top() -> None:
    assert learn({"a": {"_row": 1}})[0] == {"a": {"_row": 1}}


def test_names_that_differ_in_case_alone_are_refused() -> None:
    assert (
        conflict({"Email": "x"}, email=TEXT)
        == "The field 'Email' differs from 'email' beside it in case alone: write it as that, or choose another name."
    )
    assert "'o.B' differs from 'b' beside it" in conflict({"o": {"b": 1, "B": 1}})
    assert learn({"Email": None}, email=TEXT)[0] == {}


def test_nesting_has_an_end() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: Any = 1
        for _ in range(depth):
            value = {"a": value}
        return {"a": value}

    assert learn(nested(MAX_DEPTH))[0] == nested(MAX_DEPTH)
    assert f"nested deeper than {MAX_DEPTH} levels" in refusal(nested(MAX_DEPTH + 1)).reason


def test_an_object_has_not_endlessly_many_names() -> None:
    full = {f"n{number}": TEXT for number in range(MAX_NAMES)}

    with pytest.raises(ValueRefusedError, match="more than 5000 names"):
        check_name("one", full, (), {})


def test_a_refusal_of_the_row_itself_says_so() -> None:
    refused = ValueRefusedError((), "is not JSON", Reason.JSON_INVALID)

    assert (refused.reason, refused.complaint) == ("The row is not JSON.", "is not JSON")
    assert refused.code == "JSON_INVALID"


@pytest.mark.parametrize(
    ("value", "known", "code"),
    [
        (2**53 + 1, DOUBLE, "NUMBER_NOT_EXACT"),
        (Decimal("1.001"), DecimalType(5, 2), "NUMBER_NOT_EXACT"),
        (1.5, LONG, "VALUE_INVALID"),
        (math.inf, DOUBLE, "VALUE_INVALID"),
        ("noon", TIMESTAMP, "VALUE_INVALID"),
    ],
)
def test_a_number_that_would_lose_digits_has_a_code_of_its_own(
    value: Any, known: FieldType, code: str
) -> None:
    assert refusal({"n": value}, n=known).code == code
