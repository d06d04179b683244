"""Instants and days as text: what is read exactly, and why the rest is not."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from profile_export.domain.schemas.instants import parse_day, parse_instant


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-31T10:00:00Z", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31t10:00:00z", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31 10:00:00+00:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31 10:00:00.123456+02", datetime(2026, 1, 31, 8, 0, 0, 123456, UTC)),
        ("2026-01-31 10:00:00-0530", datetime(2026, 1, 31, 15, 30, tzinfo=UTC)),
        ("2026-01-31 10:00:00.5 UTC", datetime(2026, 1, 31, 10, 0, 0, 500000, UTC)),
        ("2026-01-31T10:00:00,250000000Z", datetime(2026, 1, 31, 10, 0, 0, 250000, UTC)),
    ],
)
def test_an_instant_is_read_exactly(text: str, instant: datetime) -> None:
    assert parse_instant(text) == instant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-01-31T10:00:00.1234567Z", "has digits behind the microsecond"),
        ("2026-01-31T10:00:00", "has no offset"),
        ("2026-01-31 10:00:00.5", "has no offset"),
        ("2026-02-30T10:00:00Z", "is not an instant"),
        ("0001-01-01T00:00:00+01:00", "is not an instant"),
        ("2026-01-31T24:00:00Z", "is not an instant"),
        ("2026-12-31T23:59:60Z", "is not an instant"),
        ("2026-01-31T10:00Z", "is not an instant"),
        ("yesterday", "is not an instant"),
    ],
)
def test_what_would_be_guessed_or_rounded_is_no_instant(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_instant(text)


@pytest.mark.parametrize("text", ["2026-02-30", "20260131", "2026-01-31T00:00:00Z", ""])
def test_a_day_is_one_of_the_calendar(text: str) -> None:
    assert parse_day("2024-02-29") == date(2024, 2, 29)
    with pytest.raises(ValueError, match="is not a date"):
        parse_day(text)
