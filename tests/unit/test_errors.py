"""What can be wrong with a call: every refusal carries what its caller needs to act."""

from __future__ import annotations

from datetime import timedelta

import pytest

from profile_export.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    PastEndError,
    UnavailableError,
    UnimplementedError,
    check_etag,
)

KINDS = (
    AbortedError,
    AlreadyExistsError,
    ExhaustedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PastEndError,
    UnavailableError,
    UnimplementedError,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_of_any_kind_says_why_in_code_in_words_and_in_facts(kind: type[DomainError]) -> None:
    error = kind(
        "LEASE_HELD",
        "Another worker holds the job 7.",
        metadata={"job_id": "7"},
        violations=(FieldViolation("job_id", "is held."),),
        retry_after=timedelta(seconds=2),
    )

    assert (error.reason, error.message, str(error)) == (
        "LEASE_HELD",
        "Another worker holds the job 7.",
        "Another worker holds the job 7.",
    )
    assert (error.metadata, error.violations, error.retry_after) == (
        {"job_id": "7"},
        (FieldViolation("job_id", "is held."),),
        timedelta(seconds=2),
    )


def test_a_refusal_without_facts_has_none() -> None:
    error = AbortedError("LOST", "Lost a race.")

    assert (error.metadata, error.violations, error.retry_after) == ({}, (), None)


def test_a_refusal_keeps_its_facts_when_the_caller_changes_its_own() -> None:
    facts = {"job_id": "7"}
    error = AbortedError("LOST", "Lost a race.", metadata=facts)

    facts["job_id"] = "8"

    assert error.metadata == {"job_id": "7"}


def test_a_wrong_field_is_named_in_message_metadata_and_violation() -> None:
    error = InvalidArgumentError.of_field("spec.fields[2]", "is unknown.", "UNKNOWN_FIELD", nearest="name")

    assert type(error) is InvalidArgumentError
    assert error.reason == "UNKNOWN_FIELD"
    assert error.message == "spec.fields[2]: is unknown."
    assert error.metadata == {"field": "spec.fields[2]", "nearest": "name"}
    assert error.violations == (FieldViolation("spec.fields[2]", "is unknown."),)


def test_a_wrong_field_has_a_reason_of_its_own_unless_a_better_one_is_given() -> None:
    error = InvalidArgumentError.of_field("name", "is required.")

    assert error.reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    ("kind", "resource_id", "reason", "message"),
    [
        ("merge policy", "p1", "MERGE_POLICY_NOT_FOUND", "There is no merge policy 'p1'."),
        ("job", 7, "JOB_NOT_FOUND", "There is no job 7."),
    ],
)
def test_a_missing_resource_is_named_by_kind_and_id(
    kind: str, resource_id: str | int, reason: str, message: str
) -> None:
    error = NotFoundError.of(kind, resource_id)

    assert type(error) is NotFoundError
    assert (error.reason, error.message) == (reason, message)
    assert error.metadata == {"id": str(resource_id)}


def test_what_is_not_built_yet_names_the_field() -> None:
    error = UnimplementedError.of_field("spec.filter")

    assert type(error) is UnimplementedError
    assert error.reason == "NOT_BUILT"
    assert error.message == "The field 'spec.filter' is not built yet; leave it out."
    assert error.metadata == {"field": "spec.filter"}


def test_what_is_not_built_yet_names_the_method() -> None:
    error = UnimplementedError.of_method("EstimateJob")

    assert type(error) is UnimplementedError
    assert error.reason == "NOT_BUILT"
    assert error.message == "The method 'EstimateJob' is not built yet."
    assert error.metadata == {"method": "EstimateJob"}


def test_what_is_meant_for_a_resource_as_it_was_is_refused_once_it_has_changed() -> None:
    check_etag("", "2", "d")
    check_etag("2", "2", "d")

    with pytest.raises(AbortedError) as refused:
        check_etag("1", "2", "d")

    assert refused.value.reason == "ETAG_MISMATCH"
    assert refused.value.metadata == {"id": "d", "etag": "2"}
