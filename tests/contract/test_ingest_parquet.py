import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import SYSTEM_COLUMNS
from profile_export.domain.catalog.datasets import DatasetKind, IdentityField
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    LARGE_LONG,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)
from profile_export.ingest.formats import parquet
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.output import RowsRefusedError
from profile_export.ingest.rows.identities import NO_PRIMARY
from tests.contract.ingesting import CRM, Uploader

EMAIL = IdentityField(("contact", "email"), "Email")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def people(count: int = 1, /, **columns: Any) -> pa.Table:
    return pa.table({"crmId": [str(number) for number in range(1, count + 1)], **columns})


def _deep(levels: int) -> pa.DataType:
    return pa.struct([("a", _deep(levels - 1))]) if levels else pa.string()


def column(values: list[Any], kind: pa.DataType) -> pa.Table:
    return people(len(values), f=pa.array(values, kind))


# --- What is written ---


def test_rows_come_back_as_sent_with_their_system_columns(uploader: Uploader) -> None:
    result = uploader.ingest(people(10, n=pa.array(range(10))), CRM, rows_per_file=4)

    tables = uploader.tables(result)
    rows = uploader.rows(result)
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert tables[0].column_names == [*SYSTEM_COLUMNS, "identityMap", "segmentMembership", "crmId", "n"]
    assert [(row["_row"], row["_identity"], row["n"]) for row in rows] == [
        (n, str(n + 1), n) for n in range(10)
    ]
    for table in tables:
        keys = list(
            zip(*(table[name].to_pylist() for name in ("_key_high", "_key_low", "_row")), strict=True)
        )
        assert keys == sorted(keys)


def test_the_same_rows_as_json_lines_and_as_parquet_are_stored_alike(uploader: Uploader) -> None:
    sent = [
        {
            "crmId": "1",
            "a": "x",
            "o": {"b": 1.5, "l": ["y", None]},
            "contact": {"email": "e"},
            "flag": None,
            "identityMap": None,
        },
        {"crmId": "2", "identityMap": {"ECID": [{"id": "9", "primary": True}]}, "a": "z", "flag": True},
    ]
    as_json = uploader.ingest(sent, CRM, EMAIL)
    expected = [uploader.rows(as_json), as_json.fields, as_json.identity_namespaces]

    as_parquet = uploader.ingest(pa.Table.from_pylist(sent), CRM, EMAIL)

    assert [uploader.rows(as_parquet), as_parquet.fields, as_parquet.identity_namespaces] == expected


@pytest.mark.parametrize(
    ("values", "kind", "known", "stored"),
    [
        ([1, None], pa.int8(), LONG, [1, None]),
        ([2**63 - 1], pa.uint64(), LARGE_LONG, [2**63 - 1]),
        ([[1], [2**53 + 1]], pa.list_(pa.int64()), ArrayType(LARGE_LONG), [[1], [2**53 + 1]]),
        ([[("k", 2**53 + 1)]], pa.map_(pa.string(), pa.int64()), MapType(LARGE_LONG), [{"k": 2**53 + 1}]),
        ([1.5], pa.float32(), DOUBLE, [1.5]),
        ([True], pa.bool_(), BOOLEAN, [True]),
        (["x"], pa.large_string(), TEXT, ["x"]),
        (["x", "x"], pa.dictionary(pa.int32(), pa.string()), TEXT, ["x", "x"]),
        ([Decimal("1.50")], pa.decimal128(5, 2), DecimalType(5, 2), [Decimal("1.50")]),
        ([date(2024, 1, 1)], pa.date32(), DATE, [date(2024, 1, 1)]),
        ([NOON], pa.timestamp("s"), TIMESTAMP, [NOON]),
        ([NOON], pa.timestamp("us"), TIMESTAMP, [NOON]),
        ([NOON], pa.timestamp("ns", "Europe/Amsterdam"), TIMESTAMP, [NOON]),
        ([[1], None, []], pa.list_(pa.int64()), ArrayType(LONG), [[1], None, []]),
        ([[1, 2], None], pa.list_(pa.int64(), 2), ArrayType(LONG), [[1, 2], None]),
        ([{"a": 1}, None], pa.struct([("a", pa.int64())]), ObjectType({"a": LONG}), [{"a": 1}, None]),
        ([{"k": 1, "n": None}, {}], pa.map_(pa.string(), pa.int64()), MapType(LONG), [{"k": 1}, None]),
        (
            [{"k": {"a": None}, "l": {"a": 1}}],
            pa.map_(pa.string(), pa.struct([("a", pa.int64())])),
            MapType(ObjectType({"a": LONG})),
            [{"l": {"a": 1}}],
        ),
    ],
)
def test_arrow_types_have_their_field_types(
    uploader: Uploader, values: list[Any], kind: pa.DataType, known: FieldType, stored: list[Any]
) -> None:
    result = uploader.ingest(column(values, kind), CRM)

    assert result.fields.fields["f"] == known
    assert [value.get("f") for value in uploader.values(result)] == stored


