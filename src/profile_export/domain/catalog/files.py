"""Data files: their system columns, which small ones are merged next, and what a mirror holds of them.

Batch number and ingest time are not among the system columns: they are known only at the commit, stand on the batch's
row and are bound to a plan.

Runs of batches, called segments, lie in tiers by their rows: 1 to 9, 10 to 99, and so on. Ten of a tier are merged into
one of a higher tier or into a full one, so a row is written at most once per tier, and at most nine segments of each
tier remain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

BATCH_ID = "_batch_id"
"""text: the batch that the row belongs to; also in exported files."""
ROW = "_row"
"""64-bit integer: the row's number in its batch, from 0."""
NAMESPACE = "_namespace"
"""text: namespace of the primary identity, spelled as sent."""
IDENTITY = "_identity"
"""text: id of the primary identity."""
AUTHENTICATED_STATE = "_authenticated_state"
"""text or null: the primary identity's state, null where it is absent or `ambiguous` (S6)."""
KEY_HIGH = "_key_high"
KEY_LOW = "_key_low"
"""64-bit integers: the halves of the primary identity's key. A file is sorted by (high, low, row)."""
LINKS = "_links"
"""list or null: the record's other identities, each {namespace, id, authenticated_state, key_high, key_low}; null
where there is none."""

SYSTEM_COLUMNS = (BATCH_ID, ROW, NAMESPACE, IDENTITY, AUTHENTICATED_STATE, KEY_HIGH, KEY_LOW, LINKS)


MERGED_FROM = 10
"""How many segments of a tier make it worth while."""
MOST_MERGED = 100
"""How many segments are merged at once where more are waiting."""
MOST_ROWS = 500_000
MOST_BYTES = 64 * 2**20
"""How much one merged file may hold: half of what another may, since merging takes memory and time in one piece."""
FULL_ROWS = MOST_ROWS // 2
FULL_BYTES = MOST_BYTES // 2
"""From here on a segment stays as it is. So any two that are merged fit into one file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows that lie together: the files of one batch, or a compacted file.

    `key` is that of the batch or of the compacted file, within its kind; `paths` are relative to the lake's root.
    """

    key: int
    is_compacted: bool
    rows: int
    bytes: int
    paths: tuple[str, ...]

    @property
    def is_full(self) -> bool:
        """Whether it is large enough to be left alone."""
        return self.rows >= FULL_ROWS or self.bytes >= FULL_BYTES


def next_merge(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Choose what to merge into one file next.

    Args:
        segments: Segments that were written with the same fields, none without rows, in the order to merge them in.

    Returns:
        Two or more segments that one file can hold; none if everything lies well as it is.
    """
    tiers: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        if not segment.is_full:
            tiers[_tier(segment)].append(segment)
    waiting = [tier for tier, found in tiers.items() if len(found) >= MERGED_FROM]
    return _fitting(tiers[min(waiting)]) if waiting else ()


def _tier(segment: Segment) -> int:
    return len(str(segment.rows))


def _fitting(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return as many of the first segments as fit into one file; any two do, since none is full."""
    rows = size = 0
    chosen: list[Segment] = []
    for segment in segments[:MOST_MERGED]:
        rows, size = rows + segment.rows, size + segment.bytes
        if rows > MOST_ROWS or size > MOST_BYTES:
            break
        chosen.append(segment)
    return tuple(chosen)


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


class MirrorConflictError(Exception):
    """The table is no longer as it was looked at; nothing has been changed. Look and decide anew."""


class TypesChangedError(Exception):
    """The new files need types that the table cannot come to have as it is: rebuild it. Nothing has been changed."""


class MirrorError(Exception):
    """The mirror cannot go on by itself. Its text is one line for the operator."""
