"""Requests at the limits of the table and one above them, sent to a real server: every field of every method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from profile_export.api import limits
from profile_export.api.limits import LIMITS, Limit
from profile_export.domain.schemas.learning import MAX_DEPTH
from profile_export.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)
from tests.service.harness import Caller, Refusal, refusal_from, refusal_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MODULES = (dataset_service_pb2, export_service_pb2, profile_service_pb2, schema_service_pb2)
METHODS = {
    method.name: method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
UNLIMITED = {"UploadBatchRequest.data"}  # as long as the message around it may be
TOO_MUCH = {"FIELD_TOO_LONG", "TOO_MANY_ITEMS", "NESTED_TOO_DEEP", "MESSAGE_TOO_LARGE", "MESSAGE_MALFORMED"}


@dataclass(frozen=True)
class Place:
    """A field with a limit, and how to come to it from the request of a method."""

    method: MethodDescriptor
    steps: tuple[FieldDescriptor, ...]
    limit: Limit

    @property
    def path(self) -> str:
        """The path of the field as an error names it, if the first item of each repeated message is taken."""
        names = [
            f"{one.name}[0]" if one.is_repeated and not of_map(one) else one.name for one in self.steps[:-1]
        ]
        between = [part for one, name in zip(self.steps, names, strict=False) for part in through(one, name)]
        return ".".join([*between, self.steps[-1].name])

    def request(self, *, items: int = 1, length: int = 1) -> Message:
        """A request with so many items, each (or the text, or each key of a map) so long."""
        request = GetMessageClass(self.method.input_type)()
        holder: Any = request
        for step in self.steps[:-1]:
            holder = getattr(holder, step.name)
            if of_map(step):
                holder = holder["key"]
            elif step.is_repeated:
                holder = holder.add()
            else:
                holder.SetInParent()
        fill(holder, self.steps[-1], items, length)
        return request


def of_map(one: FieldDescriptor) -> bool:
    return bool(one.message_type and one.message_type.GetOptions().map_entry)


def through(one: FieldDescriptor, name: str) -> list[str]:
    return [name, "value"] if of_map(one) else [name]


def fill(holder: Any, last: FieldDescriptor, items: int, length: int) -> None:
    if of_map(last):
        values = getattr(holder, last.name)
        for index in range(items):
            key = str(index).ljust(length, "k")
            if last.message_type and last.message_type.fields_by_name["value"].message_type:
                values[key].SetInParent()
            else:
                values[key] = f"{index}"
    elif not last.is_repeated:
        setattr(holder, last.name, b"x" * length if last.type == last.TYPE_BYTES else "x" * length)
    elif last.message_type:
        for _ in range(items):
            getattr(holder, last.name).add()
    else:
        item = "x" * length if last.type == last.TYPE_STRING else 1
        getattr(holder, last.name).extend([item] * items)


def places(method: MethodDescriptor, part: Descriptor, steps: tuple[FieldDescriptor, ...]) -> Iterator[Place]:
    for member in part.fields:
        way = (*steps, member)
        limit = LIMITS.get(part.name, {}).get(member.name)
        if limit and f"{part.name}.{member.name}" not in UNLIMITED:
            yield Place(method, way, limit)
        inner = member.message_type
        if inner and of_map(member):
            inner = inner.fields_by_name["value"].message_type
        if (
            inner
            and inner.file.package == "profile_export.v1"
            and [one.name for one in way].count(member.name) < 2
        ):
            yield from places(method, inner, way)


ALL = [place for method in METHODS.values() for place in places(method, method.input_type, ())]
PLACES = [
    pytest.param(place, id=f"{place.method.name}:{'.'.join(step.name for step in place.steps)}")
    for place in ALL
]


async def refused(caller: Caller, method: MethodDescriptor, request: Message | bytes) -> Refusal | None:
    """Send one message; None says that it was answered."""
    stub: Any = {
        "DatasetService": caller.datasets,
        "ExportService": caller.exports,
        "ProfileService": caller.profiles,
        "SchemaService": caller.schemas,
    }[method.containing_service.name]
    call = getattr(stub, method.name)
    if method.name == "UploadBatch":
        return await answer_to(call(iter([request]), metadata=caller.metadata))
    if method.server_streaming:
        stream = call(request, metadata=caller.metadata, timeout=20)
        refusal = await answer_to(stream.read())
        stream.cancel()
        return refusal
    return await answer_to(call(request, metadata=caller.metadata, timeout=20))


async def answer_to(call: Any) -> Refusal | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return refusal_from(error)
    return None


@pytest.mark.parametrize("place", PLACES)
async def test_a_field_at_its_limit_is_not_too_much(caller: Caller, place: Place) -> None:
    limit = place.limit
    length = limit.length or limit.size or 1
    requests = [place.request(length=length)]
    # As many items as may be, where their message has room for them, even if there is none for long ones.
    requests += [place.request(items=limit.items)] if limit.items else []

    for request in requests:
        refusal = await refused(caller, place.method, request)

        assert refusal is None or refusal.reason not in TOO_MUCH, refusal
        assert refusal is None or refusal.code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.mark.parametrize("place", PLACES)
async def test_one_more_is_refused_with_the_field_the_limit_and_what_was_sent(
    caller: Caller, place: Place
) -> None:
    limit = place.limit
    measured = limit.length if limit.size is None else limit.size
    cases = [] if measured is None else [("FIELD_TOO_LONG", measured, place.request(length=measured + 1))]
    cases += (
        [] if limit.items is None else [("TOO_MANY_ITEMS", limit.items, place.request(items=limit.items + 1))]
    )

    for reason, most, request in cases:
        refusal = await refused(caller, place.method, request)

        assert refusal is not None
        assert (refusal.code, refusal.reason) == (INVALID, reason), refusal
        [field] = refusal.fields
        of_each = {"FIELD_TOO_LONG": ("[0]", ".key"), "TOO_MANY_ITEMS": ("",)}[reason]
        is_listed = limit.items is not None
        assert field in ({f"{place.path}{more}" for more in of_each} if is_listed else {place.path})
        assert (refusal.metadata["limit"], refusal.metadata["sent"]) == (str(most), str(most + 1))
        assert f"{most:,}" in refusal.message
        assert "xxx" not in refusal.message


# --- Whole messages ---


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def wire(number: int, content: bytes) -> bytes:
    """A field as it is on the wire: text, bytes or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def number_of(part: str, member: str) -> int:
    found: int = PART_TYPES[part].fields_by_name[member].number
    return found