def test_nanoseconds_are_taken_where_none_is_lost(uploader: Uploader) -> None:
    result = uploader.ingest(people(f=pa.array([-1_000], pa.timestamp("ns"))), CRM)

    assert uploader.values(result)[0]["f"] == datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert uploader.reasons(people(2, f=pa.array([2_000, -1_999], pa.timestamp("ns"))), CRM) == [
        "2: The field 'f' has digits behind the microsecond, which would be lost: round it to six."
    ]


def written_as_int96(column: pa.Array) -> bytes:
    """A file of one person with a column of the legacy type."""
    written = pa.BufferOutputStream()
    table = pa.table({"crmId": [str(number) for number in range(len(column))], "t": column})
    pq.write_table(table, written, use_deprecated_int96_timestamps=True)
    return bytes(written.getvalue().to_pybytes())


def test_instants_in_the_legacy_type_are_taken_where_nothing_is_lost(uploader: Uploader) -> None:
    far = [datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), None]  # noqa: DTZ001 - without a zone
    sent = written_as_int96(pa.array(far, pa.timestamp("us")))
    nested = written_as_int96(pa.array([[datetime(1600, 1, 1, 0, 0, 0, 7)]], pa.list_(pa.timestamp("us"))))  # noqa: DTZ001

    values = uploader.values(uploader.ingest(sent, CRM, upload_format="parquet"))
    inside = uploader.values(uploader.ingest(nested, CRM, upload_format="parquet"))

    assert [value.get("t") for value in values] == [time and time.replace(tzinfo=UTC) for time in far]
    assert inside[0]["t"] == [datetime(1600, 1, 1, 0, 0, 0, 7, tzinfo=UTC)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1_000, 1_999], pa.timestamp("ns")),
        pa.array([{"a": 1_001}], pa.struct([("a", pa.timestamp("ns"))])),
    ],
)
def test_nanoseconds_in_the_legacy_type_are_not_dropped_in_silence(
    uploader: Uploader, column: pa.Array
) -> None:
    [error] = uploader.refused(written_as_int96(column), CRM, upload_format="parquet")

    assert (error.row, error.code) == (None, "FILE_INVALID")
    assert error.message.startswith(
        "The column 't' (INT96) has digits behind the microsecond, which would be lost"
    )


@pytest.mark.parametrize("known", [TEXT, LONG])
def test_a_decimal_without_a_fraction_is_an_identity(uploader: Uploader, known: FieldType) -> None:
    ids = pa.array([Decimal("7.00"), Decimal("-120000.00")], pa.decimal128(38, 2))

    task = replace(uploader.task(pa.table({"crmId": ids}), CRM), fields=ObjectType({"crmId": known}))
    result = ingest(task)

    assert [row["_identity"] for row in uploader.rows(result)] == ["7", "-120000"]
    assert result.fields.fields["crmId"] == known


@pytest.mark.parametrize("kind", [pa.decimal32(3, 1), pa.decimal64(12, 1), pa.decimal128(38, 1)])
def test_a_decimal_of_any_width_is_an_identity(uploader: Uploader, kind: pa.DataType) -> None:
    result = uploader.ingest(pa.table({"crmId": pa.array([Decimal("7.0")], kind)}), CRM)

    assert uploader.values(result) == [{"crmId": "7"}]


def test_a_decimal_of_38_digits_is_an_identity(uploader: Uploader) -> None:
    ids = pa.array([Decimal(10**37 + 1), Decimal(7)], pa.decimal128(38, 0))

    result = uploader.ingest(pa.table({"crmId": ids}), CRM)

    assert [row["crmId"] for row in uploader.rows(result)] == [str(10**37 + 1), "7"]


