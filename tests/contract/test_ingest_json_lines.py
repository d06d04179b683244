import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import SYSTEM_COLUMNS
from profile_export.domain.catalog.datasets import DatasetKind, IdentityField
from profile_export.domain.merging.identity import Identity, identity_key
from profile_export.domain.schemas.types import DOUBLE, LONG, TEXT, ArrayType, DecimalType, ObjectType
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.rows import rows as sent_rows
from tests.contract import ingesting
from tests.contract.ingesting import CRM, Uploader

EMAIL = IdentityField(("contact", "email"), "Email")


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


def person(crm_id: Any = "1", **others: Any) -> dict[str, Any]:
    return {"crmId": crm_id, **others}


def mapped(*identities: tuple[str, str, bool], **others: Any) -> dict[str, Any]:
    entries: dict[str, list[Any]] = {}
    for namespace, text, primary in identities:
        entries.setdefault(namespace, []).append({"id": text, "primary": primary})
    return {"identityMap": entries, **others}


# --- What is written ---


def test_rows_come_back_as_sent(uploader: Uploader) -> None:
    sent = [
        person("1", name={"first": "Ann"}, tags=["a", None]),
        person("2", points=3, loyal=True, gone=None),
    ]

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result) == [
        {"crmId": "1", "name": {"first": "Ann"}, "tags": ["a", None]},
        {"crmId": "2", "points": 3.0, "loyal": True},
    ]
    assert result.rows == 2
    assert result.untyped == ()


def test_a_file_has_the_system_columns_and_exactly_the_fields_of_the_result(uploader: Uploader) -> None:
    result = uploader.ingest([person(), person("2", extra=1)], CRM)

    [table] = uploader.tables(result)
    assert table.column_names == [*SYSTEM_COLUMNS, *result.fields.fields]
    assert list(result.fields.fields) == ["identityMap", "segmentMembership", "crmId", "extra"]
    assert all(field.nullable for field in table.schema)


