"""The mapping: a file that says which identity key belongs to which profile key, only where they differ.

Columns `key_high`, `key_low`, `profile_high`, `profile_low`, sorted by identity key, which are compared as two signed
integers, the high half first. A profile's key is that of its identities whose low half is the smallest. The file's
key-value metadata says from which batches it was made and how many profiles have several identities.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.engines.keys import Keys, key_records

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
