"""Which small files of a dataset are merged next, so that an export opens few files and few rows are written again.

Segments lie in tiers by their rows: 1 to 9, 10 to 99, and so on. Ten of a tier are merged into one of a higher tier or
into a full one, so a row is written at most once per tier, and at most nine segments of each tier remain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
