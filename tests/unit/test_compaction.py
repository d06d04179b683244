from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from profile_export.domain.catalog.batches import (
    FULL_BYTES,
    FULL_ROWS,
    MERGED_FROM,
    MOST_MERGED,
    MOST_MERGED_BYTES,
    MOST_MERGED_ROWS,
    BatchRun,
    next_merge,
)


def segment(rows: int, size: int = 1_000, key: int = 0) -> BatchRun:
    return BatchRun(key, is_compacted=False, rows=rows, bytes=size, paths=())


def segments(number: int, rows: int, size: int = 1_000) -> list[BatchRun]:
    return [segment(rows, size, key) for key in range(number)]


@dataclass
class Dataset:
    """A dataset that is compacted after each of its batches, down to the last merge."""

    segments: list[BatchRun] = field(default_factory=list)
    rewritten: int = 0
    most: int = 0
    keys: Iterator[int] = field(default_factory=count)

    def add(self, rows: int) -> None:
        self.segments.append(segment(rows, key=next(self.keys)))
        while merged := next_merge(self.segments):
            total, size = sum(one.rows for one in merged), sum(one.bytes for one in merged)
            self.segments = [one for one in self.segments if one not in merged]
            self.segments.append(
                BatchRun(next(self.keys), is_compacted=True, rows=total, bytes=size, paths=())
            )
            self.rewritten += total
        self.most = max(self.most, len(self.segments))


@pytest.mark.parametrize("rows", [1, 7, 99, 100, 640, 5_000])
def test_a_thousand_batches_lie_in_a_few_files_and_no_row_is_written_more_than_four_times(rows: int) -> None:
    dataset = Dataset()

    for _ in range(1_000):
        dataset.add(rows)

    assert dataset.most <= 30
    assert sum(one.rows for one in dataset.segments) == 1_000 * rows
    assert dataset.rewritten <= 4 * 1_000 * rows


def test_batches_of_any_sizes_leave_at_most_nine_small_files_of_each_tier() -> None:
    dataset = Dataset()

    for number in range(3_000):
        dataset.add(1 + pow(7, number, 100_003) * (number % 5) // 4)

    small = [one for one in dataset.segments if not one.is_full]
    assert len(small) <= 6 * (MERGED_FROM - 1)


def test_nine_of_a_tier_wait_for_a_tenth() -> None:
    assert next_merge([*segments(9, 5), *segments(9, 50), *segments(9, 500)]) == ()
    assert next_merge([*segments(9, 50), *segments(10, 5)]) == tuple(segments(10, 5))


def test_the_smallest_tier_goes_first() -> None:
    assert next_merge([*segments(10, 50), *segments(10, 5)]) == tuple(segments(10, 5))


def test_what_has_gathered_is_merged_at_once() -> None:
    assert len(next_merge(segments(25, 5))) == 25
    assert next_merge(segments(300, 5)) == tuple(segments(MOST_MERGED, 5))


def test_a_merged_file_holds_no_more_than_other_files_do() -> None:
    by_rows, by_bytes = next_merge(segments(10, 150_000)), next_merge(segments(10, 5, 30 * 2**20))

    assert len(by_rows) * 150_000 <= MOST_MERGED_ROWS < (len(by_rows) + 1) * 150_000
    assert len(by_bytes) * 30 * 2**20 <= MOST_MERGED_BYTES < (len(by_bytes) + 1) * 30 * 2**20


def test_what_is_merged_at_all_are_at_least_two() -> None:
    assert len(next_merge(segments(10, FULL_ROWS - 1))) == 2
    assert len(next_merge(segments(10, 5, FULL_BYTES - 1))) == 2


def test_large_files_are_left_alone() -> None:
    assert next_merge(segments(20, FULL_ROWS)) == ()
    assert next_merge(segments(20, 5, FULL_BYTES)) == ()
    assert next_merge([]) == ()
