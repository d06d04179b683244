from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from profile_export.domain.catalog.datasets import (
    LEAST_RETENTION,
    MOST_RETENTION,
    Dataset,
    DatasetKind,
    SchemaRef,
    batch_expiry_reason,
    check_batch_retention,
    check_undeletable,
    expired_job,
    missing_dataset,
    upload_expiry_reason,
)
from profile_export.domain.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from profile_export.domain.schemas.types import EMPTY

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize("kept_for", [timedelta(), LEAST_RETENTION, timedelta(days=30), MOST_RETENTION])
def test_batches_are_kept_for_ever_or_from_an_hour_to_a_hundred_years(kept_for: timedelta) -> None:
    check_batch_retention(kept_for, "batch_retention")


@pytest.mark.parametrize(
    "kept_for",
    [
        -LEAST_RETENTION,
        -MICROSECOND,
        MICROSECOND,
        LEAST_RETENTION - MICROSECOND,
        MOST_RETENTION + MICROSECOND,
    ],
)
def test_a_retention_that_cannot_be_meant_is_refused(kept_for: timedelta) -> None:
    with pytest.raises(InvalidArgumentError, match="between 1 hour and 36,500 days") as refused:
        check_batch_retention(kept_for, "batch_retention")

    assert [violation.field for violation in refused.value.violations] == ["batch_retention"]


@pytest.mark.parametrize(
    ("kept_for", "words"),
    [
        (timedelta(days=30), "30 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=1, hours=12), "36 hours"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=1, seconds=1), "3,601 seconds"),
    ],
)
def test_the_reason_says_how_long_the_batch_was_kept(kept_for: timedelta, words: str) -> None:
    assert batch_expiry_reason(kept_for) == f"Expired: its dataset keeps batches for {words}."


def test_an_expired_job_is_not_found_and_says_when_it_was_removed() -> None:
    refusal = expired_job(7, datetime(2026, 1, 31, 12, 30, 1, 999, tzinfo=UTC))

    assert refusal.reason == "EXPIRED"
    assert refusal.metadata == {"id": "7", "expire_time": "2026-01-31T12:30:01Z"}
    assert "2026-01-31T12:30:01Z" in refusal.message


def test_an_upload_that_was_given_up_says_after_how_long() -> None:
    said = upload_expiry_reason(timedelta(hours=24))

    assert said.startswith("Given up: nothing was sent for ")
    assert said.endswith(". Upload it again.")


# --- Deleted datasets ---

DELETED = datetime(2026, 1, 31, 12, tzinfo=UTC)
PURGED = DELETED + timedelta(hours=1)


def dataset(delete_time: datetime | None = None, purge_time: datetime | None = None) -> Dataset:
    return Dataset(
        "d",
        "",
        "",
        SchemaRef("s"),
        DatasetKind.RECORD,
        {},
        (),
        (),
        EMPTY,
        DELETED,
        DELETED,
        delete_time=delete_time,
        purge_time=purge_time,
    )


def test_a_deleted_dataset_can_be_brought_back_until_its_time_is_over() -> None:
    check_undeletable(dataset(DELETED, PURGED), PURGED - MICROSECOND)

    with pytest.raises(AlreadyExistsError, match="is not deleted: nothing is left to do"):
        check_undeletable(dataset(), DELETED)
    for over, now in ((dataset(DELETED, PURGED), PURGED), (dataset(DELETED), DELETED)):
        with pytest.raises(NotFoundError, match="was deleted at 2026-01-31T12:00:00Z and is gone") as refused:
            check_undeletable(over, now)
        assert refused.value.metadata == {"id": "d", "delete_time": "2026-01-31T12:00:00Z"}


def test_who_names_a_deleted_dataset_is_told_how_to_have_it_back() -> None:
    told, gone = missing_dataset("d", DELETED, PURGED), missing_dataset("d", DELETED, None)

    assert told.message == (
        "The dataset 'd' was deleted at 2026-01-31T12:00:00Z. UndeleteDataset brings it back until "
        "2026-01-31T13:00:00Z."
    )
    assert gone.message == "There is no dataset 'd'."
    assert {told.reason, gone.reason} == {"DATASET_NOT_FOUND"}
    assert told.metadata["purge_time"] == "2026-01-31T13:00:00Z"
