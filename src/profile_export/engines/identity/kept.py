"""Kept graphs: each good for exactly the batches that it lists, and extended by the pairs of further ones.

A cache: one that is damaged is made anew, and where the folder cannot be used, nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from profile_export.engines.identity.components import KEY, Components, Keys, find, numbered, swapped
from profile_export.engines.identity.graph import (
    MappingFacts,
    MappingWriter,
    Pairs,
    Space,
    mapping_facts,
    mapping_rows,
    resolve,
)

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


_MOST_KEPT = 3
"""The newest, and some for jobs of other moments: a former attempt's, one that a revert makes fit again."""

_NAME = re.compile(r"[0-9a-f]{64}\.parquet")


class KeptGraphs:
    """The kept graphs of a tenant, each a file named by the SHA-256 of what is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, batches: Mapping[str, int], target: Path) -> bool:
        """Get the graph that was made from most of these batches and from no other; False if there is none.

        It stands at `target` then, where pruning cannot reach it. One that turns out to be damaged is removed.
        """
        fitting = []
        for file in self._newest_first():
            with suppress(OSError, ValueError):
                made_from = mapping_facts(file).batches
                if made_from.items() <= batches.items():
                    fitting.append((len(made_from), file))
        for _, file in sorted(fitting, reverse=True):
            with suppress(OSError):
                _link(file, target)
                if _digest(target) == file.stem:
                    _touch(file)
                    return True
                file.unlink()
            target.unlink(missing_ok=True)
        return False

    def keep(self, mapping: Path) -> None:
        """Keep a mapping whose bytes are safe on the disk, and of all no more than a few.

        It appears whole or not at all. A graph that cannot be kept costs the next attempt time, and this one nothing.
        """
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            second_name = mapping.with_suffix(".kept")
            _link(mapping, second_name)
            second_name.replace(self._folder / f"{_digest(mapping)}.parquet")
            for file in self._newest_first()[_MOST_KEPT:]:
                file.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        """Return the graphs by the time when they were made or of use."""
        found = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                # Another attempt may be pruning. What has another name was not kept by us.
                with suppress(OSError):
                    if _NAME.fullmatch(entry.name) is None:
                        continue
                    found.append((entry.stat().st_mtime_ns, Path(entry.path)))
        return [path for _, path in sorted(found, reverse=True)]


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot do that."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as copy:
            os.fsync(copy.fileno())


def _touch(file: Path) -> None:
    # Pruned meanwhile, or not ours to touch: the link that was made of it is as good.
    with suppress(OSError):
        os.utime(file)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
