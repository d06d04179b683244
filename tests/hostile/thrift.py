"""Where the numbers stand in what Parquet writes with Thrift's compact protocol: footers and page headers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_HUGE = (0, 1, 2, 3, -1, 127, 50_000_000, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63))
FOOTER_END = 8
"""After the footer: its length, and `PAR1`."""


@dataclass(frozen=True)
class Number:
    """A number and the bytes that it takes; `signed` says how it is written, a length or count is not."""

    start: int
    end: int
    value: int
    signed: bool


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.at = data, at

    def struct(self) -> Iterator[Number]:
        while kind := self._byte():
            if not kind >> 4:  # the field's number is not told by the one before it
                yield self._number(signed=True)
            yield from self._value(kind & 15)

    def _value(self, kind: int) -> Iterator[Number]:
        if kind in {_I16, _I32, _I64}:
            yield self._number(signed=True)
        elif kind == _BYTE:
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._number(signed=False)
            yield length
            self.at += length.value
        elif kind in {_LIST, _SET}:
            head = self._byte()
            count = head >> 4
            if count == 15:
                told = self._number(signed=False)
                yield told
                count = told.value
            for _ in range(count):
                yield from self._item(head & 15)
        elif kind == _STRUCT:
            yield from self.struct()

    def _item(self, kind: int) -> Iterator[Number]:
        if kind in {_TRUE, _FALSE}:
            self.at += 1
        else:
            yield from self._value(kind)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _number(self, *, signed: bool) -> Number:
        start, value, shift = self.at, 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return Number(start, self.at, (value >> 1) ^ -(value & 1) if signed else value, signed)


def numbers(data: bytes, at: int) -> list[Number]:
    """Return the numbers of the struct that begins at a place."""
    return list(_Reader(data, at).struct())


def with_other_footer_number(dice: random.Random, file: bytes) -> bytes:
    """Change one number of a file's footer, and its length with it: the rest can be read."""
    start = len(file) - FOOTER_END - int.from_bytes(file[-FOOTER_END:-4], "little")
    footer = _changed(dice, file, dice.choice(numbers(file, start)))[start:-FOOTER_END]
    return file[:start] + footer + len(footer).to_bytes(4, "little") + file[-4:]


def with_other_page_number(dice: random.Random, file: bytes, page: int) -> bytes:
    """Change one number of the header of a page, to one that takes as many bytes: the places of all else stay."""
    chosen = dice.choice(numbers(file, page))
    room = chosen.end - chosen.start
    while True:
        changed = _changed(dice, file, chosen)
        if len(changed) == len(file):
            return changed
        # A number of as many bytes as this one has at the most.
        least = 0 if room == 1 else 7 * (room - 1) - chosen.signed
        value = dice.randrange(2**least if least else 0, 2 ** (7 * room - chosen.signed))
        return file[: chosen.start] + _written(value, signed=chosen.signed) + file[chosen.end :]


def _changed(dice: random.Random, file: bytes, chosen: Number) -> bytes:
    values = (*_HUGE, chosen.value + 1, chosen.value - 1, chosen.value * 1_000, -chosen.value)
    value = dice.choice(values)
    return file[: chosen.start] + _written(value, signed=chosen.signed) + file[chosen.end :]


def _written(value: int, *, signed: bool) -> bytes:
    left = ((value << 1) ^ (value >> 63) if signed else value) % 2**64
    written = bytearray()
    while left > 127:
        written.append(left & 127 | 128)
        left >>= 7
    written.append(left)
    return bytes(written)
