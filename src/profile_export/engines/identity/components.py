"""Connected components over arrays of identity keys, also where memory is too small for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from profile_export.engines.identity.graph import Keys, key_records

Places = npt.NDArray[np.int64]


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


Numbers = npt.NDArray[Any]
_VERTICES_AT_ONCE = 2**20
BYTES_PER_EDGE = 120
"""What `join` needs for each edge of a chunk: the numbers of both ends, and scipy's matrices and their copies."""


def number_type(size: int) -> type[np.signedinteger[Any]]:
    """Return the smallest type that numbers so many vertices."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64


class Components:
    """Which of the vertices 0 to `size` - 1 are connected by the edges so far.

    `labels` has of each vertex the smallest vertex of its component.
    """

    def __init__(self, size: int) -> None:
        self.labels: Numbers = np.arange(size, dtype=number_type(size))
        self._scratch = np.zeros_like(self.labels)

    def join(self, edges: Numbers) -> None:
        """Connect the two vertices in each row of `edges`."""
        roots = self.labels[edges]
        roots = roots[roots[:, 0] != roots[:, 1]]
        if not len(roots):
            return
        # The graph of the roots alone, numbered without gaps and in their order.
        self._scratch[:] = 0
        self._scratch[roots] = 1
        vertices = np.flatnonzero(self._scratch)
        self._scratch[vertices] = np.arange(len(vertices))
        ends = self._scratch[roots]
        pairs = (np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1]))
        graph = coo_array(pairs, shape=(len(vertices), len(vertices)))
        count, found = connected_components(graph, directed=False)
        smallest = np.empty(count, dtype=vertices.dtype)
        # Of several values for one place the last one stays: the smallest vertex, since they come from the greatest on.
        smallest[found[::-1]] = vertices[::-1]
        self.labels[vertices] = smallest[found]
        self._contract()

    def _contract(self) -> None:
        """Point every vertex at its root: one step, since all pointed at what was a root before."""
        for start in range(0, len(self.labels), _VERTICES_AT_ONCE):
            part = slice(start, start + _VERTICES_AT_ONCE)
            self.labels[part] = self.labels[self.labels[part]]


Records = npt.NDArray[Any]
_RECORDS_PER_PIECE = 2**18


class Buckets:
    """Buckets of records of one type; each keeps the order in which its records came.

    Args:
        name: Of the files, if there are any.
        kind: The type of a record.
        count: How many buckets.
        folder: Where to keep them; None keeps them in memory.
    """

    def __init__(self, name: str, kind: npt.DTypeLike, count: int, folder: Path | None) -> None:
        self.kind = np.dtype(kind)
        self._files = [] if folder is None else [folder / f"{name}-{number}" for number in range(count)]
        self._held: list[list[Records]] = [[] for _ in range(count)]

    def put(self, bucket: int, records: Records) -> None:
        """Add records to a bucket."""
        if self._files:
            # Opened anew each time: there may be more buckets than a process may open files.
            with self._files[bucket].open("ab") as file:
                records.tofile(file)
        else:
            self._held[bucket].append(records)

    def put_each(self, records: Records, buckets: npt.NDArray[Any]) -> None:
        """Add each record to the bucket of its number."""
        # Stable, for the order within each; and linear, since numpy sorts numbers of 16 bits or fewer by radix.
        order = np.argsort(buckets, kind="stable")
        cuts = np.searchsorted(buckets[order], np.arange(len(self._held) + 1))
        # Not records[order]: of records in records that takes tens of times as long.
        self.put_cut(records.take(order), cuts)

    def put_cut(self, records: Records, cuts: npt.NDArray[Any]) -> None:
        """Add records that lie in the order of their buckets, of which each has those from its cut to the next."""
        for bucket in np.flatnonzero(np.diff(cuts)).tolist():
            self.put(bucket, records[cuts[bucket] : cuts[bucket + 1]])

    def look(self, bucket: int) -> Records:
        """Return what is in a bucket."""
        if self._files:
            file = self._files[bucket]
            return np.fromfile(file, self.kind) if file.exists() else np.empty(0, self.kind)
        held = self._held[bucket]
        return np.concatenate(held) if held else np.empty(0, self.kind)

    def take(self, bucket: int) -> Records:
        """Return what is in a bucket, and empty it."""
        found = self.look(bucket)
        self._empty(bucket)
        return found

    def take_pieces(self, bucket: int) -> Iterator[Records]:
        """Yield what is in a bucket a piece at a time, since it may be much more than in others, and empty it."""
        if not self._files:
            yield from self._held[bucket]
        elif self._files[bucket].exists():
            with self._files[bucket].open("rb") as file:
                while len(records := np.fromfile(file, self.kind, _RECORDS_PER_PIECE)):
                    yield records
        self._empty(bucket)

    def _empty(self, bucket: int) -> None:
        if self._files:
            self._files[bucket].unlink(missing_ok=True)
        self._held[bucket] = []
