"""Which jobs a watch of all of them is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pytest

from profile_export.domain.job import JobFilter, JobState
from tests.builders import NOON, at

NEW, RUNNING, FAILED = JobState.NEW, JobState.PROCESSING, JobState.FAILED


@dataclass(frozen=True)
class SomeJob:
    destination_id: str = "d"
    create_time: datetime = NOON


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (JobFilter(), True),
        (JobFilter(frozenset({NEW, FAILED})), True),
        (JobFilter(frozenset({RUNNING})), True),
        (JobFilter(frozenset({FAILED})), False),
        (JobFilter(destination_id="d"), True),
        (JobFilter(destination_id="e"), False),
        (JobFilter(from_create_time=NOON), True),
        (JobFilter(from_create_time=at(1)), False),
        (JobFilter(frozenset({NEW}), "d", at(-1)), True),
        (JobFilter(frozenset({NEW}), "e", at(-1)), False),
    ],
)
def test_a_job_passes_if_every_condition_holds_before_or_after_a_move(
    wanted: JobFilter,
    admitted: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    assert wanted.admits(SomeJob(), (NEW, RUNNING)) == admitted


def test_a_creation_comes_from_no_state() -> None:
    assert JobFilter(frozenset({NEW})).admits(SomeJob(), (None, NEW))
    assert not JobFilter(frozenset({RUNNING})).admits(SomeJob(), (None, NEW))