def test_no_other_number_is_an_identity(uploader: Uploader) -> None:
    decimals = pa.table({"crmId": pa.array([Decimal("7.00"), Decimal("7.50")], pa.decimal128(9, 2))})
    doubles = pa.table({"crmId": [7.0]})

    assert uploader.reasons(decimals, CRM) == [
        "2: The field 'crmId' is a decimal with a fraction, but an identity is text or an integer."
    ]
    [error] = uploader.refused(doubles, CRM)
    assert "'crmId' is double, but it is known as string" in error.message


def test_a_decimal_in_an_identity_map_is_an_identity(uploader: Uploader) -> None:
    item = pa.struct([("id", pa.decimal128(9, 2)), ("primary", pa.bool_())])
    maps = [[("A", [{"id": Decimal(text), "primary": True}])] for text in ("7.00", "7.50")]
    sent = pa.table({"identityMap": pa.array(maps, pa.map_(pa.string(), pa.list_(item)))})

    reasons = uploader.reasons(sent, CRM)
    result = uploader.ingest(sent, CRM, max_bad_records=1)

    assert reasons == [
        "2: The field 'identityMap.A[].id' is a decimal with a fraction, but an identity is text or an integer."
    ]
    assert [row["_identity"] for row in uploader.rows(result)] == ["7"]


def test_lists_of_nulls_are_left_out_unless_the_dataset_knows_their_items(uploader: Uploader) -> None:
    sent = people(2, a=[[], [None]], b=[[], [None]], c=[None, None])

    result = uploader.ingest(sent, CRM, known=ObjectType({"b": ArrayType(TEXT)}))

    assert [value.get("b") for value in uploader.values(result)] == [[], [None]]
    assert list(result.fields.fields) == ["identityMap", "segmentMembership", "crmId", "b"]
    assert result.untyped == (("a",),)


def test_a_file_without_rows_or_of_empty_groups_has_no_data_file(uploader: Uploader) -> None:
    result = uploader.ingest(people(0, n=pa.array([], pa.int64())), CRM)

    assert (result.files, result.rows) == ((), 0)
    assert result.fields.fields["n"] == LONG


# --- Against what is known ---


@pytest.mark.parametrize(
    ("values", "kind", "known", "grown", "stored"),
    [
        ([1, 2**53], pa.int64(), DOUBLE, DOUBLE, [1.0, 2.0**53]),
        ([1.5], pa.float64(), LONG, DOUBLE, [1.5]),
        ([7], pa.int32(), DecimalType(10, 2), DecimalType(21, 2), [Decimal("7.00")]),
        (["2024-01-01T13:00:00+01:00", None], pa.string(), TIMESTAMP, TIMESTAMP, [NOON, None]),
        (["2024-01-01"], pa.string(), DATE, DATE, [date(2024, 1, 1)]),
        (
            [[{"t": "2024-01-01T12:00:00Z"}]],
            pa.list_(pa.struct([("t", pa.string())])),
            ArrayType(ObjectType({"t": TIMESTAMP, "x": TEXT})),
            ArrayType(ObjectType({"t": TIMESTAMP, "x": TEXT})),
            [[{"t": NOON, "x": None}]],
        ),
        (
            [{"k": 1, "l": None}, {"k": None, "l": None}, None, {"k": 3, "l": 4}],
            pa.struct([("k", pa.int64()), ("l", pa.int64())]),
            MapType(DOUBLE),
            MapType(DOUBLE),
            [{"k": 1.0}, None, None, {"k": 3.0, "l": 4.0}],
        ),
        (
            [{"a": 1}],
            pa.struct([("a", pa.int64())]),
            ObjectType({"b": TEXT}),
            ObjectType({"b": TEXT, "a": LONG}),
            [{"b": None, "a": 1}],
        ),
    ],
)
def test_columns_are_brought_into_the_known_types(
    uploader: Uploader,
    values: list[Any],
    kind: pa.DataType,
    known: FieldType,
    grown: FieldType,
    stored: list[Any],
) -> None:
    result = uploader.ingest(column(values, kind), CRM, known=ObjectType({"f": known}))

    assert result.fields.fields["f"] == grown
    assert [value.get("f") for value in uploader.values(result)] == stored


