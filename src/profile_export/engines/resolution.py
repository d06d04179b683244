"""Identity resolution for graph `pdg`: which identities are one person (S4).

A step before the expression, which cannot iterate. Exact at any size within little memory: identities are numbered in
parts, cut by key; components come of chunks of pairs; what does not fit waits on disk. Beside one part or one chunk,
memory holds two small numbers for each identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from profile_export.engines.buckets import Buckets
from profile_export.engines.components import BYTES_PER_EDGE, Components, number_type
from profile_export.engines.keys import KEY, Keys, numbered
from profile_export.engines.mapping import MappingFacts, MappingWriter

Pairs = tuple[Keys, Keys]
_END = np.dtype([("key", KEY), ("place", np.int64)])
_BYTES_PER_END = 100
"""What numbering needs for each end of a pair in a part: its record, its order, its number, and copies of them."""
_MOST_PARTS = 256
_ENDS_PER_PART = 2**18
_EDGES_PER_CHUNK = 2**20
"""More would take more memory, and more time: a part's keys and a chunk's vertices should fit in a cache."""


@dataclass(frozen=True, slots=True)
class Space:
    """How many bytes of memory resolution may take, and an empty folder for what does not fit."""

    bytes: int
    folder: Path


def resolve(
    pairs: Iterable[Pairs], at_most: int, batches: Mapping[str, int], space: Space, mapping: Path
) -> MappingFacts:
    """Find the connected components of pairs of identities and write their mapping.

    A profile's key is the smallest of its component, so that whoever has only one identity stays where they are.

    Args:
        pairs: Identities that occur together, in chunks.
        at_most: How many pairs there are at most.
        batches: What they come from, as `MappingFacts` has it.
        space: What it may use.
        mapping: The file to write.
    """
    numbering = _Numbering(at_most, space)
    for ones, others in pairs:
        numbering.add(ones, others)
    edges = numbering.number()
    components = Components(numbering.size)
    for chunk in range(edges.count):
        components.join(edges.take(chunk))
    with MappingWriter(mapping) as writer:
        profiles = _write(numbering, components, writer)
        return writer.finish(profiles, batches)


class _Edges:
    """Pairs of numbers, in chunks: what the numbering of one part after the other puts together."""

    def __init__(self, ends: int, chunk: int, kind: npt.DTypeLike, folder: Path | None) -> None:
        self._ends, self._chunk = ends, chunk
        self.count = -(-ends // chunk)
        self._kind = np.dtype([("place", np.int64), ("number", kind)])
        self._numbers = Buckets("edges", self._kind, self.count, folder)

    def put(self, places: npt.NDArray[np.int64], numbers: npt.NDArray[Any]) -> None:
        """Add the numbers at some places, which grow."""
        records = np.empty(len(places), self._kind)
        records["place"], records["number"] = places, numbers
        self._numbers.put_cut(records, np.searchsorted(places, np.arange(self.count + 1) * self._chunk))

    def take(self, chunk: int) -> npt.NDArray[Any]:
        """Return the pairs of a chunk, one in each row."""
        records = self._numbers.take(chunk)
        numbers = np.empty(len(records), self._kind["number"])
        numbers[records["place"] - chunk * self._chunk] = records["number"]
        return numbers.reshape(-1, 2)


class _Numbering:
    """Numbers identities without gaps, in the order of their keys."""

    def __init__(self, at_most: int, space: Space) -> None:
        ends, half = 2 * at_most, space.bytes // 2
        self.folder = None if ends * _END.itemsize <= half else space.folder
        per_part = max(1, min(_ENDS_PER_PART, half // _BYTES_PER_END))
        self.parts = min(_MOST_PARTS, max(1, -(-ends // per_part)))
        self.starts = np.zeros(self.parts + 1, np.int64)
        self.keys = Buckets("keys", KEY, self.parts, self.folder)
        self._half = half
        self._ends, self._count = Buckets("ends", _END, self.parts, self.folder), 0

    @property
    def size(self) -> int:
        """How many identities there are."""
        return int(self.starts[-1])

    def add(self, ones: Keys, others: Keys) -> None:
        """Take pairs of identities."""
        ends = np.empty(2 * len(ones), _END)
        ends["key"][0::2], ends["key"][1::2] = ones, others
        ends["place"] = np.arange(self._count, self._count + len(ends))
        self._count += len(ends)
        # Keys are hashes, so the parts get about equally many.
        highest_bits = (ends["key"]["high"] >> 56) + 128
        self._ends.put_each(ends, (highest_bits * self.parts >> 8).astype(np.uint8))

    def number(self) -> _Edges:
        """Number all identities; return the pairs as numbers."""
        kind = number_type(self._count)
        chunk = 2 * max(1, min(_EDGES_PER_CHUNK, self._half // BYTES_PER_EDGE))
        edges = _Edges(self._count, chunk, kind, self.folder)
        for part in range(self.parts):
            ends = self._ends.take(part)
            known, numbers = numbered(ends["key"])
            self.keys.put(part, known)
            edges.put(ends["place"], numbers + self.starts[part])
            self.starts[part + 1] = self.starts[part] + len(known)
        return edges


def _write(numbering: _Numbering, components: Components, writer: MappingWriter) -> int:
    """Write which identities have another profile; return how many profiles have several identities.

    A part's profiles may have their keys in any part: their numbers go there, and the keys come back.
    """
    parts, starts, labels, folder = numbering.parts, numbering.starts, components.labels, numbering.folder
    asked = Buckets("asked", [("identity", labels.dtype), ("profile", labels.dtype)], parts, folder)
    for part in range(parts):
        own = np.arange(starts[part], starts[part + 1], dtype=labels.dtype)
        found = labels[starts[part] : starts[part + 1]]
        moved = found != own
        questions = np.empty(np.count_nonzero(moved), asked.kind)
        questions["identity"], questions["profile"] = own[moved], found[moved]
        asked.put_each(questions, _part_of(questions["profile"], starts))
    answered = Buckets("answered", [("identity", labels.dtype), ("profile", KEY)], parts, folder)
    profiles = 0
    for part in range(parts):
        keys = numbering.keys.look(part)
        named = np.zeros(len(keys), dtype=np.bool_)
        # In pieces, since the small keys are the profiles of most, and one profile may have all identities.
        for questions in asked.take_pieces(part):
            places = questions["profile"] - starts[part]
            named[places] = True
            answers = np.empty(len(questions), answered.kind)
            answers["identity"], answers["profile"] = questions["identity"], keys[places]
            answered.put_cut(answers, np.searchsorted(answers["identity"], starts))
        profiles += int(np.count_nonzero(named))
    for part in range(parts):
        answers, keys = answered.take(part), numbering.keys.take(part)
        answers = answers[np.argsort(answers["identity"])]
        writer.write(keys[answers["identity"] - starts[part]], answers["profile"])
    return profiles


def _part_of(numbers: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return (np.searchsorted(starts, numbers, side="right") - 1).astype(np.uint8)
