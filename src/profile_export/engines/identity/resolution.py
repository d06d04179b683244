"""Resolution: who is who (S4), found from pairs of identities, or by extending a kept graph with further ones.

A step before the expression, which cannot iterate. Exact at any size within little memory: identities are numbered in
parts, cut by key; components come of chunks of pairs; what does not fit waits on disk. Beside one part or one chunk,
memory holds two small numbers for each identity.

Work is cut into ranges by the high half of profiles' keys, so what chooses among the keys of a profile is the low half,
which knows nothing of the other: the smallest by the high half would crowd profiles where keys are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from profile_export.domain.export.plan import ExportPlan
from profile_export.engines.identity.components import (
    BYTES_PER_EDGE,
    Buckets,
    Components,
    find,
    in_order,
    number_type,
    numbered,
    swapped,
)
from profile_export.engines.identity.graph import (
    KEY,
    GraphFacts,
    GraphWriter,
    KeptGraphs,
    Keys,
    graph_facts,
    graph_rows,
)
from profile_export.engines.identity.links import Links, Pairs

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


def graph_of(plan: ExportPlan, links: Links, lake_root: Path, space: Space) -> tuple[Path, GraphFacts]:
    """Return the graph of exactly the plan's batches, as a file in the space's folder.

    Where the plan says where graphs are kept, one of all its batches is taken as it is; the largest of some of them is
    extended by the links of the others; one that has a batch which does not count any more is of no use, since no
    one can tell what it alone had linked.
    """
    batches = {batch.id: batch.number for batch in plan.batches}
    kept, graph = space.folder / "kept.parquet", space.folder / "graph.parquet"
    graphs = KeptGraphs(lake_root / plan.graph_folder) if plan.graph_folder else None
    if graphs is not None and graphs.fetch(batches, kept):
        facts = graph_facts(kept)
        if facts.batches == batches:
            return kept.rename(graph), facts
        others = batches.keys() - facts.batches.keys()
        facts = extend(kept, links.pairs(others), links.at_most(others), batches, space, graph)
    else:
        facts = resolve(links.pairs(), links.at_most(), batches, space, graph)
    if graphs is not None:
        graphs.keep(graph)
    return graph, facts


def resolve(
    pairs: Iterable[Pairs], at_most: int, batches: Mapping[str, int], space: Space, graph: Path
) -> GraphFacts:
    """Find the connected components of pairs of identities and write their graph.

    A profile's key is the one of its component with the smallest low half (of equals, with the smallest high half).
    Whoever has only one identity stays where they are.

    Args:
        pairs: Identities that occur together, in chunks.
        at_most: How many pairs there are at most.
        batches: What they come from, as `GraphFacts` has it.
        space: What it may use.
        graph: The file to write.
    """
    numbering = _Numbering(at_most, space)
    for ones, others in pairs:
        numbering.add(swapped(ones), swapped(others))
    edges = numbering.number()
    components = Components(numbering.size)
    for chunk in range(edges.count):
        components.join(edges.take(chunk))
    with GraphWriter(graph) as writer:
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
        self._ends.put_each(ends, _part_by_key(ends["key"], self.parts))

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


def _write(numbering: _Numbering, components: Components, writer: GraphWriter) -> int:
    """Write which identities have another profile; return how many profiles have several identities.

    Numbers follow the low half of keys and the graph follows the high one. So identities go with their keys to the
    part that has the key of their profile, and from there, with that key, to where they lie in the graph.
    """
    parts, starts, labels, folder = numbering.parts, numbering.starts, components.labels, numbering.folder
    asked = Buckets("asked", [("identity", KEY), ("profile", labels.dtype)], parts, folder)
    for part in range(parts):
        found = labels[starts[part] : starts[part + 1]]
        moved = found != np.arange(starts[part], starts[part + 1], dtype=labels.dtype)
        questions = np.empty(np.count_nonzero(moved), asked.kind)
        questions["identity"], questions["profile"] = numbering.keys.look(part).compress(moved), found[moved]
        asked.put_each(questions, _part_by_number(questions["profile"], starts))
    answered = Buckets("answered", [("identity", KEY), ("profile", KEY)], parts, folder)
    profiles = 0
    for part in range(parts):
        keys = swapped(numbering.keys.take(part))
        named = np.zeros(len(keys), dtype=np.bool_)
        # In pieces, since the small numbers are the profiles of most, and one profile may have all identities.
        for questions in asked.take_pieces(part):
            places = questions["profile"] - starts[part]
            named[places] = True
            answers = np.empty(len(questions), answered.kind)
            answers["identity"], answers["profile"] = swapped(questions["identity"]), keys[places]
            answered.put_each(answers, _part_by_key(answers["identity"], parts))
        profiles += int(np.count_nonzero(named))
    for part in range(parts):
        answers = answered.take(part)
        identities, order = in_order(answers["identity"])
        writer.write(identities, answers["profile"][order])
    return profiles


def _part_by_key(keys: Keys, parts: int) -> npt.NDArray[np.uint8]:
    """Return the part of each key by its highest bits. Keys are hashes, so the parts get about equally many."""
    highest_bits = (keys["high"] >> 56) + 128
    return (highest_bits * parts >> 8).astype(np.uint8)


def _part_by_number(numbers: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return (np.searchsorted(starts, numbers, side="right") - 1).astype(np.uint8)


_BYTES_PER_PAIR = 500
"""What `_Extension` needs for each new pair: both keys, their roots, their numbers, and copies of them."""


def extend(
    kept: Path, pairs: Iterable[Pairs], at_most: int, batches: Mapping[str, int], space: Space, graph: Path
) -> GraphFacts:
    """Write the graph of all pairs that `kept` was made from and of some more.

    Few new pairs cost two readings of the old graph and no sort of it; many are resolved together with its rows,
    each of which is a pair as well.

    Args:
        kept: A graph.
        pairs: The new pairs, in chunks.
        at_most: How many new pairs there are at most.
        batches: What the new graph is made from, as `GraphFacts` has it.
        space: What it may use.
        graph: The file to write.
    """
    waiting, held, count = iter(pairs), [], 0
    for chunk in waiting:
        held.append(chunk)
        count += len(chunk[0])
        if count * _BYTES_PER_PAIR > space.bytes:
            everything = chain(held, waiting, graph_rows(kept))
            return resolve(everything, at_most + graph_facts(kept).moved, batches, space, graph)
    ends = np.empty((2, count), KEY)
    if held:
        ends[0], ends[1] = (np.concatenate(side) for side in zip(*held, strict=True))
    return _Extension(kept, ends).write(batches, graph)


class _Extension:
    """New pairs as edges between the profiles of the old graph: `roots`, the keys of those they touch, in order.

    An identity that the old graph does not list is a profile of its own.
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

    def write(self, batches: Mapping[str, int], graph: Path) -> GraphFacts:
        """Write the new graph."""
        moved = self.labels != np.arange(len(self.labels))
        identities, profiles = self.roots[moved], self.roots[self.labels][moved]
        had_several = np.zeros(len(self.roots), dtype=np.bool_)
        with GraphWriter(graph) as writer:
            done = 0
            for old_identities, old_profiles in graph_rows(self._kept):
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
            return writer.finish(graph_facts(self._kept).components + more, batches)


def _profiles_of(known: Keys, kept: Path) -> Keys:
    """Return the profile key of each identity, given in order."""
    roots = known.copy()
    for identities, profiles in graph_rows(kept) if len(known) else ():
        start = np.searchsorted(known["high"], identities["high"][0])
        end = np.searchsorted(known["high"], identities["high"][-1], side="right")
        places, found = find(identities, known[start:end])
        roots[start:end][found] = profiles[places[found]]
    return roots
