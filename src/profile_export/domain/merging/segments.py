"""Segments: which memberships let a profile into an export (S21)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.merging.identity import fold_namespace

DEFAULT_NAMESPACE = "ups"


class MembershipStatus(StrEnum):
    """The `status` of an entry in `segmentMembership`; an entry without one counts as REALIZED (S15)."""

    REALIZED = "realized"
    EXISTING = "existing"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class SegmentFilter:
    """A segment, and the statuses by which a profile is in it. The namespace is found without regard to case."""

    segment_id: str
    namespace: str = DEFAULT_NAMESPACE
    statuses: tuple[MembershipStatus, ...] = (MembershipStatus.REALIZED, MembershipStatus.EXISTING)


@dataclass(frozen=True, slots=True)
class SegmentSelection:
    """A profile needs to be in one of `segments`, last qualified within [start, end).

    None for an end leaves it open; with any end an entry without a time is outside.
    """

    segments: tuple[SegmentFilter, ...]
    start_time: datetime | None = None
    end_time: datetime | None = None

    def registered(self, spellings: Mapping[str, str]) -> SegmentSelection:
        """Return the same with namespaces as registered, given by folded name; nobody is in an unregistered one."""
        found = (
            replace(one, namespace=spellings.get(fold_namespace(one.namespace), one.namespace))
            for one in self.segments
        )
        return replace(self, segments=tuple(found))

    def entries(self, memberships: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
        """Return a profile's entries for the segments, by their position; `memberships` is merged and without nulls."""
        found = {}
        for position, one in enumerate(self.segments):
            entry = memberships.get(one.namespace, {}).get(one.segment_id)
            if entry is not None:
                found[position] = entry
        return found

    def admits(self, position: int, entry: Mapping[str, Any]) -> bool:
        """Say whether an entry for the segment at a position lets its profile in."""
        status = entry.get("status", MembershipStatus.REALIZED)
        if status not in self.segments[position].statuses:
            return False
        if self.start_time is None and self.end_time is None:
            return True
        time = entry.get("lastQualificationTime")
        return (
            time is not None
            and (self.start_time is None or self.start_time <= time)
            and (self.end_time is None or time < self.end_time)
        )


def check_segments(segments: Sequence[SegmentFilter], where: str) -> None:
    """Refuse segments without an id, and one that is named twice.

    Raises:
        InvalidArgumentError: As said; it names the entry below `where`.
    """
    seen: dict[tuple[str, str], int] = {}
    for index, one in enumerate(segments):
        if not one.segment_id:
            field = f"{where}[{index}].segment_id"
            raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
        key = (fold_namespace(one.namespace), one.segment_id)
        first = seen.setdefault(key, index)
        if first != index:
            raise InvalidArgumentError.of_field(
                f"{where}[{index}]",
                f"names the same segment as {where}[{first}]; give it all statuses there.",
            )
