"""Adobe's XDM documents register as they are, and its examples come back from the data files as they were sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest

from profile_export.domain.schemas.types import IDENTITY_MAP_TYPE, ObjectType
from profile_export.domain.schemas.xdm_places import data_form
from profile_export.v1 import schema_pb2
from profile_export.v1 import schema_service_pb2 as ss
from tests.service.harness import SCHEMAS, Caller, refusal_of, shared_folder
from tests.service.stored import as_sent, stored_rows

COMPONENTS = shared_folder() / "adobe" / "xdm" / "components"
HAVE_THEM = COMPONENTS.exists()
pytestmark = pytest.mark.skipif(
    not HAVE_THEM,
    reason="Adobe's documents are not here: no adobe/xdm in a folder `shared` beside the checkout",
)
PROFILE, EVENT = SCHEMAS["record"], SCHEMAS["event"]
GROUPS_NEEDED = {
    "profile.example.1": [
        "profile-person-details",
        "profile-personal-details",
        "profile-phones",
        "profile-preferences-details",
        "profile-work-details",
    ],
    "experienceevent.example.2": ["experienceevent-environment-details", "experienceevent-web"],
    "experienceevent.example.4": ["experienceevent-environment-details"],
    "experienceevent.example.6": ["experienceevent-environment-details"],
    "experienceevent.example.7": [],
}
"""The field groups that know fields of an example of a class; of other fields no document is here."""
OTHER_EXAMPLES = 26


@cache
def documents() -> Mapping[Path, str]:
    return {path: path.read_text() for path in sorted(COMPONENTS.rglob("*.schema.json"))}


@cache
def by_id() -> Mapping[str, str]:
    return {json.loads(text)["$id"]: text for text in documents().values()}


def named(text: str) -> set[str]:
    """The documents that one needs: what its `$ref`s name, directly or through one another."""
    found: set[str] = set()
    waiting = list(_refs(json.loads(text)))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _refs(json.loads(by_id()[name]))
    return found


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "$ref":
                yield from [document for document in [member.partition("#")[0]] if document]
            else:
                yield from _refs(member)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def document_of(example: Path) -> str:
    name = example.name.partition(".example.")[0]
    return documents()[example.with_name(f"{name}.schema.json")]


def examples() -> list[Path]:
    return sorted(COMPONENTS.rglob("*.example.*.json"))


def in_data(example: Path) -> dict[str, Any]:
    """An example in data form; the keys of `identityMap` are namespaces, not names."""
    fields = ObjectType({"identityMap": IDENTITY_MAP_TYPE})
    row: dict[str, Any] = data_form(json.loads(example.read_text()), fields)
    return row


def stem(path: Path) -> str:
    return path.name.removesuffix(".json")


async def create(caller: Caller, text: str, known: set[str]) -> ss.CreateSchemaResponse:
    """Register a text unchanged, with those of the documents it needs that are not `known`."""
    request = ss.CreateSchemaRequest(
        document=text, referenced_documents=[by_id()[name] for name in sorted(named(text) - known)]
    )
    return await caller.schemas.CreateSchema(request, metadata=caller.metadata)


async def built_of(
    caller: Caller, class_id: str, *parts: str, properties: Mapping[str, Any] | None = None
) -> schema_pb2.Schema:
    """Register a schema of a class with further parts and properties."""
    document = {
        "$id": "https://example.com/built",
        "type": "object",
        "meta:class": class_id,
        "allOf": [{"$ref": name} for name in (class_id, *parts)],
        "properties": {"testId": {"type": "string"}, **(properties or {})},
    }
    text = json.dumps(document)
    return (await create(caller, text, set())).schema


@pytest.mark.slow
async def test_every_document_registers_unchanged_in_an_order_that_its_references_give(
    caller: Caller,
) -> None:
    # given all documents, each after those that it names
    waiting = {name: named(text) - {name} for name, text in by_id().items()}
    order: list[str] = []
    while waiting:
        ready = sorted(name for name, needs in waiting.items() if needs <= set(order))
        assert ready, waiting
        order += ready
        for name in ready:
            del waiting[name]

    # when they are registered one by one, and once more
    first = [await create(caller, by_id()[name], set(order)) for name in order]
    again = [await create(caller, by_id()[name], set(order)) for name in order]

    # then each is kept as it is, under its id
    assert [answer.schema.id for answer in first] == order
    assert not any(answer.replayed for answer in first)
    assert all(answer.replayed for answer in again)
    for name in order:
        kept = await caller.schemas.GetSchema(ss.GetSchemaRequest(schema_id=name), metadata=caller.metadata)
        assert kept.schema.document == by_id()[name]


@pytest.mark.parametrize("path", documents() if HAVE_THEM else [], ids=lambda path: path.name)
async def test_a_document_registers_with_those_that_it_names_in_one_call(caller: Caller, path: Path) -> None:
    text = documents()[path]

    answer = await create(caller, text, set())
    again = await create(caller, text, set())

    assert (answer.replayed, again.replayed) == (False, True)
    assert again.schema == answer.schema


@pytest.mark.parametrize("name", GROUPS_NEEDED)
async def test_an_example_of_a_class_comes_back_as_it_was_sent(caller: Caller, name: str) -> None:
    # given a schema of the class and the field groups that the example needs
    class_id = PROFILE if name.startswith("profile.") else EVENT
    groups = [
        json.loads(text)["$id"]
        for path, text in documents().items()
        if path.name.removesuffix(".schema.json") in ["identitymap", *GROUPS_NEEDED[name]]
    ]
    assert len(groups) == len(GROUPS_NEEDED[name]) + 1
    schema = await built_of(caller, class_id, *groups)
    dataset_id = await caller.dataset(schema.id)

    # when the example is uploaded with its first identity marked as the primary one
    row = in_data(COMPONENTS / "classes" / f"{name}.json")
    next(iter(row["identityMap"].values()))[0]["primary"] = True
    await caller.upload(dataset_id, "b", [row])

    # then the data files hold what was sent
    assert await stored_rows(caller, "b") == [as_sent(row)]


async def test_the_groups_that_examples_of_classes_need_are_all_that_know_their_fields(
    caller: Caller,
) -> None:
    knows = {}
    for path, text in documents().items():
        if path.parent.parent.name == "fieldgroups" and path.parent.name in ("profile", "experience-event"):
            fields = (await create(caller, text, set())).schema.fields
            knows[path.name.removesuffix(".schema.json")] = {field.name for field in fields}

    for name, groups in GROUPS_NEEDED.items():
        sent = set(in_data(COMPONENTS / "classes" / f"{name}.json"))
        kind = "experienceevent-" if name.startswith("experienceevent") else "profile-"
        found = [group for group, fields in knows.items() if group.startswith(kind) and fields & sent]
        assert found == groups, name


@pytest.mark.parametrize(
    "example",
    [path for path in examples() if stem(path) not in GROUPS_NEEDED] if HAVE_THEM else [],
    ids=stem,
)
@pytest.mark.slow
async def test_any_other_example_comes_back_inside_a_row_that_is_built_around_it(
    caller: Caller, example: Path
) -> None:
    # given a schema whose rows hold what the example's document describes, as a whole or in one field
    document = json.loads(document_of(example))
    value = in_data(example)
    is_event = "experience-event" in example.parts
    if "datatypes" in example.parts:
        value = {"example": value}
        schema = await built_of(caller, PROFILE, properties={"example": {"$ref": document["$id"]}})
    else:
        schema = await built_of(caller, EVENT if is_event else PROFILE, document["$id"])
    dataset_id = await caller.dataset(schema.id, {"testId": "Test"})
    row = value | {"testId": "1"}
    if is_event:
        row |= {"_id": "1", "timestamp": "2026-01-31T09:30:00Z"}

    # when the row is uploaded
    sent = caller.upload(dataset_id, "b", [row])

    # then its data files hold what was sent
    if example.name.startswith("product-measurement."):
        # It says `productSize` where its document says `xdm:productSize`: two names on paper, one in data.
        refusal = await refusal_of(sent)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ROW_REJECTED")
        assert (refusal.metadata["row_reason"], refusal.metadata["path"]) == (
            "FIELD_TYPE_CONFLICT",
            "productSize",
        )
        return
    await sent
    assert await stored_rows(caller, "b") == [as_sent(row)]


def test_no_example_is_left_out() -> None:
    assert len(documents()) == 76
    assert len(examples()) == OTHER_EXAMPLES + len(GROUPS_NEEDED)
