"""Messages that are valid for protobuf and for nobody else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\u202e\ufeff",
    "\U0001f600" * 40,
    "e\u0301" * 20,
    "../../../etc/passwd",
    "%s%n{0}{}",
    "'; DROP TABLE jobs; --",
    "$.a[?(@.b)]",
    "a." * 300 + "a",
    "(" * 500,
    'id = "' + "\\" * 200,
    "NOT " * 200 + "a = 1",
    "create_time desc, id",
    "9" * 400,
    "-0",
    "1e999",
    "NaN",
    "2026-02-30T25:61:61Z",
    "AA==",
    "\x7f\x80\xff",
    "name\r\nx-injected: 1",
)
_LONG = (255, 256, 1_023, 1_025, 70_000, 1_100_000)
_INTEGERS = (0, 1, 2, -1, 7, 100, 1_000, 1_001, 2**31 - 1, -(2**31), 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
_UNSIGNED = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_DOUBLES = (0.0, -0.0, 1.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324)
_F = FieldDescriptor
_BITS = {
    _F.TYPE_INT32: 32,
    _F.TYPE_SINT32: 32,
    _F.TYPE_SFIXED32: 32,
    _F.TYPE_UINT32: 32,
    _F.TYPE_FIXED32: 32,
}
_WITHOUT_SIGN = {_F.TYPE_UINT32, _F.TYPE_UINT64, _F.TYPE_FIXED32, _F.TYPE_FIXED64}
_DEEPEST = 12


class Oddities:
    """Makes odd messages; `known` are values that mean something to the server, by the name of a field."""

    def __init__(self, dice: random.Random, known: Mapping[str, Sequence[Any]]) -> None:
        self._dice = dice
        self._known = known
        self._texts = [value for values in known.values() for value in values if isinstance(value, str)]

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Make a message of some of its fields."""
        made: Message = GetMessageClass(descriptor)()
        often = self._dice.choice((0.3, 0.6, 0.95))
        for field in descriptor.fields:
            if depth < _DEEPEST and self._dice.random() < often:
                self.set(made, field, depth)
        return made

    def change(self, message: Message) -> None:
        """Give one field at any depth, set or not, another value."""
        inside = [message]
        for one in inside:
            inside += [member for field, value in one.ListFields() for member in _members(field, value)]
        chosen = self._dice.choice(inside)
        fields: list[Any] = list(chosen.DESCRIPTOR.fields)
        if fields:
            field = self._dice.choice(fields)
            chosen.ClearField(field.name)
            self.set(chosen, field, _DEEPEST - 2)

    def set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        """Give a field a value, or as many as it holds."""
        if not field.is_repeated:
            if field.type == _F.TYPE_MESSAGE:
                getattr(message, field.name).CopyFrom(self.message(message_of(field), depth + 1))
            else:
                setattr(message, field.name, self._value(field))
            return
        count = self._dice.choice((0, 1, 1, 2, 5, 40 if depth < 2 else 3))
        if self._dice.random() < 0.02:
            count = 3_000
        values = getattr(message, field.name)
        if field.type != _F.TYPE_MESSAGE:
            # One value over and over, or each its own.
            one = self._value(field)
            values.extend(one if self._dice.random() < 0.3 else self._value(field) for _ in range(count))
        elif message_of(field).GetOptions().map_entry:
            key, value = (message_of(field).fields_by_name[name] for name in ("key", "value"))
            for _ in range(count):
                if value.type == _F.TYPE_MESSAGE:
                    values[self._value(key)].CopyFrom(self.message(message_of(value), depth + 1))
                else:
                    values[self._value(key)] = self._value(value)
        else:
            one_message = self.message(message_of(field), depth + 1)
            values.extend([one_message] * count)

    def _value(self, field: FieldDescriptor) -> Any:
        known = self._known.get(field.name)
        if known and self._dice.random() < 0.6:
            value = self._dice.choice(known)
            if _fits(field, value):
                return value
        return self._odd_value(field)

    def _odd_value(self, field: FieldDescriptor) -> Any:
        match field.type:
            case _F.TYPE_STRING:
                return self._text()
            case _F.TYPE_BYTES:
                return self._dice.randbytes(self._dice.choice((0, 1, 100, 5_000)))
            case _F.TYPE_BOOL:
                return self._dice.random() < 0.5
            case _F.TYPE_ENUM:
                numbers = [value.number for value in enum_of(field).values]
                return self._dice.choice((*numbers, *numbers, 99, -1, 2**31 - 1, -(2**31)))
            case _F.TYPE_DOUBLE | _F.TYPE_FLOAT:
                return self._dice.choice(_DOUBLES)
        return self._integer(field)

    def _integer(self, field: FieldDescriptor) -> int:
        bits = _BITS.get(field.type, 64)
        if field.type in _WITHOUT_SIGN:
            return self._dice.choice(_UNSIGNED) % (1 << bits)
        most = 1 << (bits - 1)
        return (self._dice.choice(_INTEGERS) + most) % (2 * most) - most

    def _text(self) -> str:
        where = self._dice.random()
        if where < 0.4 and self._texts:
            return self._dice.choice(self._texts)
        if where < 0.85:
            return self._dice.choice(_TEXTS)
        if where < 0.9:
            return self._dice.choice(("x", ".", "é", "\U0001f600", "0")) * self._dice.choice(_LONG)
        characters = (
            chr(self._dice.choice((self._dice.randrange(0xD800), 0x10FFFF, 0x20))) for _ in range(30)
        )
        return "".join(characters)


def message_of(field: FieldDescriptor) -> Descriptor:
    """Return what the messages of a field are, which holds messages."""
    assert field.message_type
    return field.message_type


def enum_of(field: FieldDescriptor) -> EnumDescriptor:
    """Return what the values of a field are, which holds those of an enum."""
    assert field.enum_type
    return field.enum_type


def _fits(field: FieldDescriptor, value: Any) -> bool:
    kinds: dict[int, type] = {_F.TYPE_STRING: str, _F.TYPE_BYTES: bytes, _F.TYPE_BOOL: bool}
    if kind := kinds.get(field.type):
        return isinstance(value, kind)
    return field.type in {_F.TYPE_INT64, _F.TYPE_INT32} and type(value) is int and abs(value) < 2**31


def _members(field: FieldDescriptor, value: Any) -> list[Message]:
    if field.type != _F.TYPE_MESSAGE or message_of(field).GetOptions().map_entry:
        return []
    return list(value) if field.is_repeated else [value]
