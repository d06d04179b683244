from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, DatasetKind, Schema
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    IDENTITY_MAP_TYPE,
    LONG,
    TEXT,
    TIMESTAMP,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    type_at,
)
from profile_export.domain.schemas.xdm import read_document
from profile_export.domain.schemas.xdm_places import SchemaInvalidError

PROFILE = "https://ns.adobe.com/xdm/context/profile"
EVENT = "https://ns.adobe.com/xdm/context/experienceevent"
KNOWN: Mapping[str, Mapping[str, Any]] = {
    PROFILE: {"$id": PROFILE, "properties": {"xdm:personID": {"type": "string"}}},
    EVENT: {"$id": EVENT, "properties": {"@id": {"type": "string"}}},
}


def read(document: Mapping[str, Any], **known: Mapping[str, Any]) -> Schema:
    """Read a document with the id `it`; `known` are documents by their ids."""
    others = {name: {"$id": name, **other} for name, other in known.items()}
    return read_document({"$id": "it", **document}, {**KNOWN, **others})


def refused(document: Mapping[str, Any], **known: Mapping[str, Any]) -> tuple[str, str]:
    with pytest.raises(SchemaInvalidError) as invalid:
        read(document, **known)
    assert invalid.value.reason == "SCHEMA_INVALID"
    own_id = document.get("$id", "it")
    assert (f"The schema document '{own_id}' is wrong" in invalid.value.message) is (own_id == "it")
    return invalid.value.metadata["path"], invalid.value.metadata["rule"]


def type_of(schema: Mapping[str, Any]) -> FieldType | None:
    return read({"properties": {"xdm:a": schema}}).fields.fields.get("a")


# --- Classes ---


def test_a_schema_as_a_registry_keeps_it_is_of_the_class_that_it_names() -> None:
    schema = read(
        {
            "$id": "https://ns.adobe.com/acme/schemas/1#",
            "title": "Customers",
            "type": "object",
            "meta:class": PROFILE,
            "allOf": [{"$ref": PROFILE}, {"$ref": "loyalty"}],
            "properties": {"_acme": {"type": "object", "properties": {"shirt": {"type": "string"}}}},
        },
        loyalty={
            "properties": {
                "xdm:loyalty": {"type": "object", "properties": {"xdm:points": {"type": "integer"}}}
            }
        },
    )

    assert schema == Schema(
        id="https://ns.adobe.com/acme/schemas/1",
        title="Customers",
        class_id=PROFILE,
        kind=DatasetKind.RECORD,
        fields=ObjectType(
            {
                "_acme": ObjectType({"shirt": TEXT}),
                "personID": TEXT,
                "loyalty": ObjectType({"points": LONG}),
            }
        ),
        rules="",
    )


@pytest.mark.parametrize(
    "document",
    [
        {"$id": EVENT},
        {"meta:extends": ["unknown", "#", f"{EVENT}#"]},
        {"allOf": [True, {"title": "no reference"}, {"$ref": f"{EVENT}#"}]},
        {"$ref": EVENT},
        {"meta:extends": ["between"]},
        {"allOf": [{"$ref": "between"}]},
    ],
)
def test_without_a_named_class_a_document_is_of_the_class_that_it_leads_to(
    document: Mapping[str, Any],
) -> None:
    schema = read(document, between={"allOf": [{"$ref": EVENT}], "meta:extends": ["between"]})

    assert (schema.class_id, schema.kind) == (EVENT, DatasetKind.EVENT)


@pytest.mark.parametrize("document", [{}, {"meta:intendedToExtend": [PROFILE], "meta:extends": [PROFILE]}])
def test_what_others_build_upon_is_a_component(document: Mapping[str, Any]) -> None:
    schema = read(document)

    assert (schema.class_id, schema.kind, schema.title) == ("", None, "")


@pytest.mark.parametrize("class_id", ["https://ns.adobe.com/xdm/context/product", 5, [], f"{PROFILE}__union"])
def test_a_class_of_which_no_datasets_are_kept_is_refused(class_id: object) -> None:
    assert refused({"meta:class": class_id}) == ("/meta:class", "meta:class")


def test_a_document_of_both_classes_is_refused() -> None:
    assert refused({"meta:extends": [PROFILE, EVENT, "", 5]}) == ("", "meta:class")


def test_what_extends_nothing_readable_is_a_component() -> None:
    assert read({"meta:extends": 5}).kind is None


