"""Messages at the limits of the table: one field of a good one as large as it may be, whatever else is in it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from profile_export.api.limits import LIMITS, MESSAGE_BYTES, MOST_MESSAGE_BYTES
from tests.hostile.methods import Method
from tests.hostile.oddities import message_of

_F = FieldDescriptor
_SPARE_BYTES = 2_000
_MOST_ITEMS = 20_000
_DEEPEST = 6
MOST_BYTES = 4 * 1024 * 1024 - 64
"""What gRPC takes of any message."""


Choice = Callable[[str, str], bool]
"""Whether to make a case, by the name of its method and its own."""


@dataclass(frozen=True)
class Case:
    """A call to make: the messages as bytes, and why they are awkward."""

    method: Method
    name: str
    messages: Sequence[bytes]

    def fresh(self) -> Sequence[bytes]:
        """Return its messages with another request id or batch id, so that it is not taken for a repetition."""
        if self.name.startswith(("request_id", "batch_id", "start.batch_id", "4 MiB", "unknown", "empty")):
            return self.messages
        first = _parsed(self.method.request, self.messages[0])
        part: Any = first.start if self.method.takes_stream else first  # type: ignore[attr-defined]
        for name in ("request_id", "batch_id"):
            creates = name == "request_id" or self.method.name in {"CreateBatch", "UploadBatch"}
            if creates and name in part.DESCRIPTOR.fields_by_name:
                setattr(part, name, secrets.token_hex(8))
        return [first.SerializeToString(), *self.messages[1:]]


def at_the_limits(method: Method, good: Sequence[Sequence[bytes]], choice: Choice) -> Iterator[Case]:
    """Yield the good calls of a method, with one field after the other as large as the limits allow."""
    seen = set()
    for call in good:
        for index, raw in enumerate(call):
            message = _parsed(method.request, raw)
            for place in _places(method.request, message):
                name = ".".join(step.name for step in place)
                if (name, index == 0) in seen:
                    continue
                seen.add((name, index == 0))
                for how, text in _TEXTS.items() if place[-1].is_repeated else [("of one letter", _plain)]:
                    if not choice(method.name, f"{name} {how}"):
                        continue
                    large = _parsed(method.request, raw)
                    _enlarge(large, place, text)
                    sent = [*call[:index], large.SerializeToString(), *call[index + 1 :]]
                    yield Case(method, f"{name} {how}", sent)


def of_four_megabytes(method: Method, good: Sequence[Sequence[bytes]]) -> Iterator[Case]:
    """Yield messages as large as gRPC takes them: of empty parts, of one unknown field, of nonsense."""
    rest = list(good[0][1:])
    for field in method.request.fields:
        if field.is_repeated or field.type == _F.TYPE_MESSAGE:
            tag = _varint(field.number << 3 | 2)
            yield Case(
                method,
                f"4 MiB of empty {field.name}",
                [(tag + b"\0") * (MOST_BYTES // (len(tag) + 1)), *rest],
            )
    yield Case(method, "4 MiB of unknown fields", [(_varint(2_047 << 3) + b"\1") * (MOST_BYTES // 3), *rest])
    yield Case(method, "4 MiB of nesting", [b"\x0a\xff\xff\xff\x01" * (MOST_BYTES // 5), *rest])
    limit = MOST_MESSAGE_BYTES.get(method.request.name, MESSAGE_BYTES)
    for field in method.request.fields:
        if field.is_repeated and field.type == _F.TYPE_MESSAGE:
            tag = _varint(field.number << 3 | 2)
            sent = [(tag + b"\0") * (limit // (len(tag) + 1)), *rest]
            yield Case(method, f"empty {field.name} up to the limit", sent)
    yield Case(
        method, "unknown fields up to the limit", [(_varint(2_047 << 3) + b"\1") * (limit // 3), *rest]
    )


def _places(
    descriptor: Descriptor, message: Message | None, depth: int = 0
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the fields that can grow, at any depth: those in parts that a message has, and some that it has not."""
    if depth == _DEEPEST or descriptor.full_name.startswith("google."):
        return
    for field in descriptor.fields:
        if field.is_repeated or field.type in {_F.TYPE_STRING, _F.TYPE_BYTES}:
            yield (field,)
        if field.type == _F.TYPE_MESSAGE and not message_of(field).GetOptions().map_entry:
            for inner in _places(message_of(field), None, depth + 1):
                yield (field, *inner)


def _enlarge(message: Message, place: Sequence[FieldDescriptor], text: Callable[[int, int], str]) -> None:
    """Make one field as large as it may be."""
    request = message.DESCRIPTOR.name
    room = MOST_MESSAGE_BYTES.get(request, MESSAGE_BYTES) - _SPARE_BYTES - message.ByteSize()
    part: Any = message
    for field in place[:-1]:
        if field.is_repeated:
            values = getattr(part, field.name)
            part = values[0] if values else values.add()
        else:
            part = getattr(part, field.name)
            part.SetInParent()
    field = place[-1]
    limit = LIMITS.get(part.DESCRIPTOR.name, {}).get(field.name)
    length = (limit and (limit.length or limit.size)) or 255
    if not field.is_repeated:
        value: Any = text(0, min(length, room))
        if field.type == _F.TYPE_BYTES:
            value = value.encode()
        setattr(part, field.name, value)
        return
    most = (limit and limit.items) or _MOST_ITEMS
    part.ClearField(field.name)
    values = getattr(part, field.name)
    for index in range(most):
        size = _append(values, field, index, min(length, max(8, room // most)), text)
        room -= size + 8
        if room < 0:
            break


def _append(
    values: Any, field: FieldDescriptor, index: int, length: int, text: Callable[[int, int], str]
) -> int:
    if field.type == _F.TYPE_STRING:
        values.append(text(index, length))
        return len(values[-1].encode())
    if field.type != _F.TYPE_MESSAGE:
        values.append(1)
        return 2
    if message_of(field).GetOptions().map_entry:
        key = text(index, length)
        if message_of(field).fields_by_name["value"].type == _F.TYPE_MESSAGE:
            values[key].SetInParent()
        else:
            values[key] = (
                text(index, length) if message_of(field).fields_by_name["value"].type == _F.TYPE_STRING else 1
            )
        return len(key.encode()) + 4
    part = values.add()
    for inner in part.DESCRIPTOR.fields:
        if inner.type == _F.TYPE_STRING and not inner.is_repeated:
            setattr(part, inner.name, text(index, length))
        elif inner.type == _F.TYPE_MESSAGE and inner.message_type.name == "FieldType":
            part.type.scalar = 1
    return int(part.ByteSize())


def _plain(_index: int, length: int) -> str:
    return "x" * length


def _distinct(index: int, length: int) -> str:
    return f"f{index}x".ljust(length, "y")[:length]


def _dotted(index: int, length: int) -> str:
    return f"w{index}.{'a.' * length}"[: length - 1] + "a"


def _repeated(_index: int, length: int) -> str:
    return "crmId"[:length]


def _wide(index: int, length: int) -> str:
    return f"p{index % 4}.w{index % 2_490}"[:length]


_TEXTS: dict[str, Callable[[int, int], str]] = {
    "of unknown names": _distinct,
    "of deep names": _dotted,
    "of one name": _repeated,
    "of known names": _wide,
}


def _parsed(descriptor: Descriptor, raw: bytes) -> Message:
    message: Message = GetMessageClass(descriptor)()
    message.ParseFromString(raw)
    return message


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
