"""Identity keys in arrays: 128 bits in two signed halves, compared as such, the high one first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[Any]
"""Records of the type `KEY`."""
KEY = np.dtype([("high", np.int64), ("low", np.int64)])
Places = npt.NDArray[np.int64]


def key_records(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64]) -> Keys:
    """Put the halves of keys together."""
    keys = np.empty(len(high), KEY)
    keys["high"], keys["low"] = high, low
    return keys


def swapped(keys: Keys) -> Keys:
    """Return the keys with their halves the other way round: sorted, they lie in the order of the low one."""
    return key_records(keys["low"], keys["high"])


def in_order(keys: Keys) -> tuple[Keys, Places]:
    """Return the keys in order, and the place of each among those given."""
    order = np.argsort(keys["high"])
    ordered = keys[order]
    # Two identities may share 64 bits: only where none do, sorting by one half is enough, and several times as fast.
    if np.any(_differs(ordered["low"]) & ~_differs(ordered["high"])):
        order = np.lexsort((keys["low"], keys["high"]))
        ordered = keys[order]
    return ordered, order


def numbered(keys: Keys) -> tuple[Keys, Places]:
    """Return the distinct keys in order, and for each key given its number among them."""
    ordered, order = in_order(keys)
    new = _differs(ordered["high"]) | _differs(ordered["low"])
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return ordered[new], numbers


def find(ordered: Keys, wanted: Keys) -> tuple[Places, npt.NDArray[np.bool_]]:
    """Return for each wanted key the first place of `ordered` whose key is not smaller, and whether it is that key."""
    first = np.searchsorted(ordered["high"], wanted["high"])
    end = np.searchsorted(ordered["high"], wanted["high"], side="right")
    # A search among those that share the high half, nearly always one at most.
    while np.any(is_open := first < end):
        middle = (first + end)[is_open] // 2
        smaller = ordered["low"][middle] < wanted["low"][is_open]
        first[is_open] = np.where(smaller, middle + 1, first[is_open])
        end[is_open] = np.where(smaller, end[is_open], middle)
    found = first < len(ordered)
    found[found] = ordered[first[found]] == wanted[found]
    return first, found


def _differs(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Say of each value whether it differs from the one before."""
    new = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new