PART_TYPES = {part.name: part for place in ALL for step in place.steps if (part := step.containing_type)}


async def raw(caller: Caller, channel: Any, method: MethodDescriptor, message: bytes) -> Refusal:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return await refusal_of(channel.stream_unary(path)(iter([message]), metadata=caller.metadata))
    if method.server_streaming:
        return await refusal_of(channel.unary_stream(path)(message, metadata=caller.metadata).read())
    return await refusal_of(channel.unary_unary(path)(message, metadata=caller.metadata))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "UploadBatch"])
async def test_a_message_that_is_larger_than_its_method_takes_is_not_even_decoded(
    caller: Caller, channel: grpc.aio.Channel, name: str
) -> None:
    request = METHODS[name].input_type.name
    most = limits.MOST_MESSAGE_BYTES.get(request, limits.MESSAGE_BYTES)

    refusal = await raw(caller, channel, METHODS[name], b"\xff" * (most + 1))

    assert (refusal.code, refusal.reason) == (INVALID, "MESSAGE_TOO_LARGE")
    assert (refusal.metadata["limit"], refusal.metadata["sent"]) == (str(most), str(most + 1))


async def test_a_message_of_an_upload_has_the_limit_of_grpc(
    caller: Caller, channel: grpc.aio.Channel
) -> None:
    method = METHODS["UploadBatch"]
    path = f"/{method.containing_service.full_name}/{method.name}"
    call: Any = channel.stream_unary(path)

    with pytest.raises(grpc.aio.AioRpcError) as refused_by_grpc:
        await call(iter([bytes(4 * limits.MIB + 1)]), metadata=caller.metadata)

    assert refused_by_grpc.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "unknown",
    [
        b"\xf8\x3f\x01",
        wire(1_023, b"text"),
        b"\xfb\x3f\xfc\x3f",
        b"\xf9\x3f" + bytes(8),
        b"\xfd\x3f" + bytes(4),
    ],
    ids=["number", "text", "group", "64 bits", "32 bits"],
)
async def test_a_field_that_the_contract_does_not_have_is_not_ignored(
    caller: Caller, channel: grpc.aio.Channel, name: str, unknown: bytes
) -> None:
    refusal = await raw(caller, channel, METHODS[name], unknown)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")
    assert refusal.metadata["field"] == "1023"


