"""Batches: what they may be called, which files they take, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from profile_export.domain.catalog.batches import (
    MOST_FILES,
    Batch,
    BatchState,
    Reading,
    Upload,
    UploadStart,
    UploadState,
    check_abortable,
    check_batch_id,
    check_completable,
    check_file_count,
    check_revertible,
    check_takes_file,
)
from profile_export.domain.errors import DomainError, InvalidArgumentError
from tests.builders import at

OPEN, COMPLETE, REFUSED = UploadState.OPEN, UploadState.COMPLETE, UploadState.REFUSED


def upload(name: str, state: UploadState = COMPLETE, rejected_rows: int = 0) -> Upload:
    return Upload(name, "csv", 0, state, f"staged-{name}", rejected_rows=rejected_rows)


def batch(
    state: BatchState = BatchState.LOADING, *uploads: Upload, several: bool = False, job: int | None = None
) -> Batch:
    return Batch("b", "d", state, at(0), several_files=several, job_id=job, uploads=uploads)


def refused(check: Callable[[], object]) -> DomainError:
    with pytest.raises(DomainError) as error:
        check()
    return error.value


# --- Names and numbers ---


@pytest.mark.parametrize("batch_id", ["1", "my-batch_2", "x" * 64])
def test_a_batch_id_of_the_agreed_form_is_accepted(batch_id: str) -> None:
    check_batch_id(batch_id, "batch_id")


@pytest.mark.parametrize("batch_id", ["", "x" * 65, "a.b", "a/b", "..", "a\n", "é"])
def test_any_other_batch_id_is_refused(batch_id: str) -> None:
    error = refused(lambda: UploadStart("d", batch_id, "1", "csv"))

    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["field"] == "start.batch_id"
    assert "[A-Za-z0-9_-]{1,64}" in error.message


@pytest.mark.parametrize("file_name", ["1", "part-2_b.parquet", "x" * 128])
def test_a_file_name_of_the_agreed_form_is_accepted(file_name: str) -> None:
    assert UploadStart("d", "b", file_name, "csv").file_name == file_name


@pytest.mark.parametrize("file_name", ["", "x" * 129, "a/b", "a\n", "é"])
def test_any_other_file_name_is_refused(file_name: str) -> None:
    error = refused(lambda: UploadStart("d", "b", file_name, "csv"))

    assert error.metadata["field"] == "start.file_name"
    assert "[A-Za-z0-9_.-]{1,128}" in error.message


@pytest.mark.parametrize("field", ["offset", "max_bad_records"])
def test_a_number_below_zero_is_refused(field: str) -> None:
    values: dict[str, Any] = {field: -1}

    error = refused(lambda: UploadStart("d", "b", "1", "csv", **values))

    assert error.metadata["field"] == f"start.{field}"


def test_a_batch_counts_the_rejected_rows_of_its_files() -> None:
    made = batch(BatchState.LOADING, upload("1", rejected_rows=2), upload("2", rejected_rows=3))

    assert made.rejected_rows == 5


# --- Which files a batch takes ---


@pytest.mark.parametrize(
    "made",
    [
        batch(BatchState.LOADING, upload("1", OPEN)),
        batch(BatchState.LOADING, several=True),
        batch(BatchState.LOADING, upload("0"), several=True),
        batch(BatchState.SUCCEEDED, upload("1")),
        batch(BatchState.SUCCEEDED, upload("0"), upload("1"), several=True),
        batch(BatchState.FAILED, upload("0", REFUSED)),
    ],
)
def test_a_batch_takes_a_file_that_it_waits_for_or_has(made: Batch) -> None:
    check_takes_file(made, "d", "1")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (batch(BatchState.LOADING, upload("0", OPEN)), "BATCH_EXISTS"),
        (batch(BatchState.SUCCEEDED, upload("0"), several=True), "BATCH_EXISTS"),
        (batch(BatchState.LOADING, job=7), "BATCH_EXISTS"),
        (replace(batch(BatchState.LOADING, upload("1")), dataset_id="other"), "BATCH_EXISTS"),
        (batch(BatchState.ABORTED), "BATCH_ABORTED"),
        (batch(BatchState.REVERTED, upload("1")), "BATCH_ABORTED"),
        (batch(BatchState.EXPIRED, upload("1")), "BATCH_ABORTED"),
    ],
)
def test_a_batch_takes_no_other_file(made: Batch, reason: str) -> None:
    error = refused(lambda: check_takes_file(made, "d", "1"))

    assert error.reason == reason
    assert error.metadata["batch_id"] == "b"


# --- How a batch ends ---


def test_a_batch_is_complete_with_a_file_and_without_an_unfinished_one() -> None:
    check_completable(batch(BatchState.LOADING, upload("1"), upload("2", REFUSED), several=True))


@pytest.mark.parametrize(
    ("made", "reason", "file_name"),
    [
        (batch(BatchState.LOADING, several=True), "UPLOAD_INCOMPLETE", ""),
        (batch(BatchState.LOADING, upload("1", REFUSED), several=True), "UPLOAD_INCOMPLETE", ""),
        (batch(BatchState.LOADING, upload("1"), upload("2", OPEN), several=True), "UPLOAD_INCOMPLETE", "2"),
        (batch(BatchState.ABORTED, several=True), "BATCH_NOT_LOADING", None),
        (batch(BatchState.LOADING, job=7), "BATCH_NOT_LOADING", None),
    ],
)
def test_any_other_batch_cannot_be_completed(made: Batch, reason: str, file_name: str | None) -> None:
    error = refused(lambda: check_completable(made))

    assert (error.reason, error.metadata.get("file_name")) == (reason, file_name)


def test_only_a_loading_batch_of_uploads_can_be_given_up() -> None:
    check_abortable(batch(BatchState.LOADING, upload("1", OPEN)))

    assert refused(lambda: check_abortable(batch(BatchState.SUCCEEDED))).reason == "BATCH_NOT_LOADING"
    assert refused(lambda: check_abortable(batch(BatchState.LOADING, job=7))).metadata["job_id"] == "7"


def test_only_a_batch_that_counts_can_be_taken_back() -> None:
    check_revertible(batch(BatchState.SUCCEEDED))

    for state in set(BatchState) - {BatchState.SUCCEEDED}:
        with pytest.raises(DomainError) as refusal:
            check_revertible(batch(state))
        error = refusal.value
        assert (error.reason, error.metadata["state"]) == ("BATCH_NOT_SUCCEEDED", state.name)
        assert f" is {state.name}; only a SUCCEEDED batch can be reverted." in error.message
        assert error.message.endswith("list the batches of its dataset again.") is (
            state is BatchState.REPLACED
        )


def test_a_batch_has_so_many_files_and_no_more() -> None:
    check_file_count("b", MOST_FILES)

    with pytest.raises(InvalidArgumentError):
        check_file_count("b", MOST_FILES + 1)


@pytest.mark.parametrize(
    ("renames", "why"),
    [
        ([("", "a")], "must have names of 1 to 1,024 characters."),
        ([("a", "")], "must have names of 1 to 1,024 characters."),
        ([("a", "b" * 1_025)], "must have names of 1 to 1,024 characters."),
        ([("a", "x"), ("b", "y"), ("c", "x")], "give the name 'x' twice."),
    ],
)
def test_a_field_gets_one_new_name_that_no_other_gets(renames: list[tuple[str, str]], why: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Reading(renames=tuple(renames))

    assert [(one.field, one.description) for one in refused.value.violations] == [("start.renames", why)]


def test_names_may_change_places() -> None:
    assert Reading(renames=(("a", "b"), ("b", "a" * 1_024))).null_values == ()