@pytest.mark.parametrize(
    ("values", "kind", "known", "reason"),
    [
        (["x"], pa.string(), DOUBLE, "The field 'f' is string, but it is known as double."),
        ([NOON], pa.timestamp("us", "UTC"), DATE, "The field 'f' is timestamp, but it is known as date."),
        (
            [{"a": 1}],
            pa.struct([("a", pa.int64())]),
            TEXT,
            "The field 'f' is object, but it is known as string.",
        ),
        (
            [["x"]],
            pa.list_(pa.string()),
            ArrayType(LONG),
            "The field 'f[]' is string, but it is known as long.",
        ),
        ([1], pa.int64(), TEXT, "The field 'f' is long, but it is known as string."),
        (
            ["x"],
            pa.string(),
            ObjectType({"a": TEXT}),
            "The field 'f' is string, but it is known as object.",
        ),
    ],
)
def test_a_column_that_contradicts_a_known_type_is_refused(
    uploader: Uploader, values: list[Any], kind: pa.DataType, known: FieldType, reason: str
) -> None:
    [error] = uploader.refused(column(values, kind), CRM, known=ObjectType({"f": known}), max_bad_records=100)

    assert (error.row, error.code, error.message) == (None, "FIELD_TYPE_CONFLICT", reason)


@pytest.mark.parametrize(
    ("values", "kind", "known", "reason"),
    [
        ([0.0, math.nan], pa.float64(), DOUBLE, "2: The field 'f' is NaN or infinite: write null."),
        ([0.0, None, -math.inf], pa.float64(), DOUBLE, "3: The field 'f' is NaN or infinite: write null."),
        (
            [0, 2**63],
            pa.uint64(),
            LONG,
            "2: The field 'f' is an integer above 9223372036854775807: write it as text.",
        ),
        (
            [0, 2**53 + 1],
            pa.int64(),
            DOUBLE,
            "2: The field 'f' is an integer that a double cannot hold exactly: send it in a field of another name.",
        ),
        (
            [0, 2**63 - 1],
            pa.int64(),
            DOUBLE,
            "2: The field 'f' is an integer that a double cannot hold exactly: send it in a field of another name.",
        ),
        ([0, 253402300800], pa.timestamp("s"), TIMESTAMP, "2: The field 'f' is outside the years 1 to 9999."),
        ([0, -719_163], pa.date32(), DATE, "2: The field 'f' is outside the years 1 to 9999."),
        (
            [["2024-01-01"], None, [], ["2024-01-01", "x"]],
            pa.list_(pa.string()),
            ArrayType(DATE),
            "4: The field 'f[]' is 'x', which is not a date such as 2026-01-31.",
        ),
        (
            [None, [("k", [1.0]), ("l", [2.0, math.inf])]],
            pa.map_(pa.string(), pa.list_(pa.float64())),
            MapType(ArrayType(DOUBLE)),
            "2: The field 'f.*[]' is NaN or infinite: write null.",
        ),
        (
            [[("k", 1)], [("k", 1), ("l", 2), ("k", 3)]],
            pa.map_(pa.string(), pa.int64()),
            MapType(LONG),
            "2: The field 'f.*' has the key 'k' twice.",
        ),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_at_its_row(
    uploader: Uploader, values: list[Any], kind: pa.DataType, known: FieldType, reason: str
) -> None:
    assert uploader.reasons(column(values, kind), CRM, known=ObjectType({"f": known})) == [reason]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (people(f=[b"x"]), "The field 'f' is of the Parquet type binary, which is not supported"),
        (people(f=[timedelta(1)]), "The field 'f' is of the Parquet type duration"),
        (people(f=pa.array([1], pa.time64("us"))), "The field 'f' is of the Parquet type time64"),
        (
            people(f=pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64()))),
            "The field 'f' is of the Parquet type map",
        ),
        (people(f=pa.array([[b"x"]])), "The field 'f[]' is of the Parquet type binary"),
        (
            people(f=pa.array([Decimal(1)], pa.decimal256(50, 0))),
            "The field 'f' is of the Parquet type decimal256",
        ),
        (people(f=pa.nulls(1, _deep(70))), "is nested deeper than 64 levels"),
        (people(1, **{"a.b": [1]}), "The field 'a.b' has a dot in its name"),
        (people(1, _row=[1]), "The field '_row' has the name of the system column"),
        (people(1, _profile_id=["1"]), "The field '_profile_id' has the name of the system column"),
        (people(CrmId=["1"]), "The field 'CrmId' differs from 'crmId' beside it in case alone"),
        (pa.table([["1"], ["1"]], names=["crmId", "crmId"]), "The field 'crmId' stands twice."),
        (pa.table({"crmId": [1.5]}), "The field 'crmId' is double, but it is known as string."),
    ],
)
def test_a_file_with_columns_that_cannot_be_stored_is_refused(
    uploader: Uploader, table: pa.Table, reason: str
) -> None:
    [error] = uploader.refused(table, CRM)

    assert error.row is None
    assert reason in error.message


