"""Segments: which entries of `segmentMembership` let a profile in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.selection import (
    MembershipStatus,
    SegmentFilter,
    SegmentSelection,
    check_segments,
)
from tests.builders import at

GOLD = SegmentFilter("gold")
EXITED = SegmentFilter("gold", statuses=(MembershipStatus.EXITED,))
SPAN = (at(1), at(2))


def admits(
    entry: dict[str, Any],
    one: SegmentFilter = GOLD,
    window: tuple[datetime | None, datetime | None] = (None, None),
) -> bool:
    return SegmentSelection((one,), *window).admits(0, entry)


@pytest.mark.parametrize(
    ("status", "by_default", "exited"),
    [("realized", True, False), ("existing", True, False), ("exited", False, True), ("other", False, False)],
)
def test_s21_a_segment_is_judged_by_its_own_statuses_realized_and_existing_by_default(
    status: str, *, by_default: bool, exited: bool
) -> None:
    entry = {"status": status}

    assert (admits(entry), admits(entry, EXITED)) == (by_default, exited)


def test_s15_an_entry_without_a_status_counts_as_realized() -> None:
    assert admits({"validUntil": at(9)})
    assert not admits({"validUntil": at(9)}, EXITED)


@pytest.mark.parametrize(
    ("minutes", "window", "within"),
    [
        (1, SPAN, True),
        (1.5, SPAN, True),
        (2, SPAN, False),
        (0.5, SPAN, False),
        (9, (at(1), None), True),
        (0, (None, at(2)), True),
        (2, (None, at(2)), False),
        (1, (at(1), at(1)), False),
    ],
)
def test_s21_the_window_includes_its_start_and_excludes_its_end(
    minutes: float, window: tuple[datetime | None, datetime | None], *, within: bool
) -> None:
    assert admits({"lastQualificationTime": at(minutes)}, window=window) is within


@pytest.mark.parametrize("window", [(at(0), None), (None, at(9)), (at(0), at(9))])
def test_s21_an_entry_without_a_time_is_outside_every_window(
    window: tuple[datetime | None, datetime | None],
) -> None:
    assert not admits({"status": "realized"}, window=window)


def test_s2_segments_are_looked_for_in_the_registered_spelling_and_nobody_is_in_an_unregistered_one() -> None:
    selection = SegmentSelection((SegmentFilter("gold", "UPS"), SegmentFilter("gold", "AAM")))

    found = selection.registered({"ups": "ups"})

    assert [one.namespace for one in found.segments] == ["ups", "AAM"]
    assert found.entries({"ups": {"gold": {"status": "exited"}}, "aam": {"gold": {}}}) == {
        0: {"status": "exited"}
    }


def test_an_entry_is_that_of_its_namespace_and_segment_at_the_position_asked_for() -> None:
    selection = SegmentSelection((SegmentFilter("silver"), GOLD))
    entry = {"status": "realized"}

    assert selection.entries({"ups": {"gold": entry, "other": {}}, "aam": {"silver": {}}}) == {1: entry}
    assert selection.entries({}) == {}


# --- Checks ---


def test_segments_of_the_same_id_in_two_namespaces_are_two() -> None:
    check_segments([GOLD, SegmentFilter("gold", "AAM"), SegmentFilter("Gold")], "segments")


def test_a_segment_needs_an_id() -> None:
    with pytest.raises(InvalidArgumentError, match="is required") as refused:
        check_segments([GOLD, SegmentFilter("")], "segments")

    assert (refused.value.reason, refused.value.metadata["field"]) == (
        "FIELD_REQUIRED",
        "segments[1].segment_id",
    )


def test_a_segment_that_is_named_twice_is_refused_whatever_the_case_of_its_namespace() -> None:
    with pytest.raises(InvalidArgumentError, match=r"same segment as segments\[0\]") as refused:
        check_segments([GOLD, SegmentFilter("vip"), SegmentFilter("gold", "UPS")], "segments")

    assert refused.value.metadata["field"] == "segments[2]"
