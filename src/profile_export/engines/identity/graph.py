"""The identity graph as a file of the keys whose profile has another (S4), and the graphs that a tenant keeps.

Columns `key_high`, `key_low`, `profile_high`, `profile_low`, sorted by identity key, which are compared as two signed
integers, the high half first. A profile's key is that of its identities whose low half is the smallest. The file's
key-value metadata says from which batches it was made and how many profiles have several identities.

Servers read such files, too: this module must not load scipy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.merging.identity import IdentityKey

Keys = npt.NDArray[Any]
"""Records of the type `KEY`."""
KEY = np.dtype([("high", np.int64), ("low", np.int64)])


def key_records(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64]) -> Keys:
    """Put the halves of keys together."""
    keys = np.empty(len(high), KEY)
    keys["high"], keys["low"] = high, low
    return keys


_COLUMNS = ("key_high", "key_low", "profile_high", "profile_low")
_SCHEMA = pa.schema([pa.field(column, pa.int64(), nullable=False) for column in _COLUMNS])
_ROWS_PER_GROUP = 65_536
# Version 2: in former graphs, which are not read any more, the high half chose a profile's key.
_BATCHES, _COMPONENTS = b"profile_export.batches.2", b"profile_export.components"


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an identity graph holds and was made of.

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


class GraphWriter:
    """Writes an identity graph from the smallest identity key to the greatest."""

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

    def finish(self, components: int, batches: Mapping[str, int]) -> GraphFacts:
        """Say what the graph was made of; when this returns, its bytes survive a crash of the machine."""
        self._file.add_key_value_metadata(
            {_BATCHES: json.dumps(batches).encode(), _COMPONENTS: str(components).encode()}
        )
        self._file.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return GraphFacts(self._moved, components, batches)


def graph_facts(path: Path) -> GraphFacts:
    """Read what an identity graph was made of.

    Raises:
        OSError: There is no such file.
        ValueError: It is not an identity graph, or not a whole one.
    """
    found = pq.read_metadata(path)
    try:
        batches = dict(json.loads(found.metadata[_BATCHES]))
        return GraphFacts(found.num_rows, int(found.metadata[_COMPONENTS]), batches)
    except (KeyError, TypeError) as error:  # no metadata at all, or not ours
        message = f"{path.name} is not an identity graph"
        raise ValueError(message) from error


def graph_rows(path: Path) -> Iterator[tuple[Keys, Keys]]:
    """Yield identities and the keys of their profiles, some ten thousands at once, in the order of the file."""
    # Read ahead, a file is held until its end.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_PER_GROUP, use_threads=False):
            key_high, key_low, high, low = (column.to_numpy() for column in batch.columns)
            yield key_records(key_high, key_low), key_records(high, low)


_IDENTITY = ("key_high", "key_low")
_PROFILE = ("profile_high", "profile_low")


class OpenGraph:
    """A graph's file as a memory map, which stays readable when the file is removed, and goes with this object."""

    def __init__(self, path: Path) -> None:
        self._file = pa.memory_map(str(path))

    def together(self, key: IdentityKey) -> frozenset[IdentityKey]:
        """Return the keys of all identities that the graph gives the same profile as one. Blocks."""
        (profile,) = _pairs(self._file, _PROFILE, _IDENTITY, key) or [key]
        return frozenset({key, profile, *_pairs(self._file, _IDENTITY, _PROFILE, profile)})


def _pairs(
    graph: pa.NativeFile, wanted: tuple[str, str], by: tuple[str, str], key: IdentityKey
) -> list[IdentityKey]:
    """Return one pair of columns of the rows in which the other is a key.

    One half of the other is read first, and the rest only where it is found: that is a tenth of the time.
    """
    file, (high, low) = pq.ParquetFile(graph), by
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


_MOST_KEPT = 3
"""The newest, and some for jobs of other moments: a former attempt's, one that a revert makes fit again."""

_NAME = re.compile(r"[0-9a-f]{64}\.parquet")


class KeptGraphs:
    """The kept graphs of a tenant, each a file named by the SHA-256 of what is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, batches: Mapping[str, int], target: Path) -> bool:
        """Get the graph that was made from most of these batches and from no other; False if there is none.

        The graph is then at `target`, where pruning cannot reach it. A damaged graph is removed.
        """
        fitting = []
        for file in self._newest_first():
            with suppress(OSError, ValueError):
                made_from = graph_facts(file).batches
                if made_from.items() <= batches.items():
                    fitting.append((len(made_from), file))
        for _, file in sorted(fitting, reverse=True):
            with suppress(OSError):
                _link(file, target)
                if _digest(target) == file.stem:
                    # Pruned meanwhile, or not ours to touch: the link that was made of it is as good.
                    with suppress(OSError):
                        os.utime(file)
                    return True
                file.unlink()
            target.unlink(missing_ok=True)
        return False

    def keep(self, graph: Path) -> None:
        """Keep a graph whose bytes are safe on the disk, and remove all but the newest few.

        It appears whole or not at all. A graph that cannot be kept costs the next attempt time, and this one nothing.
        """
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            second_name = graph.with_suffix(".kept")
            _link(graph, second_name)
            second_name.replace(self._folder / f"{_digest(graph)}.parquet")
            for file in self._newest_first()[_MOST_KEPT:]:
                file.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        """Return the graphs, first the one that was made or used last."""
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


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
