"""How fast work goes and how long the rest takes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profile_export.domain.job import Pace


def test_at_a_steady_pace_the_rest_is_what_is_left_at_that_pace() -> None:
    pace = Pace(0, 100.0)
    for second in range(1, 31):
        pace.seen(50 * second, 100.0 + second)

    assert pace.per_second == 50
    assert pace.rest(3_000) == timedelta(seconds=30)


def test_the_speed_is_that_of_the_last_seconds_and_the_rest_that_of_the_whole_phase() -> None:
    pace = Pace(0, 0.0)
    for second in range(1, 21):
        pace.seen(100 * second, float(second))
    for second in range(21, 41):
        pace.seen(2_000 + 10 * (second - 20), float(second))

    assert pace.per_second == 10
    assert pace.rest(4_400) == timedelta(seconds=40)


def test_what_an_earlier_attempt_has_done_says_nothing_of_the_pace() -> None:
    pace = Pace(900, 0.0)
    pace.seen(910, 10.0)

    assert pace.per_second == 1
    assert pace.rest(1_000) == timedelta(seconds=90)


@pytest.mark.parametrize(("done", "now"), [(0, 5.0), (10, 0.5), (0, 0.0)])
def test_at_first_nothing_is_said_of_the_rest(done: int, now: float) -> None:
    pace = Pace(0, 0.0)
    pace.seen(done, now)

    assert pace.rest(100) is None


def test_before_anything_is_seen_there_is_no_speed() -> None:
    assert Pace(0, 7.0).per_second == 0


def test_more_than_was_expected_leaves_nothing() -> None:
    pace = Pace(0, 0.0)
    pace.seen(120, 10.0)

    assert pace.rest(100) == timedelta()


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e6)), min_size=1), st.integers(0, 10**12))
def test_neither_is_ever_negative(steps: list[tuple[int, float]], estimated: int) -> None:
    pace, done, now = Pace(0, 0.0), 0, 0.0
    for more, seconds in steps:
        done, now = done + more, now + seconds
        pace.seen(done, now)

        rest = pace.rest(estimated)
        assert pace.per_second >= 0
        assert rest is None or rest >= timedelta()
