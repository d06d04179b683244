"""Schema documents as text: what is refused before it is read, and Adobe's own documents and examples."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from profile_export.domain.catalog.datasets import DatasetKind, Schema
from profile_export.domain.errors import FailedPreconditionError
from profile_export.domain.schemas.learning import ValueRefusedError, check_record
from profile_export.domain.schemas.types import TEXT, ObjectType, TypeConflictError, leaves, type_at
from profile_export.domain.schemas.xdm_places import SchemaInvalidError, data_form
from profile_export.ingest.schema_documents import (
    DRAFT,
    MAX_DOCUMENT_BYTES,
    Rules,
    parse_document,
    read_documents,
)
from tests.service.harness import shared_folder

PROFILE = "https://ns.adobe.com/xdm/context/profile"
EVENT = "https://ns.adobe.com/xdm/context/experienceevent"


def refused(text: str) -> SchemaInvalidError:
    with pytest.raises(SchemaInvalidError) as invalid:
        parse_document(text)
    return invalid.value


# --- Text ---


@pytest.mark.parametrize(
    ("text", "rule", "complaint"),
    [
        ("{", "json", "it is not JSON: Expecting property name"),
        ("", "json", "it is not JSON: Expecting value"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "json", "it is not JSON: 'b' stands twice in one object."),
        ('{"maximum": NaN}', "json", "it is not JSON: no double can hold NaN."),
        ('{"maximum": 1e999}', "json", "it is not JSON: no double can hold 1e999."),
        (
            f'{{"maximum": -{"9" * 5_000}}}',
            "json",
            "it is not JSON: an integer has 5,000 digits; at most 4,300 are read.",
        ),
        ('{"title": "\\ud800"}', "json", "it holds half of a surrogate pair, which is not text."),
        ("\ud800", "json", "it holds half of a surrogate pair, which is not text."),
        ("[" * 100_000, "json", "it is nested too deep."),
        (f'"{"é" * (MAX_DOCUMENT_BYTES // 2)}"', "size", f"it has more than {MAX_DOCUMENT_BYTES} bytes."),
        ("[]", "type", "a document is a JSON object."),
    ],
)
def test_text_that_is_no_json_object_of_a_fair_size_is_refused(text: str, rule: str, complaint: str) -> None:
    error = refused(text)

    assert (error.path, error.rule) == ("", rule)
    assert error.complaint.startswith(complaint)


@pytest.mark.parametrize(
    ("schema", "path", "rule"),
    [
        ({"type": "strin"}, "/type", "type"),
        ({"properties": {"a/b~c": 5}}, "/properties/a~1b~0c", "properties"),
        ({"properties": {"type": {"minLength": -1}}}, "/properties/type/minLength", "minLength"),
        ({"required": ["a", 1]}, "/required/1", "required"),
        ({"allOf": []}, "/allOf", "allOf"),
        (
            {"items": {"items": {"properties": {"a": {"pattern": "("}}}}},
            "/items/items/properties/a/pattern",
            "pattern",
        ),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema", "$schema"),
        ({"$schema": 5}, "/$schema", "$schema"),
    ],
)
def test_what_draft_06_does_not_allow_is_refused_where_it_stands(
    schema: Mapping[str, Any], path: str, rule: str
) -> None:
    error = refused(json.dumps({"$id": "it", **schema}))

    assert (error.path, error.rule) == (path, rule)
    assert error.message.startswith(f"The schema document 'it' is wrong at '{path}' ({rule}): ")


@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT}, {"$schema": DRAFT.removesuffix("#")}])
def test_a_document_is_returned_as_it_stands(draft: Mapping[str, Any]) -> None:
    document = {"$id": "it", "properties": {"xdm:a": {"meta:xdmType": "int", "maximum": 0.5}}, **draft}

    assert parse_document(json.dumps(document)) == document


# --- Documents together ---


def test_documents_of_one_call_refer_to_each_other_and_to_what_is_known() -> None:
    first = {"$id": "https://a/first", "allOf": [{"$ref": "second"}, {"$ref": "https://a/known"}]}
    second = {"$id": "https://a/second", "properties": {"xdm:b": {"type": "string"}}}
    known = {"$id": "https://a/known", "properties": {"xdm:k": {"type": "string"}}}
    stale = {"$id": "https://a/second", "type": "string"}

    schemas = read_documents(
        [json.dumps(first), json.dumps(second)], {"https://a/known": known, "https://a/second": stale}
    )

    assert [schema.id for schema in schemas] == ["https://a/first", "https://a/second"]
    assert schemas[0].fields == ObjectType({"b": TEXT, "k": TEXT})


def test_one_id_may_stand_once_in_a_call() -> None:
    text = json.dumps({"$id": "it"})

    with pytest.raises(SchemaInvalidError, match="two of the documents are 'it'"):
        read_documents([text, text], {})


def test_a_reference_to_an_unknown_document_is_told() -> None:
    with pytest.raises(FailedPreconditionError) as refusal:
        read_documents([json.dumps({"$id": "it", "allOf": [{"$ref": "https://a/b#/definitions/c"}]})], {})

    assert refusal.value.metadata == {"ref": "https://a/b#/definitions/c"}


def test_a_pattern_that_cannot_be_run_is_refused_with_its_field() -> None:
    entry = {"items": {"properties": {"schema:b": {"pattern": r"(?<n>a)\k<n>"}}}}
    document = {"$id": "it", "properties": {"xdm:m": {"additionalProperties": entry}}}

    with pytest.raises(SchemaInvalidError) as invalid:
        read_documents([json.dumps(document)], {})

    assert invalid.value.metadata == {"path": "m.*[]._schema.b", "rule": "pattern"}
    assert invalid.value.message.startswith(
        "The schema document 'it' is wrong at 'm.*[]._schema.b' (pattern): "
    )


def test_a_reference_is_never_fetched() -> None:
    document = {"$id": "it", "$schema": DRAFT, "allOf": [{"$ref": "http://127.0.0.1:9/schema"}]}

    assert parse_document(json.dumps(document)) == document


# --- Adobe's documents ---


@pytest.fixture(scope="module")
def files() -> Mapping[Path, str]:
    folder = shared_folder() / "adobe" / "xdm"
    if not folder.exists():
        pytest.skip("Adobe's documents are not here: no adobe/xdm in a folder `shared` beside the checkout")
    return {path: path.read_text() for path in sorted(folder.rglob("*.schema.json"))}


@pytest.fixture(scope="module")
def schemas(files: Mapping[Path, str]) -> Mapping[Path, Schema]:
    return dict(zip(files, read_documents(list(files.values()), {}), strict=True))


def examples(files: Mapping[Path, str]) -> Iterator[tuple[Path, Path, Any]]:
    """Every example with the document that it belongs to."""
    for path in files:
        name = path.name.removesuffix(".schema.json")
        for example in sorted(path.parent.glob(f"{name}.example.*.json")):
            yield path, example, json.loads(example.read_text())


def by_id(schemas: Mapping[Path, Schema]) -> Mapping[str, Schema]:
    return {schema.id: schema for schema in schemas.values()}


def test_every_document_of_adobe_is_read(schemas: Mapping[Path, Schema]) -> None:
    assert len(schemas) == 76
    assert {schema.id: schema.kind for schema in schemas.values() if schema.kind} == {
        PROFILE: DatasetKind.RECORD,
        EVENT: DatasetKind.EVENT,
    }
    # What has no fields is definitions for others only, or speaks of names in paper form.
    assert {schema.id for schema in schemas.values() if not schema.fields.fields} == {
        "https://ns.adobe.com/xdm/common/extensible",
        "http://ns.adobe.com/adobecloud/core/1.0",
    }


@pytest.mark.parametrize(
    ("schema_id", "path", "kind"),
    [
        ("context/profile", "_repo.createDate", "timestamp"),
        ("context/profile", "_id", "string"),
        ("context/experienceevent", "timestamp", "timestamp"),
        ("context/profile-personal-details", "homeAddress._schema.latitude", "double"),
        ("context/profile-person-details", "person.birthDate", "date"),
        ("context/profile-person-details", "person.birthYear", "long"),
        ("context/optinout", "_channels.direct-mail", "string"),
        ("context/experienceevent-enduserids", "endUserIDs._experience.mcid.id", "string"),
        ("context/placecontext", "POIinteraction.poiDetail.poiID", "string"),
        ("context/placecontext", "POIinteraction.POIDetail", "None"),
        ("mixins/profile-consents", "consents.idSpecific.ECID.123.marketing.push.val", "string"),
        ("context/profile-segmentation", "segmentMembership.ups.s1.payload.payloadNumberValue", "double"),
        ("context/profile-segmentation", "segmentMembership.ups.s1.lastQualificationTime", "timestamp"),
    ],
)
def test_fields_of_adobe_stand_where_they_stand_in_data(
    schemas: Mapping[Path, Schema], schema_id: str, path: str, kind: str
) -> None:
    schema = by_id(schemas)[f"https://ns.adobe.com/xdm/{schema_id}"]

    assert str(type_at(schema.fields, tuple(path.split(".")))) == kind


def test_every_example_of_adobe_keeps_the_rules_of_its_document_on_paper_and_in_data(
    files: Mapping[Path, str], schemas: Mapping[Path, Schema]
) -> None:
    documents = {path: parse_document(text) for path, text in files.items()}
    registry = jsonschema_rs.Registry(
        [(document["$id"], document) for document in documents.values()], draft=jsonschema_rs.Draft6
    )
    checked = 0

    for path, example, instance in examples(files):
        on_paper = jsonschema_rs.Draft6Validator(
            documents[path], registry=registry, validate_formats=True, offline=True
        )
        assert [str(error) for error in on_paper.iter_errors(instance)] == [], example.name
        rules = schemas[path].rules
        if rules:
            Rules(rules).check(data_form(instance, schemas[path].fields))
        checked += 1

    assert checked == 31


def test_every_example_of_adobe_fits_the_fields_of_its_document_but_one(
    files: Mapping[Path, str], schemas: Mapping[Path, Schema]
) -> None:
    refusals = {}

    for path, example, instance in examples(files):
        fields = schemas[path].fields
        try:
            value, _ = check_record(data_form(instance, fields), fields, set())
        except TypeConflictError as conflict:
            refusals[example.name] = conflict.message
        else:
            assert value

    # It says `productSize` where its document says `xdm:productSize`: two names on paper, one in data.
    assert refusals == {
        "product-measurement.example.1.json": "The field 'productSize' is double, but it is known as string."
    }


def test_a_schema_built_of_adobes_parts_has_the_fields_of_all_of_them(files: Mapping[Path, str]) -> None:
    parts = [
        PROFILE,
        "context/identitymap",
        "context/profile-person-details",
        "context/profile-personal-details",
        "context/profile-segmentation",
    ]
    documents = {document["$id"]: document for document in map(parse_document, files.values())}
    text = json.dumps(
        {
            "$id": "https://ns.adobe.com/acme/schemas/customers",
            "title": "Customers",
            "type": "object",
            "meta:class": PROFILE,
            "allOf": [
                {"$ref": f"https://ns.adobe.com/xdm/{part}" if "//" not in part else part} for part in parts
            ],
            "properties": {"_acme": {"properties": {"tier": {"type": "string", "enum": ["gold", "silver"]}}}},
        }
    )

    (schema,) = read_documents([text], documents)

    assert schema.kind is DatasetKind.RECORD
    assert {"_acme", "personID", "identityMap", "person", "homeAddress", "segmentMembership"} <= set(
        schema.fields.fields
    )
    assert len(list(leaves(schema.fields))) > 150
    assert schema.rules
    with pytest.raises(
        ValueRefusedError, match=r"^The field '_acme\.tier' is 'bronze', but the schema says enum"
    ):
        Rules(schema.rules).check({"_acme": {"tier": "bronze"}})
