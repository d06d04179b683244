"""Registered schemas: what may become the next version, and union schemas beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    Dataset,
    DatasetKind,
    IdentityField,
    Schema,
    SchemaRef,
    check_beside,
    next_version,
    union_by_kind,
    union_schema,
)
from profile_export.domain.errors import AlreadyExistsError
from profile_export.domain.schemas.types import (
    DOUBLE,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    FieldType,
    ObjectType,
    TypeConflictError,
)
from tests.builders import at

XDM = "https://ns.adobe.com/xdm/context"


def schema(fields: dict[str, FieldType], **values: object) -> Schema:
    return replace(Schema("https://example.com/crm", DatasetKind.RECORD, ObjectType(fields)), **values)  # type: ignore[arg-type]  # any field


def dataset(dataset_id: str, fields: dict[str, FieldType], kind: DatasetKind = DatasetKind.RECORD) -> Dataset:
    ref = SchemaRef(f"{XDM}/profile")
    return Dataset(dataset_id, "", "", ref, kind, {}, (), (), ObjectType(fields), at(0), at(0))


def test_the_first_document_of_an_id_is_its_first_version() -> None:
    read = schema({"a": LONG})

    assert next_version(None, read) == read


def test_a_schema_has_what_is_built_in_of_its_class() -> None:
    read = schema({"a": LONG}, class_id=f"{XDM}/profile")

    first = next_version(None, read)

    assert first is not None
    assert set(first.fields.fields) == {"identityMap", "segmentMembership", "a"}


def test_the_same_document_again_is_no_new_version() -> None:
    known = schema({"a": LONG}, version=3, create_time=at(0))

    assert next_version(known, schema({"a": LONG})) is None


@pytest.mark.parametrize(
    "read",
    [
        schema({"a": LONG, "b": TEXT}),
        schema({"a": DOUBLE}),
        schema({"a": LONG}, rules="{}"),
        schema({"a": LONG}, identity_fields=(IdentityField(("a",), "CRM"),)),
    ],
)
def test_what_adds_or_widens_is_the_next_version(read: Schema) -> None:
    known = schema({"a": LONG}, version=3, create_time=at(0))

    newer = next_version(known, read)

    assert newer == replace(read, version=4, create_time=at(0))


@pytest.mark.parametrize(
    ("fields", "path", "found"),
    [
        ({"a": LONG, "o": ObjectType({"x": TEXT})}, "a", "long"),
        ({"a": DOUBLE, "o": TEXT}, "o", "string"),
        ({"a": DOUBLE}, "o.x", "left out"),
    ],
)
def test_what_narrows_changes_or_leaves_out_a_field_is_refused(
    fields: dict[str, FieldType], path: str, found: str
) -> None:
    known = schema({"a": DOUBLE, "o": ObjectType({"x": TEXT})}, create_time=at(0))

    with pytest.raises(TypeConflictError) as conflict:
        next_version(known, schema(fields))

    assert (conflict.value.metadata["path"], conflict.value.metadata["type"]) == (path, found)


def test_a_document_of_a_built_in_class_adds_to_what_is_built_in() -> None:
    built_in = BUILT_IN_SCHEMAS[f"{XDM}/experienceevent"]
    fields = ObjectType({"eventType": TEXT})
    read = Schema(built_in.id, DatasetKind.EVENT, fields, class_id=built_in.id, document="{}")

    newer = next_version(built_in, read)

    assert newer is not None
    assert newer.version == 2
    assert newer.fields == ObjectType({**built_in.fields.fields, "eventType": TEXT})


def test_the_built_in_union_schema_is_not_anybodys() -> None:
    built_in = BUILT_IN_SCHEMAS[f"{XDM}/profile__union"]

    with pytest.raises(AlreadyExistsError) as refused:
        next_version(built_in, replace(built_in, document="{}"))

    assert refused.value.reason == "SCHEMA_BUILT_IN"


def test_a_schema_that_contradicts_a_source_of_its_class_is_refused() -> None:
    sources = [dataset("e", {"a": TEXT}, DatasetKind.EVENT), dataset("r", {"a": TEXT})]

    with pytest.raises(TypeConflictError) as conflict:
        check_beside(sources, schema({"a": LONG}))

    assert (conflict.value.metadata["path"], conflict.value.metadata["other_dataset_id"]) == ("a", "r")
    check_beside(sources, schema({"a": TEXT, "b": LONG}))


def test_a_union_schema_of_records_has_the_attached_events_too() -> None:
    sources = [dataset("r", {"a": TEXT}), dataset("e", {"b": LONG}, DatasetKind.EVENT)]

    records = union_schema(sources, DatasetKind.RECORD).fields
    events = union_schema(sources, DatasetKind.EVENT).fields

    assert {"identityMap", "segmentMembership", "a", "timeSeriesEvents"} == set(records)
    assert {"_id", "timestamp", "identityMap", "b"} == set(events)
    assert records["timeSeriesEvents"] == ArrayType(ObjectType(events))


def test_a_conflict_in_a_union_names_the_newcomer_and_who_knows_the_field() -> None:
    sources = [
        dataset("0", {"a": LONG}, DatasetKind.EVENT),
        dataset("1", {"b": TEXT}),
        dataset("2", {"a": LONG}),
        dataset("3", {"a": TEXT}),
    ]

    with pytest.raises(TypeConflictError) as conflict:
        union_by_kind(sources)

    assert (conflict.value.metadata["dataset_id"], conflict.value.metadata["other_dataset_id"]) == ("3", "2")


def test_a_conflict_with_the_class_itself_names_its_schema() -> None:
    with pytest.raises(TypeConflictError) as conflict:
        union_by_kind([dataset("1", {"identityMap": TEXT})])

    assert conflict.value.metadata["other_dataset_id"] == f"{XDM}/profile"


def test_a_conflict_where_the_request_is_right_in_itself_keeps_its_words() -> None:
    conflict = TypeConflictError(("a",), LONG, TEXT)

    told = conflict.as_precondition()

    assert (told.reason, told.message, told.metadata) == (
        conflict.reason,
        conflict.message,
        conflict.metadata,
    )


def test_sources_without_fields_leave_the_class_as_it_is() -> None:
    assert union_by_kind([dataset("1", {})])[DatasetKind.EVENT].fields["timestamp"] == TIMESTAMP