def test_a_document_that_contradicts_its_class_is_refused() -> None:
    assert refused({"meta:class": EVENT, "properties": {"xdm:timestamp": {"type": "string"}}}) == (
        "timestamp",
        "type",
    )
    assert refused({"meta:class": PROFILE, "type": "string"}) == ("", "type")


@pytest.mark.parametrize("own_id", [None, "", "#", 5])
def test_a_document_without_an_id_is_refused(own_id: object) -> None:
    assert refused({"$id": own_id}) == ("/$id", "$id")


# --- Types ---


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, TEXT),
        ({"type": "string", "format": "uri"}, TEXT),
        ({"type": "string", "format": "date-time"}, TIMESTAMP),
        ({"type": "string", "format": "date"}, DATE),
        ({"type": "string", "meta:xdmType": "date-time"}, TIMESTAMP),
        ({"format": "date"}, DATE),
        ({"meta:xdmType": "date"}, DATE),
        ({"type": "integer"}, LONG),
        ({"type": "integer", "meta:xdmType": "short"}, LONG),
        ({"type": "number", "meta:xdmType": "long"}, LONG),
        ({"type": "number"}, DOUBLE),
        ({"type": "number", "meta:xdmType": "double"}, DOUBLE),
        ({"meta:xdmType": "int"}, LONG),
        ({"type": "boolean"}, BOOLEAN),
        ({"type": ["string", "null"]}, TEXT),
        ({"type": ["null", "integer", "number"]}, DOUBLE),
        ({"type": "array", "items": {"type": "string"}}, ArrayType(TEXT)),
        ({"items": {"items": {"type": "integer"}}}, ArrayType(ArrayType(LONG))),
        ({"type": "object", "properties": {"xdm:b": {"type": "string"}}}, ObjectType({"b": TEXT})),
        ({"properties": {"schema:b": {"type": "string"}}}, ObjectType({"_schema": ObjectType({"b": TEXT})})),
        ({"type": "object", "additionalProperties": {"type": "number"}}, MapType(DOUBLE)),
        ({"meta:xdmType": "map", "additionalProperties": {"meta:xdmType": "int"}}, MapType(LONG)),
        (
            {
                "type": "object",
                "meta:xdmType": "map",
                "properties": {"monday": {"type": "number"}, "tuesday": {}},
                "additionalProperties": {"type": "integer"},
            },
            MapType(DOUBLE),
        ),
        (
            {"properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "number"}},
            ObjectType({"b": TEXT}),
        ),
    ],
)
def test_a_field_has_the_type_that_its_schema_says(schema: Mapping[str, Any], expected: FieldType) -> None:
    assert type_of(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        False,
        {"type": "object"},
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": False},
        {"type": "object", "properties": {"b": {}}},
        {"type": "array"},
        {"type": "array", "items": {}},
        {"type": "array", "items": [{"type": "string"}]},
        {"type": "null"},
        {"type": ["string", "number"]},
        {"oneOf": [{"type": "string"}, {"type": "number"}]},
        {"enum": ["a"]},
        {"allOf": [{"type": "string"}, False]},
    ],
)
def test_what_a_schema_leaves_open_is_no_field(schema: Any) -> None:
    assert type_of(schema) is None


def test_all_parts_of_a_composition_speak_of_one_field() -> None:
    known = {"name": {"properties": {"xdm:first": {"type": "string"}, "xdm:born": {"type": "string"}}}}

    fields = read(
        {
            "properties": {
                "xdm:name": {
                    "allOf": [
                        {"$ref": "name"},
                        {"properties": {"xdm:born": {"format": "date"}, "xdm:age": {"type": "number"}}},
                        {"properties": {"xdm:age": {"type": "integer"}}},
                    ]
                }
            }
        },
        **known,
    ).fields

    assert fields == ObjectType({"name": ObjectType({"first": TEXT, "born": DATE, "age": LONG})})


@pytest.mark.parametrize(
    ("schema", "at", "rule"),
    [
        ({"allOf": [{"type": "string"}, {"type": "object"}]}, "a", "type"),
        ({"items": {"type": "string", "meta:xdmType": "int"}}, "a[]", "meta:xdmType"),
        ({"additionalProperties": {"meta:xdmType": "bytes"}}, "a.*", "meta:xdmType"),
        ({"meta:xdmType": {}}, "a", "meta:xdmType"),
        ({"meta:xdmType": "map"}, "a", "meta:xdmType"),
        ({"type": "string", "format": "date", "meta:xdmType": "date-time"}, "a", "format"),
        (
            {
                "meta:xdmType": "map",
                "properties": {"b": {"type": "string"}},
                "additionalProperties": {"type": "number"},
            },
            "a.*",
            "type",
        ),
    ],
)
def test_a_contradiction_is_refused_with_its_field(schema: Mapping[str, Any], at: str, rule: str) -> None:
    assert refused({"properties": {"xdm:a": schema}}) == (at, rule)


