"""The identity graph: resolved for `pdg` (S4), and kept as a file of the keys whose profile has another.

Columns `key_high`, `key_low`, `profile_high`, `profile_low`, sorted by identity key, which are compared as two signed
integers, the high half first. A profile's key is that of its identities whose low half is the smallest. The file's
key-value metadata says from which batches it was made and how many profiles have several identities.

A step before the expression, which cannot iterate. Exact at any size within little memory: identities are numbered in
parts, cut by key; components come of chunks of pairs; what does not fit waits on disk. Beside one part or one chunk,
memory holds two small numbers for each identity.

Work is cut into ranges by the high half of profiles' keys, so what chooses among the keys of a profile is the low half,
which knows nothing of the other: the smallest by the high half would crowd profiles where keys are small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.merging.identity import IdentityKey
from profile_export.engines.identity.components import (
    BYTES_PER_EDGE,
    KEY,
    Buckets,
    Components,
    Keys,
    in_order,
    key_records,
    number_type,
    numbered,
    swapped,
)

_COLUMNS = ("key_high", "key_low", "profile_high", "profile_low")
_SCHEMA = pa.schema([pa.field(column, pa.int64(), nullable=False) for column in _COLUMNS])
_ROWS_PER_GROUP = 65_536
# The 2: in mappings of before, which are none any more, the high half chose a profile's key.
_BATCHES, _COMPONENTS = b"profile_export.batches.2", b"profile_export.components"


@dataclass(frozen=True, slots=True)
class MappingFacts:
    """What a mapping holds and was made of.

    `moved` identities have a profile of another key than they, `components` profiles have several identities. `batches`
    are numbers by id: an id might be used again, a number never is.
    """

    moved: int
    components: int
    batches: Mapping[str, int]

    @property
    def identities(self) -> int:
        """How many identities occur together with another."""
        return self.moved + self.components


class MappingWriter:
    """Writes a mapping from the smallest identity key to the greatest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Hashes do not compress, and a dictionary of them takes more time than all the rest.
        self._file = pq.ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=False)
        self._moved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def write(self, identities: Keys, profiles: Keys) -> None:
        """Add identities, and of each the key of its profile."""
        rows = len(identities)
        if rows:
            halves = [keys[half].copy() for keys in (identities, profiles) for half in ("high", "low")]
            groups = max(1, round(rows / _ROWS_PER_GROUP))
            self._file.write_table(pa.table(halves, schema=_SCHEMA), row_group_size=-(-rows // groups))
        self._moved += rows

    def finish(self, components: int, batches: Mapping[str, int]) -> MappingFacts:
        """Say what the mapping was made of; when this returns, its bytes survive a crash of the machine."""
        self._file.add_key_value_metadata(
            {_BATCHES: json.dumps(batches).encode(), _COMPONENTS: str(components).encode()}
        )
        self._file.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return MappingFacts(self._moved, components, batches)


def mapping_facts(path: Path) -> MappingFacts:
    """Read what a mapping was made of.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a mapping, or not a whole one.
    """
    found = pq.read_metadata(path)
    try:
        batches = dict(json.loads(found.metadata[_BATCHES]))
        return MappingFacts(found.num_rows, int(found.metadata[_COMPONENTS]), batches)
    except (KeyError, TypeError) as error:  # no metadata at all, or not ours
        message = f"{path.name} is not a mapping"
        raise ValueError(message) from error


def mapping_rows(path: Path) -> Iterator[tuple[Keys, Keys]]:
    """Yield identities and the keys of their profiles, some ten thousands at once, in the order of the file."""
    # Read ahead, a file is held until its end.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_PER_GROUP, use_threads=False):
            key_high, key_low, high, low = (column.to_numpy() for column in batch.columns)
            yield key_records(key_high, key_low), key_records(high, low)


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

    A profile's key is the one of its component with the smallest low half (of equals, with the smallest high half).
    Whoever has only one identity stays where they are.

    Args:
        pairs: Identities that occur together, in chunks.
        at_most: How many pairs there are at most.
        batches: What they come from, as `MappingFacts` has it.
        space: What it may use.
        mapping: The file to write.
    """
    numbering = _Numbering(at_most, space)
    for ones, others in pairs:
        numbering.add(swapped(ones), swapped(others))
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


def _write(numbering: _Numbering, components: Components, writer: MappingWriter) -> int:
    """Write which identities have another profile; return how many profiles have several identities.

    Numbers follow the low half of keys and the mapping follows the high one. So identities go with their keys to the
    part that has the key of their profile, and from there, with that key, to where they lie in the mapping.
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


_IDENTITY = ("key_high", "key_low")
_PROFILE = ("profile_high", "profile_low")


class OpenMapping:
    """A mapping's file, which stays readable for as long as this is there, and needs nobody to remove it."""

    def __init__(self, path: Path) -> None:
        self._file = pa.memory_map(str(path))

    def together(self, key: IdentityKey) -> frozenset[IdentityKey]:
        """Return the keys of all identities that the mapping gives the same profile as one. Blocks."""
        (profile,) = _pairs(self._file, _PROFILE, _IDENTITY, key) or [key]
        return frozenset({key, profile, *_pairs(self._file, _IDENTITY, _PROFILE, profile)})


def _pairs(
    mapping: pa.NativeFile, wanted: tuple[str, str], by: tuple[str, str], key: IdentityKey
) -> list[IdentityKey]:
    """Return one pair of columns of the rows in which the other is a key.

    One half of the other is read first, and the rest only where it is found: that is a tenth of the time.
    """
    file, (high, low) = pq.ParquetFile(mapping), by
    leaf = file.schema_arrow.names.index(high)
    found: list[IdentityKey] = []
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(leaf).statistics
        if known.min <= key[0] <= known.max:
            halves = file.read_row_group(group, columns=[high])[high]
            places = pc.indices_nonzero(pc.equal(halves, key[0]))
            if len(places):
                rows = file.read_row_group(group, columns=[low, *wanted]).take(places)
                of_key = rows.filter(pc.equal(rows[low], key[1]))
                found += zip(*(of_key[half].to_pylist() for half in wanted), strict=True)
    return found
