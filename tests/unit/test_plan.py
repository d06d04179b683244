"""The plan: ranges that cover every key once, and counts that add up."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    BYTES_OF_A_VALUE,
    HIGHEST_KEY,
    LOWEST_KEY,
    VALUES_OF_A_ROW,
    VALUES_PER_RANGE,
    EventSelection,
    ExportCounts,
    ExportPlan,
    KeyRange,
    PinnedFile,
    Source,
    SourcePart,
)
from profile_export.domain.export.selection import IdentitySelection, SegmentFilter, SegmentSelection
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import EMPTY, TEXT, ArrayType, MapType, ObjectType
from tests.builders import plan_of

FIGURES = [
    figure.name
    for figure in fields(ExportCounts)
    if figure.name not in {"by_namespace", "segment_members", "links_most"}
]


# Of rows of which no field is kept.
ROWS_PER_RANGE = VALUES_PER_RANGE // VALUES_OF_A_ROW


def source_of(*parts: tuple[int, ...], kind: DatasetKind = DatasetKind.RECORD) -> Source:
    """A source of parts of files of so many rows."""
    return Source(
        "crm",
        kind,
        tuple(
            SourcePart(EMPTY, tuple(PinnedFile(f"f{index}", rows, 1) for index, rows in enumerate(files)))
            for files in parts
        ),
    )


def plan_over(*sources: Source) -> ExportPlan:
    return ExportPlan(
        "b1", IdentityGraph.NONE, sources, (), {}, {}, EMPTY, EMPTY, EMPTY, IdentitySelection(), None
    )


counts = st.builds(
    ExportCounts,
    **{figure: st.integers(0, 10**12) for figure in FIGURES},
    by_namespace=st.dictionaries(st.sampled_from(["Email", "CRMID", "ECID"]), st.integers(0, 10**12)),
)


# --- Ranges ---


@given(st.integers(0, 2 * 10**10) | st.integers(0, 5 * ROWS_PER_RANGE))
def test_ranges_cover_the_whole_space_of_keys_without_gap_or_overlap(rows: int) -> None:
    ranges = plan_over(source_of((rows,))).ranges()

    assert ranges[0].low == LOWEST_KEY == -(2**63)
    assert ranges[-1].high == HIGHEST_KEY == 2**63 - 1
    assert all(before.high + 1 == after.low for before, after in pairwise(ranges))
    assert all(one.low <= one.high for one in ranges)
    assert [one.index for one in ranges] == list(range(len(ranges)))


@given(st.tuples(st.integers(LOWEST_KEY, HIGHEST_KEY), st.integers(LOWEST_KEY, HIGHEST_KEY)).map(sorted))
def test_the_halves_of_a_range_are_all_of_it_and_as_wide_as_each_other(ends: list[int]) -> None:
    low, high = ends
    assume(low < high)

    lower, upper = KeyRange(7, low, high).halves()

    assert (lower.low, lower.high + 1, upper.high) == (low, upper.low, high)
    assert 0 <= upper.width - lower.width <= 1
    assert lower.index == upper.index == 7


@given(st.integers(0, 2 * 10**10))
def test_ranges_hold_about_equally_many_keys(rows: int) -> None:
    ranges = plan_over(source_of((rows,))).ranges()

    widths = {one.high - one.low for one in ranges}
    assert max(widths) - min(widths) < len(ranges)


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (0, 1),
        (1, 1),
        (ROWS_PER_RANGE, 1),
        (ROWS_PER_RANGE * 149 // 100, 1),
        (ROWS_PER_RANGE * 151 // 100, 2),
        (ROWS_PER_RANGE * 16, 16),
    ],
)
def test_a_range_reads_about_as_many_rows_as_bound_the_memory(rows: int, count: int) -> None:
    ranges = plan_over(source_of((rows,))).ranges()

    assert len(ranges) == count


def test_the_more_fields_are_kept_the_fewer_rows_a_range_reads() -> None:
    source = source_of((10 * ROWS_PER_RANGE,))
    kept = ObjectType({f"f{index}": TEXT for index in range(VALUES_OF_A_ROW)})
    events = EventSelection(kept, IdentitySelection(), None, None)

    wide = replace(plan_over(source), fields=kept)
    attached = replace(plan_over(source_of((10 * ROWS_PER_RANGE,), kind=DatasetKind.EVENT)), events=events)

    assert [len(plan.ranges()) for plan in (plan_over(source), wide, attached)] == [10, 20, 20]


def test_every_file_of_every_source_counts_for_the_ranges() -> None:
    half = ROWS_PER_RANGE // 2
    plan = plan_over(source_of((half, half), (half,)), source_of((half,), kind=DatasetKind.EVENT))

    assert len(plan.ranges()) == 2


def test_every_attempt_gets_the_same_ranges() -> None:
    first, second = (plan_over(source_of((5 * ROWS_PER_RANGE,))) for _ in range(2))

    assert first.ranges() == second.ranges()


def test_a_source_has_the_rows_of_all_its_files() -> None:
    source = source_of((1, 2), (), (4,))

    assert source.rows == 7


# --- Counts ---


def test_every_figure_of_two_ranges_adds_up() -> None:
    powers: dict[str, Any] = {figure: 2**index for index, figure in enumerate(FIGURES)}
    thousands: dict[str, Any] = dict.fromkeys(FIGURES, 1000)
    first = replace(ExportCounts(), **powers)
    second = replace(ExportCounts(), **thousands)

    added = first + second

    assert {figure: getattr(added, figure) for figure in FIGURES} == {
        figure: 1000 + power for figure, power in powers.items()
    }


def test_namespaces_add_up_one_by_one_whichever_range_knows_them() -> None:
    first = ExportCounts(by_namespace={"Email": 3, "CRMID": 1})
    second = ExportCounts(by_namespace={"ECID": 5, "Email": 4})

    assert (first + second).by_namespace == {"CRMID": 1, "ECID": 5, "Email": 7}


def test_counts_without_namespaces_count_as_having_none() -> None:
    unknown, known = ExportCounts(), ExportCounts(by_namespace={"Email": 3})

    assert (unknown + known).by_namespace == {"Email": 3}
    assert (known + unknown).by_namespace == {"Email": 3}
    assert (unknown + unknown).by_namespace == {}


@given(counts, counts, counts)
def test_counts_add_up_in_any_order(one: ExportCounts, two: ExportCounts, three: ExportCounts) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + ExportCounts() == one


def test_exported_rows_have_the_chosen_fields_their_identities_and_their_events() -> None:
    plain = plan_of([], fields=["identities.id"])
    with_events = plan_of([], event_fields=["_id"])

    assert plain.exported_fields == ObjectType({"identityMap": MapType(ArrayType(ObjectType({"id": TEXT})))})
    assert with_events.exported_fields.fields["timeSeriesEvents"] == ArrayType(ObjectType({"_id": TEXT}))
    assert {"identityMap", "segmentMembership", "timeSeriesEvents"} == set(with_events.exported_fields.fields)


def test_members_of_segments_add_up_one_by_one() -> None:
    first, second = ExportCounts(segment_members={0: 1, 1: 2}), ExportCounts(segment_members={1: 3})

    assert (first + second).segment_members == {0: 1, 1: 5}


def test_a_plan_fills_one_batch_or_one_of_each_segment() -> None:
    segments = SegmentSelection((SegmentFilter("gold"), SegmentFilter("vip")))

    assert plan_of([]).batch_ids == ("export",)
    assert plan_of([], segments=segments, segment_batches=("b1", "b2")).batch_ids == ("b1", "b2")


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_the_rows_of_all_ranges_are_those_of_all_sources(rows: int, values_per_range: int) -> None:
    plan = replace(plan_over(source_of((rows,))), values_per_range=max(values_per_range, rows // 100 + 1))

    assert sum(plan.rows_in(key_range) for key_range in plan.ranges()) == plan.rows == rows


def test_long_texts_are_cut_finer_than_short_ones() -> None:
    part = SourcePart(EMPTY, (PinnedFile("long", 1_000, 100 * VALUES_PER_RANGE * BYTES_OF_A_VALUE),))
    plan = plan_over(Source("crm", DatasetKind.RECORD, (part,)))

    assert len(plan.ranges()) == 100


def test_counts_of_nothing_are_those_of_no_profile() -> None:
    assert ExportCounts.total([]) == ExportCounts()