def test_an_identity_that_a_schema_types_is_text_or_an_integer(uploader: Uploader) -> None:
    typed = IdentityField(("n",), "N", primary=True)

    task = uploader.task(pa.table({"n": [5]}))
    known = ObjectType({**task.fields.fields, "n": LONG})
    rows = uploader.rows(ingest(replace(task, fields=known, identity_fields=(typed,))))

    assert [(row["_identity"], row["n"]) for row in rows] == [("5", 5)]
    known = ObjectType({**task.fields.fields, "n": DOUBLE})
    with pytest.raises(RowsRefusedError, match="holds an identity, which is text or an integer"):
        ingest(replace(task, fields=known, identity_fields=(typed,)))


# --- Identities ---


def _map_of(kind: pa.DataType) -> pa.DataType:
    return pa.map_(pa.string(), pa.list_(kind))


ITEM = pa.struct([("id", pa.string()), ("authenticatedState", pa.string()), ("primary", pa.bool_())])


def test_identities_come_from_the_map_and_from_declared_fields(uploader: Uploader) -> None:
    maps = [
        [("ECID", [{"id": "a", "primary": True, "authenticatedState": "authenticated"}])],
        None,
        [("ecid", [{"id": "c"}]), ("Email", None)],
    ]
    sent = people(
        3, identityMap=pa.array(maps, _map_of(ITEM)), contact=[{"email": "x"}, None, {"email": "x"}]
    )

    result = uploader.ingest(sent, CRM, EMAIL)

    first, second, third = uploader.rows(result)
    assert (first["_namespace"], first["_identity"], first["_authenticated_state"]) == (
        "ECID",
        "a",
        "authenticated",
    )
    assert [(link["namespace"], link["id"]) for link in first["_links"]] == [("CRM", "1"), ("Email", "x")]
    assert "_links" not in second
    assert [(link["namespace"], link["id"]) for link in third["_links"]] == [("ecid", "c"), ("Email", "x")]
    assert set(third["identityMap"]) == {"ecid"}
    assert result.identity_namespaces.first_spellings == ("ECID", "CRM", "Email")
    assert result.identity_namespaces.all_spellings == {"ECID", "ecid", "CRM", "Email"}


def test_an_integer_identity_is_written_in_decimal(uploader: Uploader) -> None:
    sent = pa.table({"crmId": [2**60 + 1], "identityMap": [{"N": [{"id": 3}]}]})

    [row] = uploader.rows(uploader.ingest(sent, CRM))

    assert (row["crmId"], row["_identity"], row["_links"][0]["id"]) == (str(2**60 + 1), str(2**60 + 1), "3")


def test_rows_without_sound_identities_are_refused(uploader: Uploader) -> None:
    maps = [
        [("A", [{"id": ""}])],
        None,
        [("A", [{"id": "1", "primary": True}, {"id": "2", "primary": True}])],
    ]
    sent = pa.table(
        {"crmId": ["1", None, "3", "", "5"], "identityMap": pa.array([*maps, None, None], _map_of(ITEM))}
    )

    assert uploader.reasons(sent, CRM) == [
        "1: The field 'identityMap.A[].id' is an empty text, which is no identity.",
        f"2: The row {NO_PRIMARY}.",
        "3: The row has more than one primary identity, '2' of 'A' among them.",
        "4: The field 'crmId' is an empty text, which is no identity.",
    ]


_IDS = st.sampled_from(["1", "2", "Zoë", "\0"])
_MAPS = st.lists(
    st.tuples(
        st.sampled_from(["A", "a", "CRM", "Zoë"]),
        st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"id": _IDS},
                optional={
                    "authenticatedState": st.sampled_from([None, "ambiguous", "authenticated", "loggedOut"]),
                    "primary": st.sampled_from([None, False, True]),
                },
            ),
            max_size=2,
        ),
    ),
    max_size=3,
    unique_by=lambda entry: entry[0],
)
_ROWS = st.tuples(st.none() | _MAPS, st.none() | _IDS, st.none() | _IDS)


