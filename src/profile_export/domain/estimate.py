"""What a job would do, from counting all of it or a sample of the key space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import (
    HIGHEST_KEY,
    LEFT_OUT_REASONS,
    LOWEST_KEY,
    ExportCounts,
    ExportPlan,
    KeyRange,
)

_SLICES = 8


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: the truth is not below `at_least` and not above `at_most` (None: no bound is known)."""

    value: int
    exact: bool
    at_least: int
    at_most: int | None


@dataclass(frozen=True, slots=True)
class KeySample:
    """The ranges to count, and which share of all keys they are; 1 if that is all of them."""

    ranges: tuple[KeyRange, ...]
    share: float

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to estimate."""
        return self.share == 1


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of the ranges of a sample."""

    counts: ExportCounts
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would do. `left_out` has a figure for every reason."""

    profiles: Figure
    events: Figure
    rows: Figure
    bytes: Figure
    files: Figure
    left_out: Mapping[str, Figure]


def sample_of(plan: ExportPlan) -> KeySample:
    """Choose what to count: everything that one range can hold, else slices that together are as wide as one.

    The slices lie in the middle of equal stretches of the key space. Keys are hashes, but the key of a profile is the
    smallest of its identities': linked profiles are denser where keys are small, and each stretch stands for its own.
    """
    ranges = plan.ranges()
    if len(ranges) == 1:
        return KeySample(ranges, 1)
    stretch = (HIGHEST_KEY - LOWEST_KEY + 1) // _SLICES
    width = max(1, stretch // len(ranges))
    starts = [LOWEST_KEY + index * stretch + (stretch - width) // 2 for index in range(_SLICES)]
    slices = tuple(KeyRange(index, start, start + width - 1) for index, start in enumerate(starts))
    return KeySample(slices, width * _SLICES / 2**64)


def estimate(plan: ExportPlan, sample: KeySample, counted: Counted) -> Estimate:
    """Make figures of what was counted; those of a sample are scaled up.

    Bytes and files are never exact: they depend on how rows happen to be spread over threads.
    """
    counts = counted.counts
    known = {kind: _rows(plan, kind) for kind in (DatasetKind.RECORD, DatasetKind.EVENT)}
    # Every exported profile has a record, or an event if those are enough.
    most = known[DatasetKind.RECORD] + (known[DatasetKind.EVENT] if plan.empty_profiles else 0)

    def figure(value: int, at_most: int | None) -> Figure:
        if sample.is_whole:
            return Figure(value, exact=True, at_least=value, at_most=value)
        scaled = round(value / sample.share)
        return Figure(
            scaled if at_most is None else min(scaled, at_most), exact=False, at_least=value, at_most=at_most
        )

    written = round(counted.bytes / sample.share)
    # A range that has rows for a batch gives it a file of its own.
    files = counted.files if sample.is_whole else len(plan.ranges()) * len(plan.batch_ids)
    return Estimate(
        profiles=figure(counts.profiles_exported, most),
        events=figure(counts.events_exported, known[DatasetKind.EVENT] if plan.events else 0),
        rows=figure(counted.rows, most * len(plan.batch_ids)),
        bytes=Figure(written, exact=False, at_least=0, at_most=None),
        files=Figure(files if counted.rows else 0, exact=False, at_least=0, at_most=None),
        left_out={reason: figure(getattr(counts, reason), None) for reason in LEFT_OUT_REASONS},
    )


def _rows(plan: ExportPlan, kind: DatasetKind) -> int:
    return sum(source.rows for source in plan.sources if source.kind is kind and source.takes_part)
