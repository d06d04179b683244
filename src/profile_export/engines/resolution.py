"""Identity resolution for graph `pdg`: which identities are one person (S4).

A step before the expression, which cannot iterate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Longs = npt.NDArray[np.int64]
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True, slots=True)
class Keys:
    """Identity keys by their halves."""

    high: Longs
    low: Longs

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Keys:
        return Keys(self.high[rows], self.low[rows])


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which `identities`, sorted by key, have a profile of another key, `profiles`, than their own.

    `linked` counts all identities that occur together with another, `components` the profiles they make up.
    """

    identities: Keys
    profiles: Keys
    linked: int
    components: int


def resolve(ones: Keys, others: Keys) -> Resolution:
    """Find the connected components of pairs of identities.

    A profile's key is the smallest of its component, compared as two signed integers, so that whoever has only one
    identity stays where they are.
    """
    known, numbers = _numbered(
        Keys(np.concatenate([ones.high, others.high]), np.concatenate([ones.low, others.low]))
    )
    size, edges = len(known), len(ones)
    pairs = (np.ones(edges, dtype=np.int8), (numbers[:edges], numbers[edges:]))
    components, labels = connected_components(coo_array(pairs, shape=(size, size)), directed=False)
    # Identities are numbered in the order of their keys: the first of a component has the smallest.
    _, first = np.unique(labels, return_index=True)
    smallest = first[labels]
    moved = smallest != np.arange(size)
    return Resolution(known[moved], known[smallest[moved]], size, components)


def _numbered(keys: Keys) -> tuple[Keys, Longs]:
    """Return the distinct keys in order, and for each key given its number among them."""
    _, firsts, numbers = np.unique(keys.high, return_index=True, return_inverse=True)
    # Two identities may share 64 bits: only where none do, sorting by one half is enough, and twice as fast.
    if np.array_equal(keys.low[firsts][numbers], keys.low):
        return keys[firsts], numbers
    order = np.lexsort((keys.low, keys.high))
    ordered = keys[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (ordered.high[1:] != ordered.high[:-1]) | (ordered.low[1:] != ordered.low[:-1])
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return ordered[new], numbers


def write_mapping(resolution: Resolution, path: Path) -> None:
    """Write which identity key belongs to which profile key, only where they differ, sorted by identity key."""
    found = {
        "key_high": resolution.identities.high,
        "key_low": resolution.identities.low,
        "profile_high": resolution.profiles.high,
        "profile_low": resolution.profiles.low,
    }
    pq.write_table(pa.table(found), path, compression="zstd", row_group_size=_ROWS_PER_GROUP)
