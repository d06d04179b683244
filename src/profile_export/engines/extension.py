"""Extending a mapping by the pairs of further batches: what comes out is what all pairs together would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from profile_export.engines.components import Components
from profile_export.engines.keys import KEY, Keys, find, numbered, swapped
from profile_export.engines.mapping import MappingFacts, MappingWriter, mapping_facts, mapping_rows
from profile_export.engines.resolution import Pairs, Space, resolve

_BYTES_PER_PAIR = 500
"""What `_Extension` needs for each new pair: both keys, their roots, their numbers, and copies of them."""


def extend(
    kept: Path, pairs: Iterable[Pairs], at_most: int, batches: Mapping[str, int], space: Space, mapping: Path
) -> MappingFacts:
    """Write the mapping of all pairs that `kept` was made from and of some more.

    Few new pairs cost two readings of the old mapping and no sort of it; many are resolved together with its rows,
    each of which is a pair as well.

    Args:
        kept: A mapping.
        pairs: The new pairs, in chunks.
        at_most: How many new pairs there are at most.
        batches: What the new mapping is made from, as `MappingFacts` has it.
        space: What it may use.
        mapping: The file to write.
    """
    waiting, held, count = iter(pairs), [], 0
    for chunk in waiting:
        held.append(chunk)
        count += len(chunk[0])
        if count * _BYTES_PER_PAIR > space.bytes:
            everything = chain(held, waiting, mapping_rows(kept))
            return resolve(everything, at_most + mapping_facts(kept).moved, batches, space, mapping)
    ends = np.empty((2, count), KEY)
    if held:
        ends[0], ends[1] = (np.concatenate(side) for side in zip(*held, strict=True))
    return _Extension(kept, ends).write(batches, mapping)


class _Extension:
    """New pairs as edges between the profiles of the old mapping: `roots`, the keys of those they touch, in order.

    An identity that the old mapping does not list is a profile of its own.
    """

    def __init__(self, kept: Path, ends: Keys) -> None:
        self._kept = kept
        known, numbers = numbered(ends.ravel())
        self.roots, root_numbers = numbered(_profiles_of(known, kept))
        # Of roots that come together the one with the smallest low half is the profile's.
        _, ranks = numbered(swapped(self.roots))
        components = Components(len(ranks))
        components.join(ranks[root_numbers[numbers]].reshape(2, -1).T)
        self.labels = np.argsort(ranks)[components.labels[ranks]]

    def write(self, batches: Mapping[str, int], mapping: Path) -> MappingFacts:
        """Write the new mapping."""
        moved = self.labels != np.arange(len(self.labels))
        identities, profiles = self.roots[moved], self.roots[self.labels][moved]
        had_several = np.zeros(len(self.roots), dtype=np.bool_)
        with MappingWriter(mapping) as writer:
            done = 0
            for old_identities, old_profiles in mapping_rows(self._kept):
                places, found = find(self.roots, old_profiles)
                had_several[places[found]] = True
                old_profiles[found] = self.roots[self.labels[places[found]]]
                # A root is listed nowhere, so one that has moved is a new row.
                (end,), _ = find(identities, old_identities[-1:])
                here, _ = find(old_identities, identities[done:end])
                writer.write(
                    np.insert(old_identities, here, identities[done:end]),
                    np.insert(old_profiles, here, profiles[done:end]),
                )
                done = end
            writer.write(identities[done:], profiles[done:])
            has_several = np.bincount(self.labels, minlength=len(self.roots)) > 1
            has_several[self.labels[had_several]] = True
            more = int(np.count_nonzero(has_several)) - int(np.count_nonzero(had_several))
            return writer.finish(mapping_facts(self._kept).components + more, batches)


def _profiles_of(known: Keys, kept: Path) -> Keys:
    """Return the profile key of each identity, given in order."""
    roots = known.copy()
    for identities, profiles in mapping_rows(kept) if len(known) else ():
        start = np.searchsorted(known["high"], identities["high"][0])
        end = np.searchsorted(known["high"], identities["high"][-1], side="right")
        places, found = find(identities, known[start:end])
        roots[start:end][found] = profiles[places[found]]
    return roots
