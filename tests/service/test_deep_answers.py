"""Data is nested deeper than messages can be: what is too deep is told apart, and never keeps an answer from coming."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from profile_export.api.convert.values import MOST_LEVELS
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import profile_pb2
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from tests.service.harness import Caller

DEEPEST = 64


@pytest.mark.parametrize("kind", ["objects", "arrays"])
async def test_what_is_nested_deeper_than_a_message_can_be_is_still_answered(
    caller: Caller, kind: str
) -> None:
    value: Any = "deep"
    for _ in range(DEEPEST - 1):
        value = {"in": value} if kind == "objects" else [value]
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "b", [{"id": "1", "top": value}])

    shown = await caller.datasets.GetDataset(
        ds.GetDatasetRequest(dataset_id=source), metadata=caller.metadata
    )
    union = await caller.schemas.GetUnionSchema(
        ss.GetUnionSchemaRequest(schema_name="_xdm.context.profile"), metadata=caller.metadata
    )
    answer = await caller.datasets.PreviewDataset(
        ds.PreviewDatasetRequest(dataset_id=source), metadata=caller.metadata
    )
    [row] = [MessageToDict(one) for one in answer.rows]

    person = await caller.profiles.GetProfile(
        ps.GetProfileRequest(identity=profile_pb2.Identity(namespace="CRM", id="1")), metadata=caller.metadata
    )
    assert MessageToDict(person.profile.values)["top"] == row["top"]

    for fields in (shown.dataset.fields, union.union_schema.fields):
        [deep] = [field.type for field in fields if field.name == "top"]
        levels = 0
        while deep.WhichOneof("kind"):
            deep = deep.object.fields[0].type if kind == "objects" else deep.array.item
            levels += 1
        assert levels == MOST_LEVELS + 1
    text = row["top"]
    while not isinstance(text, str):
        text = text["in"] if kind == "objects" else text[0]
    found = json.loads(text)
    while not isinstance(found, str):
        found = found["in"] if kind == "objects" else found[0]
    assert found == "deep"


async def test_a_document_that_is_nested_deeper_than_a_message_can_be_is_registered_and_shown(
    caller: Caller,
) -> None:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(DEEPEST - 1):
        inner = {"type": "object", "properties": {"in": inner}}
    document = {
        "$id": "https://ns.example.com/deep",
        "$schema": "http://json-schema.org/draft-06/schema#",
        "type": "object",
        "meta:class": "https://ns.adobe.com/xdm/context/profile",
        "allOf": [{"$ref": "https://ns.adobe.com/xdm/context/profile"}],
        "properties": {"top": inner},
    }

    made = await caller.schemas.CreateSchema(
        ss.CreateSchemaRequest(document=json.dumps(document)), metadata=caller.metadata
    )
    listed = await caller.schemas.GetSchema(
        ss.GetSchemaRequest(schema_id=made.schema.id), metadata=caller.metadata
    )

    assert listed.schema == made.schema