async def test_an_unknown_field_is_named_wherever_it_stands(
    caller: Caller, channel: grpc.aio.Channel
) -> None:
    unknown = wire(77, b"")
    segments = wire(number_of("ExportFilter", "segments"), unknown)
    spec = wire(number_of("ExportSpec", "filter"), segments + segments)

    refusal = await raw(caller, channel, METHODS["CreateJob"], wire(1, spec))

    assert refusal.metadata["field"] == "spec.filter.segments[0].77"


UNKNOWN = b"\xf8\x7f\x01"
MANY_UNKNOWN = {
    "at the top": ("CreateDataset", UNKNOWN * 170_000, "2047"),
    "at the top of a small method": ("GetBatch", UNKNOWN * 21_000, "2047"),
    "after as many known ones": (
        "UpdateDataset",
        wire(number_of("UpdateDatasetRequest", "dataset_id"), b"") * 130_000 + UNKNOWN * 80_000,
        "2047",
    ),
    "in the first message of an upload": (
        "UploadBatch",
        wire(number_of("UploadBatchRequest", "start"), UNKNOWN * 1_300_000),
        "start.2047",
    ),
    "in an identity field": (
        "CreateSchema",
        wire(number_of("CreateSchemaRequest", "identity_fields"), UNKNOWN * 1_000_000),
        "identity_fields[0].2047",
    ),
    "in a type": (
        "CreateDataset",
        wire(number_of("CreateDatasetRequest", "declared_fields"), wire(2, UNKNOWN * 170_000)),
        "declared_fields[0].type.2047",
    ),
    "in a filter": (
        "EstimateJob",
        wire(1, wire(number_of("ExportSpec", "filter"), UNKNOWN * 85_000)),
        "spec.filter.2047",
    ),
}


@pytest.mark.parametrize("name", MANY_UNKNOWN)
async def test_many_unknown_fields_keep_nobody_waiting_while_the_first_is_named(
    caller: Caller, channel: grpc.aio.Channel, name: str
) -> None:
    method, message, named = MANY_UNKNOWN[name]
    waited = []
    for _ in range(3):  # the machine may be busy with something else
        started = time.thread_time()

        refusal = await raw(caller, channel, METHODS[method], message)

        waited.append(time.thread_time() - started)
        assert (refusal.reason, refusal.metadata["field"]) == ("NOT_BUILT", named)
    assert min(waited) < MOST_SECONDS / 2


async def test_unknown_fields_are_found_in_the_deepest_type(
    caller: Caller, channel: grpc.aio.Channel
) -> None:
    message = UNKNOWN * 5_000
    for _ in range(limits.MOST_TYPES_DEEP - 1):
        message = wire(number_of("FieldType", "object"), wire(1, wire(2, message)))
    nested = wire(number_of("CreateDatasetRequest", "declared_fields"), wire(2, message))

    refusal = await raw(caller, channel, METHODS["CreateDataset"], nested)

    assert refusal.reason == "NOT_BUILT"


def in_arrays(depth: int) -> dataset_pb2.FieldType:
    found = dataset_pb2.FieldType(scalar=dataset_pb2.SCALAR_TYPE_STRING)
    for _ in range(depth - 1):
        found = dataset_pb2.FieldType(array=dataset_pb2.ArrayType(item=found))
    return found


async def test_types_nest_as_deep_as_the_contract_says(caller: Caller) -> None:
    deepest = in_arrays(limits.MOST_TYPES_DEEP)

    await caller.dataset("record", {"id": "CRM"}, declared={"deep": deepest})
    refusal = await refusal_of(
        caller.dataset("record", {"id": "CRM"}, declared={"deep": in_arrays(limits.MOST_TYPES_DEEP + 1)})
    )

    assert (refusal.code, refusal.reason) == (INVALID, "NESTED_TOO_DEEP")
    [field] = refusal.fields  # cut, as long texts of errors are
    assert field.startswith("declared_fields[0].type.array.item.array.item")


def objects(levels: int) -> dict[str, Any]:
    return {"a": objects(levels - 1)} if levels else {"a": 1}


