"""Schemas: registered, followed by datasets, and merged into the union of a class."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from profile_export.v1 import dataset_pb2
from profile_export.v1 import schema_service_pb2 as ss
from tests.service.harness import SCHEMAS, Caller, json_lines, refusal_from, refusal_of, types_of

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
PERSON: dict[str, Any] = {
    "$id": "https://example.com/person",
    "$schema": "http://json-schema.org/draft-06/schema#",
    "title": "Person",
    "type": "object",
    "properties": {
        "xdm:firstName": {"type": "string"},
        "xdm:gender": {"type": "string", "enum": ["female", "male"]},
    },
}


def crm(properties: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """A schema of records that uses PERSON."""
    return {
        "$id": "https://example.com/crm",
        "title": "CRM",
        "type": "object",
        "meta:class": SCHEMAS["record"],
        "properties": {
            "crmId": {"type": "string"},
            "visits": {"type": "integer", "minimum": 0},
            "born": {"type": "string", "format": "date"},
            "person": {"$ref": PERSON["$id"]},
            **(properties or {}),
        },
        **others,
    }


async def get(caller: Caller, schema_id: str, version: int | None = None) -> Any:
    request = ss.GetSchemaRequest(schema_id=schema_id, version=version)
    return (await caller.schemas.GetSchema(request, metadata=caller.metadata)).schema


async def listed(caller: Caller, page_size: int = 0) -> list[Any]:
    schemas: list[Any] = []
    token = ""
    while True:
        request = ss.ListSchemasRequest(page_size=page_size, page_token=token)
        page = await caller.schemas.ListSchemas(request, metadata=caller.metadata)
        schemas += page.schemas
        token = page.next_page_token
        if not token:
            return schemas


async def union(caller: Caller, name: str = "_xdm.context.profile") -> Any:
    request = ss.GetUnionSchemaRequest(schema_name=name)
    return (await caller.schemas.GetUnionSchema(request, metadata=caller.metadata)).union_schema


# --- Registered ---


async def test_a_document_becomes_a_schema_with_fields_as_in_data(caller: Caller) -> None:
    made = await caller.schema(crm(), PERSON, identities={"crmId": "CRM"})

    schema = made.schema
    found = await get(caller, schema.id)
    assert (schema.id, schema.title, schema.version, schema.built_in) == (crm()["$id"], "CRM", 1, False)
    assert (schema.kind, schema.class_id) == (dataset_pb2.DATASET_KIND_RECORD, SCHEMAS["record"])
    assert json.loads(schema.document) == crm()
    fields = types_of(schema.fields)
    assert fields["person"] == {"firstName": "string", "gender": "string"}
    assert (fields["visits"], fields["born"]) == ("long", "date")
    assert [(one.path, one.namespace, one.primary) for one in schema.identity_fields] == [
        ("crmId", "CRM", True)
    ]
    assert found == schema


async def test_a_document_may_name_a_built_in_class_that_nobody_registered(caller: Caller) -> None:
    document = {**crm(), "allOf": [{"$ref": SCHEMAS["record"]}, {"$ref": PERSON["$id"]}]}
    del document["meta:class"]

    schema = (await caller.schema(document, PERSON)).schema

    assert schema.class_id == SCHEMAS["record"]
    assert {"identityMap", "firstName", "visits"} <= types_of(schema.fields).keys()


async def test_the_same_document_again_is_a_replay_and_a_wider_one_the_next_version(caller: Caller) -> None:
    first = await caller.schema(crm(), PERSON)

    again = await caller.schema(crm())
    wider = await caller.schema(crm({"visits": {"type": "number"}, "city": {"type": "string"}}))

    assert again.replayed
    assert again.schema == first.schema
    assert (wider.replayed, wider.schema.version) == (False, 2)
    assert types_of((await get(caller, crm()["$id"])).fields)["visits"] == "double"
    assert types_of((await get(caller, crm()["$id"], 1)).fields)["visits"] == "long"


@pytest.mark.parametrize(
    ("properties", "path"),
    [({"visits": {"type": "string"}}, "visits"), ({"born": {"type": "string"}}, "born")],
)
async def test_a_document_that_changes_a_field_is_refused(
    caller: Caller, properties: dict[str, Any], path: str
) -> None:
    await caller.schema(crm(), PERSON)

    refusal = await refusal_of(caller.schema(crm(properties)))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert refusal.metadata["path"] == path
    assert (await get(caller, crm()["$id"])).version == 1


async def test_a_document_that_leaves_out_a_field_is_refused(caller: Caller) -> None:
    await caller.schema(crm({"city": {"type": "string"}}), PERSON)

    refusal = await refusal_of(caller.schema(crm()))

    assert (refusal.reason, refusal.metadata["path"]) == ("FIELD_TYPE_CONFLICT", "city")


async def test_a_document_whose_parts_are_not_known_is_refused_and_leaves_nothing(caller: Caller) -> None:
    refusal = await refusal_of(caller.schema(crm()))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "SCHEMA_REF_NOT_FOUND")
    assert refusal.metadata["ref"] == PERSON["$id"]
    assert all(schema.built_in for schema in await listed(caller))


async def test_documents_are_registered_all_or_none(caller: Caller) -> None:
    await caller.schema(crm(), PERSON)
    address = {"$id": "https://example.com/address", "type": "object"}

    await refusal_of(caller.schema(crm({"visits": {"type": "string"}}), address))

    refusal = await refusal_of(get(caller, address["$id"]))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SCHEMA_NOT_FOUND")


@pytest.mark.parametrize(
    "document",
    ["", "no json", "[]", "{}", '{"$id": 7}', '{"$id": "https://example.com/x", "type": "nonsense"}'],
)
async def test_what_is_no_document_is_refused(caller: Caller, document: str) -> None:
    request = ss.CreateSchemaRequest(document=document)

    refusal = await refusal_of(caller.schemas.CreateSchema(request, metadata=caller.metadata))

    assert (refusal.code, refusal.reason) == (INVALID, "SCHEMA_INVALID")
    assert {"path", "rule"} <= refusal.metadata.keys()


async def test_the_built_in_union_schema_cannot_be_registered(caller: Caller) -> None:
    document = {"$id": SCHEMAS["union"], "type": "object"}

    refusal = await refusal_of(caller.schema(document))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "SCHEMA_BUILT_IN")


async def test_schemas_are_listed_page_by_page_the_built_in_ones_first(caller: Caller) -> None:
    await caller.schema(crm(), PERSON)
    await caller.schema(crm({"city": {"type": "string"}}))

    whole, pages = await listed(caller), await listed(caller, page_size=1)

    assert [(schema.id, schema.version) for schema in whole] == [
        *((schema_id, 1) for schema_id in sorted(SCHEMAS.values())),
        (PERSON["$id"], 1),
        (crm()["$id"], 2),
    ]
    assert pages == whole
    assert all(not schema.document and not schema.fields for schema in whole)


# --- Followed by datasets ---


async def test_a_dataset_of_a_schema_has_its_fields_and_identities(caller: Caller) -> None:
    await caller.schema(crm(), PERSON, identities={"crmId": "CRM"})

    source = await caller.get_dataset(await caller.dataset(crm()["$id"]))

    assert source.kind == dataset_pb2.DATASET_KIND_RECORD
    assert [(one.path, one.primary) for one in source.identity_fields] == [("crmId", True)]
    assert {"identityMap", "segmentMembership", "visits"} <= types_of(source.fields).keys()


async def test_rows_are_held_to_the_rules_of_the_schema(caller: Caller) -> None:
    await caller.schema(crm(), PERSON, identities={"crmId": "CRM"})
    source = await caller.dataset(crm()["$id"])
    rows: list[dict[str, Any]] = [
        {"crmId": "1", "visits": 3, "person": {"gender": "female"}, "extra": "is learned"},
        {"crmId": "2", "visits": -1},
        {"crmId": "3", "person": {"gender": "unsaid"}},
        {"crmId": "4", "visits": 1.5},
        {"crmId": "5", "person": {"gender": None}},
    ]

    batch = (await caller.send(source, "b", json_lines(rows), max_bad_records=3)).batch

    rejected = (await caller.rejected("b")).rows
    assert batch.rows == 2
    assert [(row.row_number, row.reason, row.path) for row in rejected] == [
        (2, "VALUE_INVALID", "visits"),
        (3, "VALUE_INVALID", "person.gender"),
        (4, "VALUE_INVALID", "visits"),
    ]


async def test_datasets_follow_the_newest_version(caller: Caller) -> None:
    await caller.schema(crm(), PERSON, identities={"crmId": "CRM"})
    source = await caller.dataset(crm()["$id"])
    await caller.upload(source, "before", [{"crmId": "1", "visits": 1}])

    await caller.schema(crm({"visits": {"type": "number"}, "city": {"type": "string", "maxLength": 3}}))
    await caller.upload(source, "after", [{"crmId": "2", "visits": 1.5, "city": "Ulm"}])
    refusal = await refusal_of(caller.upload(source, "bad", [{"crmId": "2", "city": "Oslo"}]))

    job = await caller.export(await caller.dataset("union"), fields=["crmId", "visits", "city"])
    rows = sorted((row["crmId"], row["visits"], row["city"]) for row in await caller.rows(job.batch_id))
    assert rows == [("1", 1.0, None), ("2", 1.5, "Ulm")]
    assert (refusal.reason, refusal.metadata["path"]) == ("ROW_REJECTED", "city")


async def test_a_version_that_contradicts_another_dataset_is_refused(caller: Caller) -> None:
    await caller.schema(crm(), PERSON, identities={"crmId": "CRM"})
    await caller.dataset(crm()["$id"])
    other = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(other, "b", [{"id": "1", "city": "Oslo"}])

    refusal = await refusal_of(caller.schema(crm({"city": {"type": "integer"}})))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert (refusal.metadata["path"], refusal.metadata["other_dataset_id"]) == ("city", other)
    assert refusal.message.endswith(
        f"({other}). Give it the same type in the document, or keep the dataset out of exports with the tag "
        "unifiedProfile: enabled:false."
    )
    assert (await get(caller, crm()["$id"])).version == 1


async def test_a_component_is_no_schema_for_a_dataset(caller: Caller) -> None:
    await caller.schema(PERSON)

    refusal = await refusal_of(caller.dataset(PERSON["$id"], {"id": "CRM"}))

    assert (refusal.code, refusal.fields) == (INVALID, ["schema_ref.id"])


# --- Union schemas ---


async def test_the_union_of_a_class_merges_its_sources_and_always_has_the_three_maps(caller: Caller) -> None:
    empty = await union(caller)
    record = await caller.dataset("record", {"id": "CRM"})
    event = await caller.dataset("event", {"who": "CRM"})
    await caller.upload(record, "r", [{"id": "1", "age": 40}])

    records, events = await union(caller), await union(caller, "_xdm.context.experienceevent")

    assert types_of(empty.fields).keys() == {"identityMap", "segmentMembership", "timeSeriesEvents"}
    fields = types_of(records.fields)
    assert fields["age"] == "double"
    assert fields["timeSeriesEvents"] == [types_of(events.fields)]
    assert types_of(events.fields)["who"] == "string"
    assert (list(records.dataset_ids), list(events.dataset_ids)) == ([record], [event])


async def test_an_unknown_class_is_not_found(caller: Caller) -> None:
    refusal = await refusal_of(union(caller, "_xdm.context.account"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SCHEMA_NOT_FOUND")


@pytest.mark.parametrize("depth", [900, 960, 980, 1_000, 100_000])
async def test_a_document_that_is_nested_deep_is_registered_or_refused_in_words(
    caller: Caller, depth: int
) -> None:
    text = f'{{"$id": "https://example.com/deep", "meta:note": {"[" * depth}{"]" * depth}}}'
    request = ss.CreateSchemaRequest(document=text)

    try:
        answer = await caller.schemas.CreateSchema(request, metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_from(error)
        assert (refusal.code, refusal.reason) == (INVALID, "SCHEMA_INVALID")
        assert "nested too deep" in refusal.message
    else:
        assert answer.schema.document == text