@settings(deadline=None)
@given(
    rows=st.lists(_ROWS, min_size=1, max_size=5),
    namespace=st.sampled_from(["Email", "crm"]),
    has_map=st.booleans(),
)
def test_identities_found_by_column_are_those_found_row_by_row(
    *, rows: list[tuple[Any, Any, Any]], namespace: str, has_map: bool
) -> None:
    maps, crm_ids, emails = zip(*rows, strict=True)
    sent = {"crmId": pa.array(crm_ids, pa.string()), "email": pa.array(emails, pa.string())}
    if has_map:
        sent["identityMap"] = pa.array(maps, _map_of(ITEM))

    def outcome() -> Any:
        with TemporaryDirectory() as folder:
            try:
                result = Uploader(Path(folder)).ingest(
                    pa.table(sent), CRM, IdentityField(("email",), namespace)
                )
            except RowsRefusedError as refused:
                return refused.rows
            return result

    by_column = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "identify", lambda *_: None)
        assert by_column == outcome()


@pytest.mark.parametrize(
    ("kind", "items", "reason"),
    [
        (ITEM, [{"id": None}], "The field 'identityMap.A[]' has no id."),
        (ITEM, [None], "The field 'identityMap.A[]' has no id."),
        (ITEM, [{"id": "1", "authenticatedState": "x"}], "must be one of ambiguous"),
        (
            pa.struct([("id", pa.float64())]),
            [{"id": 1.5}],
            "is double, but an identity is text or an integer",
        ),
        (pa.struct([("id", pa.string()), ("xid", pa.string())]), [{"id": "1", "xid": "2"}], "is unknown"),
        (pa.string(), ["1"], "is string, but it is known as object"),
    ],
)
def test_an_identity_map_of_something_else_is_refused(
    uploader: Uploader, kind: pa.DataType, items: list[Any], reason: str
) -> None:
    [error] = uploader.refused(people(2, identityMap=pa.array([None, [("A", items)]], _map_of(kind))), CRM)

    assert error.row == 2
    assert reason in error.message


@pytest.mark.parametrize("namespace", ["", "a\0"])
def test_a_namespace_that_is_none_is_refused_row_by_row(uploader: Uploader, namespace: str) -> None:
    entries = [None, [(namespace, [{"id": "1"}])], [(namespace, [{"id": "2"}])]]

    told = uploader.reasons(people(3, identityMap=pa.array(entries, _map_of(ITEM))), CRM)

    assert [text[:3] for text in told] == ["2: ", "3: "]


def test_a_namespace_that_stands_twice_in_a_map_counts_as_one_list(uploader: Uploader) -> None:
    entries = [[("A", [{"id": "1", "primary": True}]), ("A", [{"id": "2"}])]]

    [row] = uploader.rows(uploader.ingest(pa.table({"identityMap": pa.array(entries, _map_of(ITEM))})))

    assert (row["_identity"], [link["id"] for link in row["_links"]]) == ("1", ["2"])
    assert [item["id"] for item in row["identityMap"]["A"]] == ["1", "2"]


def test_segment_membership_is_stored_as_a_map(uploader: Uploader) -> None:
    entries = [{"ups": {"s1": {"lastQualificationTime": "2024-01-01T12:00:00Z", "status": "existing"}}}, None]
    sent = people(2, segmentMembership=entries)

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result)[0]["segmentMembership"] == {
        "ups": {"s1": {"lastQualificationTime": NOON, "status": "existing", "validUntil": None}}
    }
    assert result.segment_namespaces.first_spellings == ("ups",)


# --- Events ---


def events(**changes: Any) -> pa.Table:
    sound = {"_id": ["e1", "e2"], "timestamp": pa.array([NOON, NOON], pa.timestamp("ms", "UTC"))}
    return people(2, **{name: values for name, values in (sound | changes).items() if values is not None})


def test_events_have_their_id_and_time(uploader: Uploader) -> None:
    result = uploader.ingest(events(timestamp=["2024-01-01T12:00:00Z"] * 2), CRM, kind=DatasetKind.EVENT)

    assert [(row["_id"], row["timestamp"]) for row in uploader.values(result)] == [("e1", NOON), ("e2", NOON)]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"_id": ["e1", None]}, ["2: The field '_id' is missing or empty"]),
        ({"_id": ["", "e2"]}, ["1: The field '_id' is missing or empty"]),
        ({"_id": None}, ["1: The field '_id' is missing", "2: The field '_id' is missing"]),
        ({"timestamp": pa.array([NOON, None])}, ["2: The field 'timestamp' is missing or empty"]),
        ({"timestamp": [1, 2]}, ["None: The field 'timestamp' is long, but it is known as timestamp."]),
        (
            {"timestamp": ["2024-01-01T12:00:00Z", "noon"]},
            ["2: The field 'timestamp' is 'noon', which is not an instant"],
        ),
    ],
)
def test_events_without_id_or_time_are_refused(
    uploader: Uploader, changes: dict[str, Any], reasons: list[str]
) -> None:
    told = uploader.reasons(events(**changes), CRM, kind=DatasetKind.EVENT)

    assert [text[: len(reason)] for text, reason in zip(told, reasons, strict=False)] == reasons