def test_a_component_that_is_no_object_has_no_fields() -> None:
    assert read({"type": "string"}).fields == EMPTY


def test_the_identity_map_has_its_own_type_whatever_a_document_says() -> None:
    fields = read({"properties": {"xdm:identityMap": {"type": "object"}}}).fields

    assert fields == ObjectType({"identityMap": IDENTITY_MAP_TYPE})


def test_the_segment_membership_has_its_own_type_and_what_a_document_adds() -> None:
    entry = {"properties": {"xdm:version": {"type": "string"}}}
    membership = {"additionalProperties": {"additionalProperties": entry}}

    fields = read({"properties": {"xdm:segmentMembership": membership, "b": {}}}).fields
    bare = read({"properties": {"segmentMembership": {}}}).fields

    entry_type = type_at(fields, ("segmentMembership", "ups", "s1"))
    assert isinstance(entry_type, ObjectType)
    assert entry_type.fields == {
        "lastQualificationTime": TIMESTAMP,
        "status": TEXT,
        "validUntil": TIMESTAMP,
        "version": TEXT,
    }
    assert bare.fields == {
        "segmentMembership": BUILT_IN_SCHEMAS[PROFILE].fields.fields["segmentMembership"],
    }


def test_a_segment_membership_that_is_no_map_of_maps_is_refused() -> None:
    membership = {"additionalProperties": {"type": "string"}}

    assert refused({"properties": {"segmentMembership": membership}}) == ("segmentMembership.*", "type")


def test_the_columns_of_the_system_and_the_events_of_a_profile_are_no_fields() -> None:
    text = {"type": "string"}

    fields = read(
        {"properties": {"_row": text, "xdm:timeSeriesEvents": text, "a": {"properties": {"_row": text}}}}
    ).fields

    assert fields == ObjectType({"a": ObjectType({"_row": TEXT})})


# --- Any fields ---

_WORDS: Mapping[Scalar, Mapping[str, str]] = {
    TEXT: {"type": "string"},
    BOOLEAN: {"type": "boolean"},
    LONG: {"type": "integer"},
    DOUBLE: {"type": "number", "meta:xdmType": "double"},
    DATE: {"type": "string", "format": "date"},
    TIMESTAMP: {"type": "string", "format": "date-time"},
}
_NAMES = st.text("abcxyz_-é", min_size=1, max_size=4)


def _objects(member: st.SearchStrategy[FieldType]) -> st.SearchStrategy[ObjectType]:
    return st.dictionaries(_NAMES, member, min_size=1, max_size=4).map(ObjectType)


_TYPES: st.SearchStrategy[FieldType] = st.recursive(
    st.sampled_from(list(_WORDS)),
    lambda inner: st.one_of(inner.map(ArrayType), inner.map(MapType), _objects(inner)),
    max_leaves=12,
)


def _written(field_type: FieldType, data: st.DataObject, definitions: dict[str, Any]) -> dict[str, Any]:
    """Write a type as a schema, in one of the ways that there are."""
    schema: dict[str, Any]
    match field_type:
        case ObjectType(fields):
            members = {
                data.draw(st.sampled_from(["xdm:", ""])) + name: _written(member, data, definitions)
                for name, member in fields.items()
            }
            split = data.draw(st.integers(0, len(members)))
            parts = [dict(list(members.items())[:split]), dict(list(members.items())[split:])]
            schema = {"allOf": [{"properties": part} for part in parts]}
        case ArrayType(item):
            schema = {"type": "array", "items": _written(item, data, definitions)}
        case MapType(value):
            schema = {"meta:xdmType": "map", "additionalProperties": _written(value, data, definitions)}
        case scalar:
            assert isinstance(scalar, Scalar)
            schema = dict(_WORDS[scalar])
    if data.draw(st.booleans()):
        name = f"d/{len(definitions)}~"
        definitions[name] = schema
        return {"$ref": f"#/definitions/{name.replace('~', '~0').replace('/', '~1')}"}
    return schema


@given(_objects(_TYPES), st.data())
def test_any_fields_come_back_from_a_document_that_describes_them(
    fields: ObjectType, data: st.DataObject
) -> None:
    definitions: dict[str, Any] = {}

    schema = _written(fields, data, definitions)

    assert read({**schema, "definitions": definitions}).fields == fields