def test_a_file_is_what_its_facts_say(uploader: Uploader) -> None:
    result = uploader.ingest([person("1"), person("2")], CRM)

    [file] = result.files
    content = (uploader.folder / "files" / "00000.parquet").read_bytes()
    assert (file.name, file.rows, file.bytes) == ("00000.parquet", 2, len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    column = pq.ParquetFile(uploader.folder / "files" / file.name).metadata.row_group(0).column(5)
    assert (column.path_in_schema, column.compression) == ("_key_high", "ZSTD")
    assert column.statistics.has_min_max


def test_the_system_columns_say_whose_a_row_is(uploader: Uploader) -> None:
    sent = person("7", contact={"email": "a@x.nl"})
    sent |= {"identityMap": {"ECID": [{"id": 5, "authenticatedState": "loggedOut"}]}}

    [row] = uploader.rows(uploader.ingest([sent], CRM, EMAIL))

    high, low = identity_key(Identity("CRM", "7"))
    assert (row["_batch_id"], row["_row"], row["_namespace"], row["_identity"]) == ("b-1", 0, "CRM", "7")
    assert (row["_key_high"], row["_key_low"]) == (high, low)
    assert "_authenticated_state" not in row
    links = [(link["namespace"], link["id"], link["authenticated_state"]) for link in row["_links"]]
    assert links == [("ECID", "5", "loggedOut"), ("Email", "a@x.nl", None)]
    assert [(link["key_high"], link["key_low"]) for link in row["_links"]] == [
        identity_key(Identity("ecid", "5")),
        identity_key(Identity("email", "a@x.nl")),
    ]
    assert row["identityMap"] == {"ECID": [{"id": "5", "authenticatedState": "loggedOut", "primary": None}]}


def test_rows_lie_sorted_by_identity_key_in_every_file(uploader: Uploader) -> None:
    sent = [person(str(number % 40), n=number) for number in range(100)]

    result = uploader.ingest(sent, CRM, rows_per_file=30)

    tables = uploader.tables(result)
    assert [table.num_rows for table in tables] == [30, 30, 30, 10]
    assert [file.name for file in result.files] == [f"0000{number}.parquet" for number in range(4)]
    for table in tables:
        keys = list(
            zip(*(table[name].to_pylist() for name in ("_key_high", "_key_low", "_row")), strict=True)
        )
        assert keys == sorted(keys)
    assert [row["n"] for row in uploader.rows(result)] == list(range(100))


def test_an_upload_without_rows_has_no_file(uploader: Uploader) -> None:
    result = uploader.ingest(b"\n \r\n", CRM)

    assert (result.files, result.rows) == ((), 0)
    assert list(result.fields.fields) == ["identityMap", "segmentMembership", "crmId"]


def test_blank_lines_and_a_byte_order_mark_do_no_harm(uploader: Uploader) -> None:
    result = uploader.ingest(b'\xef\xbb\xbf{"crmId":"1"}\r\n\n{"crmId":"2"}', CRM)

    assert [row["_row"] for row in uploader.rows(result)] == [0, 1]


# --- Fields that become known late ---


@pytest.mark.parametrize("rows_per_file", [1_000, 2])
def test_all_files_have_the_fields_that_the_last_row_taught(uploader: Uploader, rows_per_file: int) -> None:
    sent = [person("1", o={"a": 1}), person("2"), person("3", o={"a": 1, "b": ["x"]}, late=True)]

    result = uploader.ingest(sent, CRM, rows_per_file=rows_per_file)

    assert len({str(table.schema) for table in uploader.tables(result)}) == 1
    assert uploader.values(result)[0] == {"crmId": "1", "o": {"a": 1.0, "b": None}}
    assert uploader.values(result)[2] == {"crmId": "3", "o": {"a": 1.0, "b": ["x"]}, "late": True}


def test_rows_that_wait_get_fields_of_later_rows_in_time_that_grows_with_their_number(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent_rows, "_ROWS_PER_BATCH", 1)
    wide = {f"n{number}": True for number in range(4_900)}
    began = time.process_time()

    result = uploader.ingest([*(person(str(number)) for number in range(9)), person("wide", **wide)], CRM)

    assert time.process_time() - began < 10  # with the square of that number it takes twice as long
    assert len(result.fields.fields) > len(wide)


@pytest.fixture(params=["one batch", "waiting", "read twice"])
def small_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows wait for the end of the upload, the files are the same."""
    if request.param != "one batch":
        monkeypatch.setattr(sent_rows, "_ROWS_PER_BATCH", 1)
    if request.param == "read twice":
        monkeypatch.setattr(ingesting, "BYTES_HELD", 0)


@pytest.mark.usefixtures("small_batches")
def test_an_empty_array_is_a_value_if_a_later_row_teaches_its_items(uploader: Uploader) -> None:
    sent = [person("1", tags=[], o={"x": []}), person("2", tags=["a"], y=1)]

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result) == [{"crmId": "1", "tags": []}, {"crmId": "2", "tags": ["a"], "y": 1.0}]
    assert result.untyped == (("o", "x"),)
    assert "o" not in result.fields.fields


@pytest.mark.usefixtures("small_batches")
def test_an_empty_array_that_turns_out_to_be_something_else_is_absent(uploader: Uploader) -> None:
    sent = [person("1", a=[], o={"a": [None]}, B=1), person("2", a="x", b=[]), person("3", o=[1])]

    result = uploader.ingest(sent, CRM)

    assert uploader.values(result) == [
        {"crmId": "1", "B": 1.0},
        {"crmId": "2", "a": "x"},
        {"crmId": "3", "o": [1.0]},
    ]
    assert result.untyped == (("b",),)


def test_an_empty_array_is_a_value_if_the_dataset_knows_its_items(uploader: Uploader) -> None:
    known = ObjectType({"tags": ArrayType(TEXT)})

    result = uploader.ingest([person("1", tags=[]), person("2", tags=[None])], CRM, known=known)

    assert [value["tags"] for value in uploader.values(result)] == [[], [None]]


def test_an_array_that_nobody_knows_is_left_out_wherever_it_stands(uploader: Uploader) -> None:
    sent = [
        person(
            "1",
            a=[[]],
            o=[{"b": [], "c": 1}, {"b": []}],
            segmentMembership={"ups": {"s": {"x": [], "status": "existing"}}},
        ),
        person("2", a=[None], segmentMembership={"ups": {"s": {"x": []}}}),
    ]

    result = uploader.ingest(sent, CRM)

    first, second = uploader.values(result)
    assert first["o"] == [{"c": 1.0}, None]
    assert first["segmentMembership"]["ups"]["s"]["status"] == "existing"
    assert second == {"crmId": "2"}
    assert result.untyped == (("a",), ("a", "[]"), ("o", "[]", "b"), ("segmentMembership", "*", "*", "x"))


def test_known_types_decide_how_values_are_stored(uploader: Uploader) -> None:
    known = ObjectType({"n": LONG, "price": DecimalType(12, 2)})
    sent = b'{"crmId":"1","n":9007199254740993,"price":1234567890.10}'

    assert uploader.values(uploader.ingest(sent, CRM, known=known)) == [
        {"crmId": "1", "n": 2**53 + 1, "price": Decimal("1234567890.10")}
    ]


# --- Identities ---


def test_s3_a_marked_identity_is_primary_before_the_declared_one(uploader: Uploader) -> None:
    result = uploader.ingest(
        [person("1") | mapped(("ECID", "e", True)), person("1") | mapped(("ECID", "e", False))], CRM
    )

    first, second = uploader.rows(result)
    assert (first["_namespace"], first["_links"][0]["namespace"]) == ("ECID", "CRM")
    assert (second["_namespace"], second["_links"][0]["namespace"]) == ("CRM", "ECID")


def test_one_identity_in_several_places_is_one(uploader: Uploader) -> None:
    sent = mapped(("email", "a", True), ("Email", "a", True), ("Email", "A", False), contact={"email": "a"})
    sent["identityMap"]["email"][0]["authenticatedState"] = "authenticated"

    [row] = uploader.rows(uploader.ingest([sent], EMAIL))

    assert (row["_namespace"], row["_identity"], row["_authenticated_state"]) == (
        "Email",
        "a",
        "authenticated",
    )
    assert [(link["namespace"], link["id"]) for link in row["_links"]] == [("Email", "A")]
    assert set(row["identityMap"]) == {"email", "Email"}


def test_an_integer_in_an_identity_field_is_written_in_decimal(uploader: Uploader) -> None:
    assert uploader.values(uploader.ingest([person(2**60 + 1)], CRM)) == [{"crmId": str(2**60 + 1)}]


def test_a_declared_identity_that_a_schema_types_keeps_its_type(uploader: Uploader) -> None:
    nested = IdentityField(("crm", "id"), "CRM", primary=True)
    task = uploader.task([{"crm": {"id": 7}}])
    fields = ObjectType({**task.fields.fields, "crm": ObjectType({"id": LONG})})

    result = ingest(replace(task, fields=fields, identity_fields=(nested,)))

    [row] = uploader.rows(result)
    assert (row["_identity"], row["crm"]) == ("7", {"id": 7})


def test_namespaces_are_told_by_their_first_place_and_with_all_spellings(uploader: Uploader) -> None:
    sent = [
        mapped(
            ("email", "a", True),
            ("EMAIL", "b", False),
            segmentMembership={"Ups": {"s": {"status": "exited"}}},
        ),
        mapped(
            ("Email", "c", True), ("ECID", "d", False), segmentMembership={"ups": {"s": {"status": "exited"}}}
        ),
    ]

    result = uploader.ingest(sent)

    identities, segments = result.identity_namespaces, result.segment_namespaces
    assert identities.first_spellings == ("EMAIL", "ECID")
    assert identities.all_spellings == {"email", "EMAIL", "Email", "ECID"}
    assert segments.first_spellings == ("Ups",)
    assert segments.all_spellings == {"Ups", "ups"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"x": 1}, "has no primary identity"),
        (mapped(("A", "1", False)), "has no primary identity"),
        (mapped(("A", "1", True), ("B", "2", True)), "has more than one primary identity"),
        (mapped(("A", "", True)), "The field 'identityMap.A[].id' is an empty text"),
        ({"identityMap": {"A": [{"primary": True}]}}, "The field 'identityMap.A[]' has no id"),
        ({"identityMap": {"A": [None]}}, "The field 'identityMap.A[]' has no id"),
        ({"identityMap": {"A": [{"id": 1.5}]}}, "is double, but an identity is text or an integer"),
        ({"identityMap": {"A": [{"id": True}]}}, "is boolean, but an identity is text or an integer"),
        ({"identityMap": {"A": [{"id": "\ud800é"}]}}, "half of a surrogate pair"),
        ({"identityMap": {"A": [{"id": "1", "xid": "2"}]}}, "The field 'identityMap.A[].xid' is unknown"),
        ({"identityMap": {"A": [{"id": "1", "primary": "yes"}]}}, "is string, but it is known as boolean"),
        ({"identityMap": {"A": [{"id": "1", "authenticatedState": "x"}]}}, "must be one of ambiguous"),
        ({"identityMap": {"": [{"id": "1"}]}}, "empty namespace"),
        ({"identityMap": {"a\0": [{"id": "1"}]}}, "NUL"),
        (
            {"identityMap": {"A": {"id": "1"}}},
            "The field 'identityMap.A' is object, but it is known as array.",
        ),
        ({"identityMap": {"A": ["1"]}}, "The field 'identityMap.A[]' is string, but it is known as object."),
        ({"identityMap": [1]}, "The field 'identityMap' is array, but it is known as map."),
        (
            {"IdentityMap": {"A": [{"id": "1", "primary": True}]}, "crmId": "1"},
            "differs from 'identityMap' beside it in case alone",
        ),
        ({"crmId": ""}, "The field 'crmId' is an empty text"),
        ({"crmId": [1]}, "is array, but an identity is text or an integer"),
        ({"crmId": "1", "contact": "x"}, "The field 'contact' is string, but it is known as object."),
    ],
)
def test_rows_without_sound_identities_are_refused(
    uploader: Uploader, record: dict[str, Any], reason: str
) -> None:
    [error] = uploader.refused([person(), record], CRM, EMAIL)

    assert error.row == 2
    assert reason in error.message


# --- Events ---


def test_an_event_has_its_id_and_its_time(uploader: Uploader) -> None:
    sent = person("1", _id="e1", timestamp="2024-01-01T00:00:00Z")

    result = uploader.ingest([sent], CRM, kind=DatasetKind.EVENT)

    [table] = uploader.tables(result)
    assert table.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    assert uploader.values(result) == [
        {"_id": "e1", "timestamp": datetime(2024, 1, 1, tzinfo=UTC), "crmId": "1"}
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_id": None}, "The field '_id' is missing or empty"),
        ({"_id": ""}, "The field '_id' is missing or empty"),
        ({"_id": 7}, "The field '_id' is double, but it is known as string."),
        ({"timestamp": None}, "The field 'timestamp' is missing or empty"),
        ({"timestamp": "2024-01-01T00:00:00"}, "which has no offset"),
        ({"timestamp": 1_700_000_000}, "The field 'timestamp' is double, but it is known as timestamp."),
    ],
)
def test_an_event_without_id_or_time_is_refused(
    uploader: Uploader, changes: dict[str, Any], reason: str
) -> None:
    sound = person("1", _id="e1", timestamp="2024-01-01T00:00:00Z")

    [error] = uploader.refused([sound, sound | changes], CRM, kind=DatasetKind.EVENT)

    assert error.row == 2
    assert reason in error.message


# --- Lines ---


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"crmId":"1", x', "The row is not JSON: Expecting"),
        (
            b'{"crmId":"1"',
            "The row ends within an object or array: JSON lines have each object on one line, as jq -c",
        ),
        (
            b"{",
            "The row ends within an object or array: JSON lines have each object on one line, as jq -c writes it.",
        ),
        (b' {"crmId": [ ', "The row ends within an object or array"),
        (
            b'\xef\xbb\xbf{"crmId":"3"}',
            "begins with a byte order mark: files that were joined have one each.",
        ),
        (b"[1]", "The row is not a JSON object."),
        (b'"x"', "The row is not a JSON object."),
        (b'{"crmId":"\xff"}', "The row is not UTF-8 at byte 11: write the file as UTF-8."),
        (b'{"crmId":"1","n":NaN}', "The row is not JSON: NaN is no number there."),
        (b'{"crmId":"1","n":-Infinity}', "The row is not JSON: -Infinity is no number there."),
        (b'{"crmId":"1","o":{"a":1,"b":1,"a":1}}', "The row has the name 'a' twice in one object."),
        (b'{"crmId":"1","n":' + b"9" * 5000 + b"}", "The row has an integer of thousands of digits."),
        (b'{"crmId":"1","a":' + b"[" * 90_000, "The row is nested deeper than 64 levels."),
        (b'{"crmId":"1","n":9007199254740993}', "The field 'n' is the integer 9007199254740993"),
        (b'{"crmId":"1","n":1e400}', "The field 'n' is inf, which no double can hold."),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_number(
    uploader: Uploader, line: bytes, reason: str
) -> None:
    [error] = uploader.refused(b'{"crmId":"1"}\n\n' + line + b'\n{"crmId":"2"}\n', CRM)

    assert error.row == 3
    assert reason in error.message


def test_a_line_that_would_fill_the_memory_is_skipped(uploader: Uploader) -> None:
    long = b'{"crmId":"' + b"2" * 1_000_000 + b'"}'

    result = uploader.ingest(b'{"crmId":"1"}\n' + long + b'\n{"crmId":"3"}\n', CRM, max_bad_records=1)

    assert [row["_identity"] for row in uploader.rows(result)] == ["1", "3"]
    [rejected] = uploader.rejected()
    assert (rejected.row, rejected.code) == (2, "RECORD_TOO_LARGE")
    assert rejected.message == "The row has more than 100000 bytes."
    assert rejected.text == long[:100_000].decode()


def test_only_the_first_hundred_refused_rows_are_told(uploader: Uploader) -> None:
    refused = uploader.refused([{"n": 1}] * 300, CRM)

    assert [error.row for error in refused] == list(range(1, 101))


def test_a_refused_row_teaches_nothing(uploader: Uploader) -> None:
    sent = [{"a": 1}, person("2", a="x"), person("3", a="y", b=[1, "z"])]

    no_primary, conflict = uploader.reasons(sent, CRM)

    assert no_primary.startswith("1: The row has no primary identity")
    assert conflict == "3: The field 'b[]' is string, but it is known as double."


def test_files_that_were_written_before_a_refusal_are_gone(uploader: Uploader) -> None:
    task = uploader.task([person(str(number)) for number in range(10)] + [{"x": 1}], CRM, rows_per_file=2)

    assert uploader.refused(task.source.read_bytes(), CRM, rows_per_file=2)


# --- Any record ---

_NAMES = st.sampled_from(["a", "b", "c"])
_DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def _members(kinds: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Records in which a name always has the same type, now and then null or absent."""
    return st.fixed_dictionaries({}, optional={name: st.none() | kind for name, kind in kinds.items()})


_INNER = _members({"t": _TEXTS, "n": _DOUBLES, "l": st.lists(st.none() | _DOUBLES, max_size=3)})
_RECORDS = _members(
    {
        "text": _TEXTS,
        "number": _DOUBLES,
        "flag": st.booleans(),
        "inner": _INNER,
        "deep": _members({"inner": _INNER}),
        "list": st.lists(st.none() | _TEXTS, max_size=3),
        "items": st.lists(st.none() | _INNER, max_size=3),
        "lists": st.lists(st.lists(st.booleans(), max_size=2), max_size=2),
    }
)


@given(st.lists(_RECORDS, max_size=8), st.integers(1, 4), st.integers(1, 4))
def test_any_records_come_back_as_their_stored_form(
    records: list[dict[str, Any]], rows_per_file: int, rows_per_batch: int
) -> None:
    sent = [person(str(number), **record) for number, record in enumerate(records)]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sent_rows, "_ROWS_PER_BATCH", rows_per_batch)
        uploader = Uploader(Path(folder))

        result = uploader.ingest(sent, CRM, rows_per_file=rows_per_file)

        assert [_plain(value) for value in uploader.values(result)] == [
            _plain(json.loads(json.dumps(record)), result.fields) for record in sent
        ]
        assert sum(file.rows for file in result.files) == result.rows == len(sent)
        assert len(result.files) == -(-len(sent) // rows_per_file)


def _plain(value: Any, known: Any = ...) -> Any:
    """Leave out nulls, objects without a value and arrays of unknown items; said apart from the code under test."""
    if value is None or known is None:
        return None
    if isinstance(value, dict):
        members = {
            name: _plain(member, ... if known is ... else known.fields.get(name))
            for name, member in value.items()
        }
        return {name: member for name, member in members.items() if member is not None} or None
    if isinstance(value, list):
        return [_plain(item, ... if known is ... else known.item) for item in value]
    return float(value) if known == DOUBLE else value


@pytest.mark.parametrize("sent", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\n \n"])
def test_a_file_without_a_line_has_no_rows(uploader: Uploader, sent: bytes) -> None:
    assert uploader.ingest(sent, CRM).rows == 0
