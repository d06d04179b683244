"""The Iceberg mirror of a dataset: what a table is to hold, where it stands, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MIRROR_NAMESPACE = "profile_export"


def mirror_table(dataset_id: str) -> str:
    """Return the name, in the catalog, of a dataset's table."""
    return f"{MIRROR_NAMESPACE}.d_{dataset_id}"


@dataclass(frozen=True, slots=True)
class MirroredBatch:
    """A batch for the table: the paths of its files, relative to the lake's root, in the order in which they count."""

    batch_id: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableState:
    """Where a table stands.

    `snapshot_id` is None while it has never held a file. `sequence_number` grows with each snapshot;
    `oldest_sequence_number` is that of the oldest of the `snapshots` that are kept. Both are 0 if there is none.
    `uuid` tells a table from a later one of the same name.
    """

    uuid: str
    snapshot_id: int | None
    sequence_number: int
    oldest_sequence_number: int
    snapshots: int
    metadata_location: str


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """How far the mirror of a dataset is.

    `metadata_location` and `last_batch_id` are empty and `mirror_time` is None while nothing is mirrored;
    `pending_changes` are batches to add and to take out; `error_message` is empty if the last try went well.
    """

    enabled: bool
    metadata_location: str
    mirrored_batches: int
    pending_changes: int
    last_batch_id: str
    mirror_time: datetime | None
    error_message: str
