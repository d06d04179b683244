"""What a request has to be before anything is done with it: readable, known, and within the limits of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from profile_export.api import limits
from profile_export.api.limits import Limit
from profile_export.domain.errors import InvalidArgumentError, UnimplementedError
from profile_export.v1 import (
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)

_Decode: TypeAlias = Callable[[bytes], Any]
# Where a value stands: what it stands in, the field's name, and its index there or None; () is the request.
_Where: TypeAlias = "tuple[_Where, str, int | None] | tuple[()]"

_REQUESTS: dict[str, Descriptor] = {
    f"/{service.full_name}/{method.name}": method.input_type
    for module in (dataset_service_pb2, schema_service_pb2, profile_service_pb2, export_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_TYPE = "FieldType"
_FEW_BYTES = 4 * 1024  # so few bytes hold so few fields that looking at each takes a millisecond at most
_MORE = 128  # in a byte of a number on the wire: another one follows
_LONGEST_SHIFT = 63
_NUL = "\0"


def admitting(method: str, decode: _Decode) -> _Decode:
    """Return what decodes the requests of a method, and refuses those that are too much.

    What it returns raises:
        InvalidArgumentError: The bytes are no message of the method, or it is over a limit; the field is named.
        UnimplementedError: The message has a field that the contract here does not have.
    """
    request = _REQUESTS.get(method)
    if request is None:
        return lambda raw: _decoded(decode, raw, limits.FOREIGN_MESSAGE_BYTES)
    most_bytes = limits.MOST_MESSAGE_BYTES.get(request.name, limits.MESSAGE_BYTES)
    most_fields = limits.MOST_TOP_FIELDS.get(request.name)
    part = _part_of(request)
    least = part.least()

    def admit(raw: bytes) -> Any:
        message = _decoded(decode, raw, most_bytes, most_fields)
        is_small = len(raw) <= _FEW_BYTES
        _check_known(message, (), has_few=is_small or most_fields is not None)
        if len(raw) > least or b"\0" in raw:
            _Walk(is_small=is_small).check(message, part, ())
        return message

    return admit


def _decoded(decode: _Decode, raw: bytes, most_bytes: int, most_fields: int | None = None) -> Any:
    _check_size(raw, most_bytes)
    if most_fields is not None:
        _check_top_fields(raw, most_fields)
    try:
        return decode(raw)
    except DecodeError as error:
        raise InvalidArgumentError(
            "MESSAGE_MALFORMED", "The bytes are not a message of this method."
        ) from error


def _check_size(raw: bytes, most: int) -> None:
    if len(raw) > most:
        raise InvalidArgumentError(
            "MESSAGE_TOO_LARGE",
            f"The message has {len(raw):,} bytes; this method takes at most {most:,}.",
            metadata={"limit": str(most), "sent": str(len(raw))},
        )


def _check_top_fields(raw: bytes, most: int) -> None:
    """Count the fields at the top of a message as it is on the wire, up to one more than there may be."""
    at = 0
    try:
        for _ in range(most):
            if at >= len(raw):
                return
            tag, at = _varint(raw, at)
            match tag & 7:
                case 0:
                    _, at = _varint(raw, at)
                case 1:
                    at += 8
                case 2:
                    length, at = _varint(raw, at)
                    at += length
                case 5:
                    at += 4
                # Ends of groups, which the contract does not have, and tags of no kind, which the decoder refuses.
                case _:
                    continue
    except IndexError:  # cut off: the decoder says so
        return
    if at < len(raw):
        raise InvalidArgumentError(
            "TOO_MANY_ITEMS",
            f"The message has more than {most:,} fields and items.",
            metadata={"limit": str(most)},
        )


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & ~_MORE) << shift
        if byte < _MORE or shift > _LONGEST_SHIFT:
            return value, at
        shift += 7


# --- Parts: messages of the contract, and what the table says of their fields ---


@dataclass(slots=True)
class _Rule:
    """How one field is checked; `part` is the message in it, None for a scalar."""

    name: str
    limit: Limit
    is_repeated: bool = False
    is_map: bool = False
    is_text: bool = False
    part: _Part | None = None


@dataclass(slots=True)
class _Part:
    """A message of the contract, by the numbers of its fields."""

    name: str
    rules: dict[int, _Rule] = field(default_factory=dict)

    def least(self) -> int:
        """Return up to how many bytes of such a message need no walk: fewer than any limit, and no message in it."""
        rules = self.rules.values()
        if any(rule.part for rule in rules):
            return 0
        limits_of = [(rule.limit.length, rule.limit.items, rule.limit.size) for rule in rules]
        return min(
            (most for one in limits_of for most in one if most is not None), default=limits.MESSAGE_BYTES
        )


_PARTS: dict[str, _Part] = {}


def _part_of(descriptor: Descriptor) -> _Part:
    part = _PARTS.get(descriptor.full_name)
    if part is None:
        part = _PARTS[descriptor.full_name] = _Part(descriptor.name)
        of_part = limits.LIMITS.get(descriptor.name, {})
        for one in descriptor.fields:
            rule = _rule_of(one, of_part.get(one.name, Limit()))
            if rule.is_text or rule.part or rule.limit != Limit():
                part.rules[one.number] = rule
    return part


def _rule_of(one: FieldDescriptor, limit: Limit) -> _Rule:
    rule = _Rule(one.name, limit, is_repeated=one.is_repeated, is_text=one.type == one.TYPE_STRING)
    if one.message_type and one.message_type.GetOptions().map_entry:
        rule.is_map, rule.is_text = True, True
        value = one.message_type.fields_by_name["value"].message_type
        rule.part = _part_of(value) if value else None
    elif one.message_type:
        rule.part = _part_of(one.message_type)
    return rule


class _Walk:
    """Checks all of a request. It counts items before it looks into them, so that no request takes too long."""

    def __init__(self, *, is_small: bool) -> None:
        """Begin to look at a request that has few bytes, or many."""
        self._is_small = is_small
        self._parts = self._deep = 0

    def check(self, message: Message, part: _Part, where: _Where) -> None:
        """Check a message, whose fields are known, and all in it.

        Raises:
            InvalidArgumentError: It is over a limit, or a text has a character that is none.
            UnimplementedError: There is a field in it that the contract does not have.
        """
        if where:
            _check_known(message, where, has_few=self._is_small)
        self._parts += 1
        if self._parts > limits.MOST_PARTS:
            raise _too_many(where, limits.MOST_PARTS, None)
        is_type = part.name == _TYPE
        self._deep += is_type
        if self._deep > limits.MOST_TYPES_DEEP:
            raise InvalidArgumentError.of_field(
                _path(where),
                f"is nested deeper than {limits.MOST_TYPES_DEEP} levels.",
                "NESTED_TOO_DEEP",
                limit=str(limits.MOST_TYPES_DEEP),
            )
        for descriptor, value in message.ListFields():
            rule = part.rules.get(descriptor.number)
            if rule is not None:
                self._check_field(value, rule, where)
        self._deep -= is_type

    def _check_field(self, value: Any, rule: _Rule, where: _Where) -> None:
        if rule.is_repeated and rule.limit.items is not None and len(value) > rule.limit.items:
            raise _too_many((where, rule.name, None), rule.limit.items, len(value))
        if rule.is_map:
            self._check_map(value, rule, (where, rule.name, None))
        elif rule.part and rule.is_repeated:
            for index, item in enumerate(value):
                self.check(item, rule.part, (where, rule.name, index))
        elif rule.part:
            self.check(value, rule.part, (where, rule.name, None))
        elif rule.is_repeated and rule.is_text:
            for index, text in enumerate(value):
                _check_length(text, rule, (where, rule.name, index))
        elif not rule.is_repeated:
            _check_length(value, rule, (where, rule.name, None))

    def _check_map(self, entries: Mapping[str, Any], rule: _Rule, where: _Where) -> None:
        for key in entries:
            _check_length(key, rule, (where, "key", None))
            if rule.part:
                self.check(entries[key], rule.part, (where, "value", None))


def _check_length(value: str | bytes, rule: _Rule, where: _Where) -> None:
    limit = rule.limit
    if limit.length is not None and len(value) > limit.length:
        raise _too_long(where, limit.length, len(value), "characters")
    if limit.size is not None and len(value) * 4 > limit.size:
        size = len(value.encode()) if isinstance(value, str) else len(value)
        if size > limit.size:
            raise _too_long(where, limit.size, size, "bytes")
    # Not every database takes it, and no text that people write has it.
    if rule.is_text and _NUL in value:
        raise InvalidArgumentError.of_field(
            _path(where), "must not have the character U+0000.", "TEXT_INVALID"
        )


def _too_long(where: _Where, most: int, sent: int, unit: str) -> InvalidArgumentError:
    return InvalidArgumentError.of_field(
        _path(where),
        f"has {sent:,} {unit}; at most {most:,} are taken.",
        "FIELD_TOO_LONG",
        limit=str(most),
        sent=str(sent),
    )


def _too_many(where: _Where, most: int, sent: int | None) -> InvalidArgumentError:
    told = {} if sent is None else {"sent": str(sent)}
    has = f"has {sent:,} items" if sent is not None else "is one message too many in its request"
    return InvalidArgumentError.of_field(
        _path(where), f"{has}; at most {most:,} are taken.", "TOO_MANY_ITEMS", limit=str(most), **told
    )


def _check_known(message: Message, where: _Where, *, has_few: bool) -> None:
    """Refuse a message that has an unknown field; `has_few` says that its fields are few, for sure.

    To list unknown fields takes a microsecond for each, in one go. Where they may be many, only their bytes are copied.
    """
    if has_few or message.ByteSize() <= _FEW_BYTES:
        unknown = UnknownFieldSet(message)
        number = unknown[0].field_number if len(unknown) else 0
    else:
        rest = type(message)()
        rest.CopyFrom(message)
        for descriptor, _ in rest.ListFields():
            rest.ClearField(descriptor.name)
        raw = rest.SerializeToString()
        number = _varint(raw, 0)[0] >> 3 if raw else 0
    if number:
        raise UnimplementedError.of_field(_path((where, str(number), None)))


def _path(where: _Where) -> str:
    """Write where a value stands, such as `spec.fields[3]`."""
    names: list[str] = []
    while where:
        where, name, index = where
        names.append(name if index is None else f"{name}[{index}]")
    return ".".join(reversed(names))
