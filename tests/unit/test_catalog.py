"""Tenants, datasets and batches: what they may be called, what they start with, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from profile_export.domain.catalog.datasets import (
    BUILT_IN_SCHEMAS,
    Dataset,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    Schema,
    SchemaRef,
    Tenant,
    check_declared_fields,
    check_identity_fields,
    check_tags,
    initial_fields,
    usable_kind,
    with_declared,
)
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.schemas.learning import MAX_DEPTH
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    IDENTITY_MAP_TYPE,
    LONG,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
    type_at,
)
from tests.builders import at

XDM = "https://ns.adobe.com/xdm/context"
PROFILE, EVENT, UNION = (
    BUILT_IN_SCHEMAS[f"{XDM}/{name}"] for name in ("profile", "experienceevent", "profile__union")
)


def declared(path: str, namespace: str = "Email", *, primary: bool = False) -> IdentityField:
    return IdentityField(tuple(path.split(".")), namespace, primary)


def dataset(kind: DatasetKind, *profile_tag: str) -> Dataset:
    tags = {"unifiedProfile": profile_tag} if profile_tag else {}
    return Dataset("d1", "CRM", "", SchemaRef(PROFILE.id), kind, tags, (), (), EMPTY, at(0), at(0))


def refusal_of(check: Callable[[], None]) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as refused:
        check()
    return refused.value


# --- Names ---


def test_without_headers_there_is_one_tenant() -> None:
    assert Tenant() == Tenant("default", "prod")


@pytest.mark.parametrize("part", ["a", "1234@AdobeOrg", "A.b-c_d", "x" * 64])
def test_an_org_and_a_sandbox_have_names_of_a_simple_form(part: str) -> None:
    tenant = Tenant(part, part)

    assert (tenant.org, tenant.sandbox) == (part, part)


@pytest.mark.parametrize("part", ["", "x" * 65, "a b", "a/b", "a\n", "é"])
def test_any_other_org_or_sandbox_is_refused_by_its_header(part: str) -> None:
    org, sandbox = (
        refusal_of(lambda: _make(Tenant, part, "prod")),
        refusal_of(lambda: _make(Tenant, "default", part)),
    )

    assert org.metadata["field"] == "x-gw-ims-org-id"
    assert sandbox.metadata["field"] == "x-sandbox-name"


def _make(kind: Callable[..., object], *arguments: str) -> None:
    kind(*arguments)


# --- Built-in schemas ---


def test_there_is_a_built_in_schema_for_each_kind_of_dataset() -> None:
    kinds = {schema.kind for schema in BUILT_IN_SCHEMAS.values()}

    assert kinds == set(DatasetKind)
    assert all(schema.id == schema_id for schema_id, schema in BUILT_IN_SCHEMAS.items())


def test_the_built_in_schemas_declare_what_every_record_and_event_may_have() -> None:
    assert (PROFILE.kind, PROFILE.fields) == (
        DatasetKind.RECORD,
        ObjectType({"identityMap": IDENTITY_MAP_TYPE, "segmentMembership": SEGMENT_MEMBERSHIP_TYPE}),
    )
    assert (EVENT.kind, EVENT.fields) == (
        DatasetKind.EVENT,
        ObjectType({"_id": TEXT, "timestamp": TIMESTAMP, "identityMap": IDENTITY_MAP_TYPE}),
    )
    assert (UNION.kind, UNION.fields) == (DatasetKind.UNION, EMPTY)


def test_the_two_maps_have_their_xdm_types() -> None:
    item = ObjectType({"id": TEXT, "authenticatedState": TEXT, "primary": BOOLEAN})
    entry = ObjectType({"lastQualificationTime": TIMESTAMP, "status": TEXT, "validUntil": TIMESTAMP})

    assert MapType(ArrayType(item)) == IDENTITY_MAP_TYPE
    assert MapType(MapType(entry)) == SEGMENT_MEMBERSHIP_TYPE


# --- Sources ---


@pytest.mark.parametrize(
    ("some", "is_source"),
    [
        (dataset(DatasetKind.RECORD), True),
        (dataset(DatasetKind.EVENT), True),
        (dataset(DatasetKind.UNION), False),
        (dataset(DatasetKind.RECORD, "enabled:true"), True),
        (dataset(DatasetKind.RECORD, "other", "enabled:false"), False),
        (dataset(DatasetKind.EVENT, "enabled:false"), False),
        (dataset(DatasetKind.UNION, "enabled:true"), False),
    ],
)
def test_s11_sources_are_records_and_events_that_are_not_switched_off(
    some: Dataset, *, is_source: bool
) -> None:
    assert some.is_source is is_source


def test_s9_records_patch_where_a_tag_says_so() -> None:
    patching = dataset(DatasetKind.RECORD, "enabled:true", "isUpsert:true")

    check_tags(patching.kind, patching.tags)
    check_tags(DatasetKind.EVENT, {"unifiedProfile": ("enabled:true",)})

    assert patching.upserts
    assert not dataset(DatasetKind.RECORD, "enabled:true").upserts
    assert not dataset(DatasetKind.RECORD).upserts


@pytest.mark.parametrize("kind", [DatasetKind.EVENT, DatasetKind.UNION])
def test_a_dataset_without_records_cannot_be_told_to_patch_them(kind: DatasetKind) -> None:
    refused = refusal_of(lambda: check_tags(kind, {"unifiedProfile": ("isUpsert:true",)}))

    assert refused.metadata["field"] == "tags.unifiedProfile"


@pytest.mark.parametrize(
    "value",
    ["enbled:false", "enabled", "enabled:no", "ENABLED:FALSE", "isUpsert:", "x:true", " enabled:false", ""],
)
def test_what_nearly_says_how_a_dataset_takes_part_is_refused_with_what_may_be_said(value: str) -> None:
    refused = refusal_of(lambda: check_tags(DatasetKind.RECORD, {"unifiedProfile": ("enabled:true", value)}))

    assert refused.metadata["field"] == "tags.unifiedProfile"
    assert repr(value) in str(refused)
    assert "enabled:false" in str(refused)


def test_tags_of_others_and_all_that_adobe_writes_are_kept() -> None:
    check_tags(
        DatasetKind.RECORD,
        {
            "unifiedProfile": ("enabled:true", "enabledAt:2026-01-31 10:00:00", "isUpsert:false"),
            "unifiedIdentity": ("enabled:yes",),
        },
    )


# --- Declared identity fields ---


def test_a_new_dataset_has_the_fields_of_its_schema_and_the_declared_ones_as_text() -> None:
    fields = initial_fields(EVENT, (declared("crm.ids.main"), declared("crm.email"), declared("_id")))

    assert fields == ObjectType(
        {
            **EVENT.fields.fields,
            "crm": ObjectType({"ids": ObjectType({"main": TEXT}), "email": TEXT}),
        }
    )


def test_a_new_dataset_without_declared_fields_has_those_of_its_schema() -> None:
    assert initial_fields(PROFILE, ()) is PROFILE.fields


@pytest.mark.parametrize("path", ["timestamp", "identityMap", "identityMap.Email", "_id.main", "Timestamp"])
def test_a_declared_field_that_contradicts_the_schema_is_refused(path: str) -> None:
    with pytest.raises(TypeConflictError):
        initial_fields(EVENT, (declared(path),))


def test_declared_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TypeConflictError, match="'crm'"):
        initial_fields(PROFILE, (declared("crm.id"), declared("crm")))


def test_several_identity_fields_may_share_a_namespace_and_one_may_be_primary() -> None:
    check_identity_fields(
        DatasetKind.RECORD,
        (declared("crm.id", "CRMID", primary=True), declared("email"), declared("other.email")),
    )


@pytest.mark.parametrize("kind", DatasetKind)
def test_a_dataset_may_declare_no_identity_field(kind: DatasetKind) -> None:
    check_identity_fields(kind, ())


def test_a_union_dataset_declares_no_identity_field() -> None:
    refused = refusal_of(lambda: check_identity_fields(DatasetKind.UNION, (declared("email"),)))

    assert refused.metadata["field"] == "identity_fields"
    assert "union dataset" in refused.message


@pytest.mark.parametrize("path", [(), ("",), ("crm", ""), ("", "id"), ("a",) * (MAX_DEPTH + 1)])
def test_a_declared_path_without_a_name_or_with_too_many_is_refused(path: tuple[str, ...]) -> None:
    fields = (declared("email"), IdentityField(path, "CRMID"))

    refused = refusal_of(lambda: check_identity_fields(DatasetKind.RECORD, fields))

    assert refused.metadata["field"] == "identity_fields[1].path"
    assert "dotted field path" in refused.message


@pytest.mark.parametrize("path", ["_batch_id", "_Profile_ID", "_ROW", "_links.id", "timeSeriesEvents"])
def test_a_declared_path_that_begins_with_a_system_column_is_refused(path: str) -> None:
    refused = refusal_of(lambda: check_identity_fields(DatasetKind.RECORD, (declared(path),)))

    assert refused.metadata["field"] == "identity_fields[0].path"
    assert "system column" in refused.message


def test_a_declared_path_may_have_the_name_of_a_system_column_inside() -> None:
    check_identity_fields(DatasetKind.RECORD, (declared("crm._row"),))


@pytest.mark.parametrize("namespace", ["", "a\0b"])
def test_a_declared_field_without_a_namespace_that_can_be_is_refused(namespace: str) -> None:
    refused = refusal_of(lambda: check_identity_fields(DatasetKind.RECORD, (declared("email", namespace),)))

    assert refused.metadata["field"] == "identity_fields[0].namespace"


def test_a_path_that_is_declared_twice_is_refused() -> None:
    fields = (declared("email"), declared("crm"), declared("email", "CRMID"))

    refused = refusal_of(lambda: check_identity_fields(DatasetKind.RECORD, fields))

    assert refused.metadata["field"] == "identity_fields[2].path"
    assert "twice" in refused.message


def test_two_primary_fields_are_refused() -> None:
    fields = (declared("email", primary=True), declared("crm", primary=True))

    refused = refusal_of(lambda: check_identity_fields(DatasetKind.RECORD, fields))

    assert refused.metadata["field"] == "identity_fields"
    assert "at most one" in refused.message


# --- Declared fields ---


def typed(path: str, kind: FieldType) -> FieldDeclaration:
    return FieldDeclaration(tuple(path.split(".")), kind)


def test_declared_types_and_identity_fields_come_on_top_of_the_schema() -> None:
    fields = initial_fields(PROFILE, (declared("crm.id"),), (typed("person.birthDate", DATE),))

    assert type_at(fields, ("person", "birthDate")) == DATE
    assert type_at(fields, ("crm", "id")) == TEXT
    assert "identityMap" in fields.fields


def test_s1_an_identity_field_that_is_typed_keeps_its_type_if_it_can_hold_an_identity() -> None:
    long = initial_fields(PROFILE, (declared("id"),), (typed("id", LONG),))

    with pytest.raises(TypeConflictError) as conflict:
        initial_fields(PROFILE, (declared("id"),), (typed("id", DOUBLE),))

    assert type_at(long, ("id",)) == LONG
    assert conflict.value.metadata["other_type"] == "double"


def test_declared_types_that_contradict_the_schema_are_a_conflict() -> None:
    with pytest.raises(TypeConflictError) as conflict:
        initial_fields(EVENT, (), (typed("timestamp", TEXT),))

    assert conflict.value.metadata["path"] == "timestamp"


def test_a_union_dataset_declares_no_fields() -> None:
    refused = refusal_of(
        lambda: check_declared_fields(DatasetKind.UNION, (typed("a", TEXT),), "declared_fields")
    )

    assert refused.metadata["field"] == "declared_fields"
    check_declared_fields(DatasetKind.UNION, (), "declared_fields")


@pytest.mark.parametrize(
    ("declaration", "field"),
    [
        (typed("_batch_id", TEXT), "where[0].path"),
        (typed("a..b", TEXT), "where[0].path"),
        (typed("a", ObjectType({"b.c": TEXT})), "where[0].type"),
        (typed("a", ArrayType(ObjectType({"": TEXT}))), "where[0].type"),
        (typed("a", MapType(ObjectType({"b": ObjectType({"c.d": TEXT})}))), "where[0].type"),
    ],
)
def test_declared_names_are_held_to_what_any_field_may_be_called(
    declaration: FieldDeclaration, field: str
) -> None:
    refused = refusal_of(lambda: check_declared_fields(DatasetKind.RECORD, (declaration,), "where"))

    assert refused.metadata["field"] == field


def test_a_declared_type_may_be_of_any_depth() -> None:
    kinds: tuple[FieldType, ...] = (TEXT, ArrayType(MapType(ObjectType({"b": LONG}))))

    check_declared_fields(
        DatasetKind.RECORD, [typed(f"a{index}", kind) for index, kind in enumerate(kinds)], "where"
    )


def test_a_component_schema_is_refused_for_a_dataset() -> None:
    component = Schema("https://example.com/address", None, EMPTY)

    refused = refusal_of(lambda: _use(component))

    assert refused.metadata["field"] == "schema_ref.id"
    assert usable_kind(PROFILE) is DatasetKind.RECORD


def _use(schema: Schema) -> None:
    usable_kind(schema)


def test_a_type_is_nested_no_deeper_below_its_path_than_data_may_be() -> None:
    path = ".".join("d" * MAX_DEPTH)

    check_declared_fields(DatasetKind.RECORD, (typed(path, ArrayType(TEXT)),), "declared_fields")
    for kind in (ArrayType(MapType(TEXT)), ObjectType({"a": TEXT})):
        with pytest.raises(InvalidArgumentError) as refused:
            check_declared_fields(DatasetKind.RECORD, (typed(path, kind),), "declared_fields")

        assert f"nested deeper than {MAX_DEPTH} levels, those of its path included" in refused.value.message


def test_a_declared_type_that_is_narrower_than_what_is_known_is_refused() -> None:
    known = ObjectType({"a": ObjectType({"b": DOUBLE})})

    assert with_declared(known, (typed("a.c", LONG),)) == ObjectType(
        {"a": ObjectType({"b": DOUBLE, "c": LONG})}
    )
    with pytest.raises(TypeConflictError):
        with_declared(known, (typed("a.b", LONG),))
