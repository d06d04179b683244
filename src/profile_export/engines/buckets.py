"""Records put in numbered buckets, on disk where memory is too small for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
