"""What a job would do, from counting all of it or a sample."""

from __future__ import annotations

from dataclasses import replace

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    VALUES_OF_A_ROW,
    VALUES_PER_RANGE,
    ExportCounts,
    ExportPlan,
    Figure,
    PinnedFile,
    RangeResult,
    Source,
    SourcePart,
    WrittenFile,
    estimate,
    sample_of,
)
from profile_export.domain.schemas.types import EMPTY
from tests.builders import plan_of

ROWS_PER_RANGE = VALUES_PER_RANGE // VALUES_OF_A_ROW


def plan_over(records: int, events: int = 0, **changes: object) -> ExportPlan:
    sources = [
        Source(name, kind, (SourcePart(EMPTY, (PinnedFile(name, rows, 1),)),))
        for name, kind, rows in (
            ("crm", DatasetKind.RECORD, records),
            ("web", DatasetKind.EVENT, events),
            ("unlisted", DatasetKind.RECORD, 10),
        )
    ]
    sources[-1] = replace(sources[-1], takes_part=False)
    plan = plan_of([], fields=["identityMap"])
    return replace(plan, sources=tuple(sources), **changes)  # type: ignore[arg-type]  # its own fields


def counted(counts: ExportCounts, rows: int, bytes: int, files: int) -> RangeResult:  # noqa: A002 - as a file has it
    """Return the result of a range; the first of its files has all rows and bytes."""
    filled = WrittenFile("0", rows, bytes, "")
    others = [WrittenFile(str(number), 0, 0, "") for number in range(1, files)]
    return RangeResult((filled, *others)[:files], counts)


def test_what_one_range_holds_is_counted_whole_and_exact() -> None:
    plan = plan_over(100)
    sample = sample_of(plan)
    counts = ExportCounts(profiles_exported=90, not_newer=10)

    found = estimate(plan, sample, counted(counts, rows=90, bytes=5_000, files=1))

    assert (sample, sample.share) == (*plan.ranges(), 1)
    assert found.profiles == found.rows == Figure(90, exact=True, at_least=90, at_most=90)
    assert found.left_out["not_newer"] == Figure(10, exact=True, at_least=10, at_most=10)
    assert found.bytes == Figure(5_000, exact=False, at_least=0, at_most=None)
    assert found.files == Figure(1, exact=False, at_least=0, at_most=None)


def test_of_more_a_share_is_counted_and_scaled_up_within_what_is_possible() -> None:
    plan = plan_over(10 * ROWS_PER_RANGE, events=7)
    sample = sample_of(plan)
    counts = ExportCounts(profiles_exported=1_000, events_only=5)

    found = estimate(plan, sample, counted(counts, rows=1_000, bytes=1_000_000, files=8))

    assert sample == plan.ranges()[5]
    assert round(1 / sample.share) == 10
    assert found.profiles == Figure(10_000, exact=False, at_least=1_000, at_most=10 * ROWS_PER_RANGE)
    assert found.events == Figure(0, exact=False, at_least=0, at_most=0)
    assert found.left_out["events_only"] == Figure(50, exact=False, at_least=5, at_most=None)
    assert found.bytes.value == 10_000_000
    assert found.files.value == 10


def test_events_may_be_as_many_as_there_are_and_their_profiles_too() -> None:
    attached = plan_of([], event_fields=["_id"]).events
    both = plan_over(10 * ROWS_PER_RANGE, 10 * ROWS_PER_RANGE)
    plan = replace(both, events=attached, empty_profiles=True)

    found = estimate(plan, sample_of(plan), counted(ExportCounts(events_exported=1), 0, 0, 0))

    assert found.events.at_most == 10 * ROWS_PER_RANGE
    assert found.profiles.at_most == 20 * ROWS_PER_RANGE
    assert found.files.value == 0


def test_with_a_batch_per_segment_rows_and_files_may_be_as_many_for_each() -> None:
    plan = plan_over(10 * ROWS_PER_RANGE, segment_batches=("b1", "b2"))

    found = estimate(plan, sample_of(plan), counted(ExportCounts(), rows=4, bytes=10, files=2))

    assert found.rows.at_most == 2 * 10 * ROWS_PER_RANGE
    assert found.files.value == 20
