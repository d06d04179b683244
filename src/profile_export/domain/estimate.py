"""What a job would do, from counting all of it or one of its ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import LEFT_OUT_REASONS, ExportCounts, ExportPlan, KeyRange


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: the truth is not below `at_least` and not above `at_most` (None: no bound is known)."""

    value: int
    exact: bool
    at_least: int
    at_most: int | None


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of a sample."""

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


def sample_of(plan: ExportPlan) -> KeyRange:
    """Choose what to count: the middle one of the job's ranges, which hold about the same. It may be the only one."""
    ranges = plan.ranges()
    return ranges[len(ranges) // 2]


def estimate(plan: ExportPlan, sample: KeyRange, counted: Counted) -> Estimate:
    """Make figures of what was counted; those of a sample are scaled up.

    Bytes and files are never exact: they depend on how rows happen to be spread over threads.
    """
    counts, is_whole = counted.counts, sample.share == 1
    known = {kind: _rows(plan, kind) for kind in (DatasetKind.RECORD, DatasetKind.EVENT)}
    # Every exported profile has a record, or an event if those are enough.
    most = known[DatasetKind.RECORD] + (known[DatasetKind.EVENT] if plan.empty_profiles else 0)

    def figure(value: int, at_most: int | None) -> Figure:
        if is_whole:
            return Figure(value, exact=True, at_least=value, at_most=value)
        scaled = round(value / sample.share)
        return Figure(
            scaled if at_most is None else min(scaled, at_most), exact=False, at_least=value, at_most=at_most
        )

    written = round(counted.bytes / sample.share)
    # A range that has rows for a batch gives it a file of its own.
    files = counted.files if is_whole else len(plan.ranges()) * len(plan.batch_ids)
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
