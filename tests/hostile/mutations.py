"""Bytes that were good once."""

from __future__ import annotations

import random

_HUGE = (
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x08",
    b"\xfe\xff\xff\xff\x0f",
)
"""Variable-length integers, as protobuf and Thrift write them: huge ones, and negative ones."""


def mutated(dice: random.Random, good: bytes, other: bytes) -> bytes:
    """Change bytes in one to a few places; `other` is what they may be spliced with."""
    changed = bytearray(good)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        _mutate(dice, changed, other)
    return bytes(changed)


def _mutate(dice: random.Random, changed: bytearray, other: bytes) -> None:
    at = dice.randrange(len(changed) + 1)
    length = dice.choice((1, 2, 4, 8, 64, len(changed) // 2 + 1))
    match dice.randrange(9):
        case 0:  # a bit, or a few next to one another
            for place in range(at, min(at + dice.choice((1, 1, 3)), len(changed))):
                changed[place] ^= 1 << dice.randrange(8)
        case 1:  # the end is missing
            del changed[at:]
        case 2:  # a part is missing
            del changed[at : at + length]
        case 3:  # a part comes twice, or often
            changed[at:at] = changed[at : at + length] * dice.choice((1, 1, 20, 200))
        case 4:
            changed[at : at + length] = dice.randbytes(length)
        case 5:
            changed[at:at] = dice.randbytes(dice.choice((1, 2, 16)))
        case 6:
            changed[at : at + dice.choice((0, 1))] = dice.choice(_HUGE)
        case 7:
            changed[at : at + length] = dice.choice((b"\0", b"\xff", b"\x80")) * length
        case _:
            changed[at:] = other[dice.randrange(len(other) + 1) :]