# --- Rejected rows ---


def test_bad_rows_are_left_out_of_all_columns(uploader: Uploader) -> None:
    sent = people(
        8,
        n=pa.array([0, 1, math.nan, 3, 4, 5, 6, 7], pa.float64()),
        tags=[["2024-01-01"], ["x"], ["y"], None, [], ["2024-01-02"], [], []],
        contact=[{"email": text} for text in ("a", "b", "c", "", "e", "f", "g", "h")],
        identityMap=pa.array(
            [*[None] * 5, [("A", [{"id": ""}])], [("Seven", [{"id": "7", "primary": True}])], None],
            _map_of(ITEM),
        ),
        segmentMembership=pa.array(
            [
                [(name, [("s", {"status": "existing"})])]
                for name in ("ups", "x", "x", "x", "UPS", "x", "last", "ups")
            ],
            pa.map_(pa.string(), pa.map_(pa.string(), pa.struct([("status", pa.string())]))),
        ),
    )
    known = ObjectType({"tags": ArrayType(DATE)})

    result = uploader.ingest(sent, CRM, EMAIL, known=known, max_bad_records=4, first_row=100)

    assert [(row["_row"], row["_identity"], row["n"]) for row in uploader.rows(result)] == [
        (100, "1", 0.0),
        (101, "5", 4.0),
        (102, "7", 6.0),
        (103, "8", 7.0),
    ]
    assert [(error.row, error.code, error.path) for error in result.errors] == [
        (2, "VALUE_INVALID", "tags[]"),
        (3, "VALUE_INVALID", "tags[]"),  # one reason for a row, though its number is bad as well
        (4, "IDENTITY_INVALID", "contact.email"),
        (6, "IDENTITY_INVALID", "identityMap.A[].id"),
    ]
    assert result.identity_namespaces.first_spellings == ("CRM", "Email", "Seven")
    assert result.segment_namespaces.first_spellings == ("ups", "last")
    assert result.segment_namespaces.all_spellings == {"ups", "UPS", "last"}


def test_a_rejected_row_is_kept_as_json(uploader: Uploader) -> None:
    instant = pa.array([253402300800], pa.timestamp("s"))
    sent = pa.table(
        {
            "crmId": ["1"],
            "f": instant,
            "map": pa.array(
                [[("k", [NOON]), ("l", None)]], pa.map_(pa.string(), pa.list_(pa.timestamp("us")))
            ),
            "twice": pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())),
            "o": [{"price": Decimal("1.50"), "day": date(2024, 1, 1), "n": math.nan, "none": None}],
            "kind": pa.array(["é"]).dictionary_encode(),
            "at": pa.array([1_999], pa.timestamp("ns", "Europe/Amsterdam")),
        }
    )

    uploader.refusal(sent, CRM)

    [row] = uploader.rejected()
    assert (row.row, row.code, row.path) == (1, "VALUE_INVALID", "f")
    assert row.text == (
        '{"crmId": "1", "f": "10000-01-01T00:00:00.000Z", '
        '"map": {"k": ["2024-01-01T12:00:00.000000Z"], "l": null}, "twice": [["k", 1], ["k", 2]], '
        '"o": {"price": "1.50", "day": "2024-01-01", "n": NaN, "none": null}, "kind": "é", '
        '"at": "1970-01-01T00:00:00.000001999Z"}'
    )