@pytest.mark.parametrize("kind", ["record", "event"])
async def test_fields_as_deep_as_data_may_be_can_be_told(caller: Caller, kind: str) -> None:
    dataset = await caller.dataset(kind, {"id": "CRM"}, declared={".".join("d" * MAX_DEPTH): in_arrays(1)})
    row = {"id": "1", "_id": "e", "timestamp": "2026-03-01T00:00:00Z"}

    await caller.upload(dataset, f"deep-{kind}", [{**row, **objects(MAX_DEPTH)}])
    deeper = await refusal_of(caller.upload(dataset, f"deeper-{kind}", [{**row, "b": objects(MAX_DEPTH)}]))
    declared = await refusal_of(
        caller.update(
            dataset,
            add_declared_fields=[
                dataset_pb2.FieldDeclaration(path=".".join("e" * (MAX_DEPTH + 1)), type=in_arrays(1))
            ],
        )
    )
    combined = await refusal_of(
        caller.dataset("record", {"id": "CRM"}, declared={".".join("d" * MAX_DEPTH): in_arrays(3)})
    )

    assert [one.code for one in (deeper, declared, combined)] == [INVALID] * 3
    assert {"a", "d"} <= {field.name for field in (await caller.get_dataset(dataset)).fields}
    listed = await caller.datasets.ListDatasets(
        dataset_service_pb2.ListDatasetsRequest(), metadata=caller.metadata
    )
    assert {one.id for one in listed.datasets} == {dataset}


@pytest.mark.parametrize("depth", [50, 500, 20_000])
async def test_what_no_decoder_takes_is_malformed(
    caller: Caller, channel: grpc.aio.Channel, depth: int
) -> None:
    message = b""
    for _ in range(depth):
        message = wire(number_of("FieldType", "array"), wire(1, message))
    nested = wire(number_of("CreateDatasetRequest", "declared_fields"), wire(2, message))

    refusal = await raw(caller, channel, METHODS["CreateDataset"], nested)

    assert (refusal.code, refusal.reason) == (INVALID, "MESSAGE_MALFORMED")


IN_SCHEMA, IN_DATASET, IN_EXPORT = "CreateSchemaRequest", "CreateDatasetRequest", "CreateJobRequest"
BOMBS = {
    "empty identity fields beside a schema": (
        "CreateSchema",
        wire(number_of(IN_SCHEMA, "identity_fields"), b"") * 1_700_000,
    ),
    "empty documents beside a schema": (
        "CreateSchema",
        wire(number_of(IN_SCHEMA, "referenced_documents"), b"") * 1_700_000,
    ),
    "empty starts and finishes of an upload": (
        "UploadBatch",
        (
            wire(number_of("UploadBatchRequest", "start"), b"")
            + wire(number_of("UploadBatchRequest", "finish"), b"")
        )
        * 1_000_000,
    ),
    "empty identity fields of a dataset": (
        "CreateDataset",
        wire(number_of(IN_DATASET, "identity_fields"), b"") * 262_000,
    ),
    "empty fields in one object": (
        "CreateDataset",
        wire(
            number_of(IN_DATASET, "declared_fields"),
            wire(2, wire(number_of("FieldType", "object"), wire(1, b"") * 260_000)),
        ),
    ),
    "empty fields in many objects": (
        "CreateDataset",
        wire(
            number_of(IN_DATASET, "declared_fields"),
            wire(2, wire(number_of("FieldType", "object"), wire(1, b"") * 4_000)),
        )
        * 60,
    ),
    "one tag again and again": ("CreateDataset", wire(number_of(IN_DATASET, "tags"), b"") * 262_000),
    "different tags": (
        "CreateDataset",
        b"".join(wire(number_of(IN_DATASET, "tags"), wire(1, b"%x" % key)) for key in range(50_000)),
    ),
    "statuses of one segment": (
        "CreateJob",
        wire(1, wire(number_of("ExportSpec", "filter"), wire(1, wire(3, b"\1" * 260_000)))),
    ),
    "empty paths": ("CreateJob", wire(1, wire(1, b"") * 130_000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_message_of_a_million_nothings_is_refused_and_keeps_nobody_waiting(
    caller: Caller, channel: grpc.aio.Channel, bomb: str
) -> None:
    method, message = BOMBS[bomb]
    waited = []
    for _ in range(3):  # the machine may be busy with something else
        started = time.thread_time()

        refusal = await raw(caller, channel, METHODS[method], message)

        waited.append(time.thread_time() - started)
        assert refusal.code is INVALID
        if waited[-1] < MOST_SECONDS:
            break
    assert min(waited) < MOST_SECONDS


MOST_SECONDS = 0.2
"""Of the loop's thread, for both ends of a call; what else the machine does at the time is not counted."""


async def test_headers_of_more_than_grpc_takes_do_not_come_in(caller: Caller) -> None:
    metadata = (*caller.metadata, ("x-long", "x" * 20_000))

    with pytest.raises(grpc.aio.AioRpcError) as refused_by_grpc:
        await caller.exports.ListJobs(export_service_pb2.ListJobsRequest(), metadata=metadata)

    assert refused_by_grpc.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
