"""The table of limits beside the contract: every field has one that can be too much, and its comment says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from profile_export.api import limits
from profile_export.api.limits import KIB, LIMITS, MIB, Limit
from profile_export.v1 import (
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)

PROTOS = Path(__file__).parents[2] / "protos"
MODULES = (dataset_service_pb2, export_service_pb2, profile_service_pb2, schema_service_pb2)
REQUESTS = [
    method.input_type
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def parts() -> dict[str, Descriptor]:
    """Every message of the contract that is or stands in a request, but for the entries of maps."""
    found: dict[str, Descriptor] = {}
    waiting = list(REQUESTS)
    while waiting:
        one = waiting.pop()
        if one.file.package != "profile_export.v1" or one.name in found:
            continue
        if not one.GetOptions().map_entry:
            found[one.name] = one
        waiting += [member.message_type for member in one.fields if member.message_type]
    return found


def is_map(member: FieldDescriptor) -> bool:
    return bool(member.message_type and member.message_type.GetOptions().map_entry)


def is_text(member: FieldDescriptor) -> bool:
    return member.type in {member.TYPE_STRING, member.TYPE_BYTES}


PARTS = parts()
FIELDS = [(name, member) for name, part in PARTS.items() for member in part.fields]
ALL = [pytest.param(name, member, id=f"{name}.{member.name}") for name, member in FIELDS]


@pytest.mark.parametrize(("message", "member"), ALL)
def test_what_can_be_too_much_has_a_limit(message: str, member: FieldDescriptor) -> None:
    limit = LIMITS.get(message, {}).get(member.name, Limit())

    measured = limit.length if limit.size is None else limit.size
    assert (limit.items is not None) == member.is_repeated
    assert (measured is not None) == (is_text(member) or is_map(member))


def test_no_limit_is_of_what_the_contract_does_not_have() -> None:
    named = {(message, name) for message, members in LIMITS.items() for name in members}
    sized = {*limits.MOST_MESSAGE_BYTES, *limits.MOST_TOP_FIELDS}

    assert named - {(message, member.name) for message, member in FIELDS} == set()
    assert sized - {request.name for request in REQUESTS} == set()
    assert set(LIMITS) - set(PARTS) == set()


def test_what_is_sent_at_the_limit_of_a_field_fits_into_its_message() -> None:
    too_small = {
        f"{request.name}.{member.name}"
        for request in REQUESTS
        for member in request.fields
        if (limit := LIMITS[request.name].get(member.name)) and limit.items is None
        if (limit.size or limit.length or 0)
        > limits.MOST_MESSAGE_BYTES.get(request.name, limits.MESSAGE_BYTES)
    }

    assert too_small == set()


# --- What the protos say ---


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The comments of messages, under an empty name, and of their fields, each on one line."""
    written = tmp_path_factory.mktemp("image") / "image.bin"
    names = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    arguments = ["protoc", f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    protoc.main([*arguments, "--include_source_info", f"--descriptor_set_out={written}", *names])
    return dict(_comments(FileDescriptorSet.FromString(written.read_bytes())))


def _comments(image: FileDescriptorSet) -> Iterator[tuple[tuple[str, str], str]]:
    for file in image.file:
        for location in file.source_code_info.location:
            said = " ".join(location.leading_comments.split())
            match list(location.path):
                case [4, message]:
                    yield (file.message_type[message].name, ""), said
                case [4, message, 2, member]:
                    part = file.message_type[message]
                    yield (part.name, part.field[member].name), said


def told(limit: Limit, *, of_map: bool) -> str:
    """The words in which the protos say a limit."""
    if limit.length is None and limit.size is None:
        return f"At most {limit.items:,} items."
    each = f"{limit.length:,} characters" if limit.size is None else sized(limit.size)
    if of_map:
        return f"At most {limit.items:,} entries, with keys of at most {each}."
    if limit.items is None:
        return f"At most {each}."
    return f"At most {limit.items:,} items of at most {each} each."


def sized(count: int) -> str:
    return f"{count / MIB:g} MiB" if count >= MIB else f"{count / KIB:g} KiB"


LIMITED = [
    pytest.param(name, member, id=f"{name}.{member.name}")
    for name, member in FIELDS
    if member.name in LIMITS.get(name, {})
]


@pytest.mark.parametrize(("message", "member"), LIMITED)
def test_the_comment_of_a_field_says_its_limit(
    message: str, member: FieldDescriptor, comments: dict[tuple[str, str], str]
) -> None:
    limit = LIMITS[message][member.name]

    assert told(limit, of_map=is_map(member)) in comments[message, member.name]


@pytest.mark.parametrize("message", limits.MOST_MESSAGE_BYTES)
def test_the_comment_of_a_request_says_how_large_it_may_be(
    message: str, comments: dict[tuple[str, str], str]
) -> None:
    assert f"At most {sized(limits.MOST_MESSAGE_BYTES[message])} altogether." in comments[message, ""]


def test_the_comment_of_types_says_how_deep_they_nest(comments: dict[tuple[str, str], str]) -> None:
    assert f"at most {limits.MOST_TYPES_DEEP} levels deep" in comments["FieldType", ""]