@pytest.mark.parametrize(
    ("value", "kind", "size"),
    [
        ("é", pa.string(), 2),
        ("ab", pa.large_string(), 2),
        ("ab", pa.dictionary(pa.int8(), pa.string()), 2),
        (1, pa.int64(), 8),
        (True, pa.bool_(), 1),
        (None, pa.int64(), 0),
        (None, pa.null(), 0),
        (Decimal("1.5"), pa.decimal128(5, 2), 16),
        (date(2024, 1, 1), pa.date32(), 4),
        ([1, None, 2], pa.list_(pa.int32()), 9),
        (["", None, ""], pa.list_(pa.string()), 3),
        ([1, 2], pa.list_(pa.int32(), 2), 8),
        (["a", "bcd"], pa.large_list(pa.string()), 4),
        ([["a"], None, ["bc", "d"]], pa.list_(pa.list_(pa.string())), 5),
        (
            {"a": 1, "b": "xy", "c": None},
            pa.struct([("a", pa.int8()), ("b", pa.string()), ("c", pa.int8())]),
            3,
        ),
        ({"k": 1, "lm": 2}, pa.map_(pa.string(), pa.int64()), 19),
    ],
)
def test_a_row_is_as_large_as_its_values(
    uploader: Uploader, value: Any, kind: pa.DataType, size: int
) -> None:
    small, large = "x" * (100_000 - 1 - size), "x" * (100_000 - size)
    sent = pa.table({"crmId": ["1", "2", "3"], "text": ["x", small, large], "f": pa.array([value] * 3, kind)})

    result = uploader.ingest(sent, CRM, max_bad_records=1)

    assert [(error.row, error.code) for error in result.errors] == [(3, "RECORD_TOO_LARGE")]


def test_a_file_of_large_rows_is_read_some_at_a_time(uploader: Uploader) -> None:
    result = uploader.ingest(people(10, n=pa.array(range(10))), CRM, bytes_held=1)

    assert [(row["_row"], row["n"]) for row in uploader.rows(result)] == [(n, n) for n in range(10)]


# --- Files ---


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"not Parquet",
        lambda _: b"",
        lambda sound: sound[:-8],
        lambda sound: sound[:4] + b"\0" * (len(sound) // 4) + sound[4 + len(sound) // 4 :],
    ],
    ids=["other", "empty", "truncated", "overwritten"],
)
def test_a_file_that_is_not_sound_parquet_is_refused(
    uploader: Uploader, damage: Callable[[bytes], bytes]
) -> None:
    task = uploader.task(people(1000, n=pa.array(range(1000))), CRM)
    task.source.write_bytes(damage(task.source.read_bytes()))

    with pytest.raises(RowsRefusedError) as refused:
        ingest(task)

    [error] = refused.value.rows
    assert (error.row, error.code) == (None, "FILE_INVALID")
    assert error.message.startswith("The file is not sound Parquet: ")


def test_text_that_is_not_unicode_is_refused(uploader: Uploader) -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )

    [error] = uploader.refused(people(f=raw), CRM)

    assert "UTF8" in error.message


def test_a_file_that_is_not_there_is_no_refusal(uploader: Uploader) -> None:
    task = uploader.task(people(), CRM)
    task.source.unlink()

    with pytest.raises(FileNotFoundError):
        ingest(task)


def test_an_instant_in_another_zone_is_stored_in_utc(uploader: Uploader) -> None:
    there = datetime(2024, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))

    result = uploader.ingest(people(f=pa.array([there], pa.timestamp("us", "+01:00"))), CRM)

    assert uploader.values(result)[0]["f"] == NOON


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_page_whose_checksum_is_wrong_is_refused(
    uploader: Uploader, version: str, *, use_dictionary: bool, compression: str
) -> None:
    table = pa.table({"crmId": [f"{number % 40:04}" for number in range(3_000)], "n": range(3_000)})
    written = pa.BufferOutputStream()
    pq.write_table(
        table,
        written,
        compression=compression,
        use_dictionary=use_dictionary,
        data_page_version=version,
        data_page_size=1_024,
        write_page_checksum=True,
    )
    sound = written.getvalue().to_pybytes()
    metadata = pq.ParquetFile(pa.BufferReader(sound)).metadata
    chunks = [metadata.row_group(0).column(place) for place in range(2)]
    # the last bytes of each column are those of the last page; the dictionary, if there is one, begins it
    places = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    ends = [start + chunk.total_compressed_size - 1 for start, chunk in zip(places, chunks, strict=True)]
    behind_headers = [start + 100 for start in places]

    assert uploader.ingest(sound, CRM, upload_format="parquet", rows_per_file=10_000).rows == 3_000
    for place in (*ends, *behind_headers):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        [error] = uploader.refused(bytes(damaged), CRM, upload_format="parquet", max_bad_records=3_000)
        assert (error.row, error.code) == (None, "FILE_INVALID")
        assert "The file is not sound Parquet: " in error.message
