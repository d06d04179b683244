"""Retention: how long batches and jobs are kept, and what is said of those that have expired."""

from __future__ import annotations

from datetime import datetime, timedelta

from profile_export.domain.errors import InvalidArgumentError, NotFoundError

REMEMBERED = timedelta(days=30)
"""How long an expired job is told from one that never was."""
LEAST_RETENTION = timedelta(hours=1)
MOST_RETENTION = timedelta(days=36_500)


def check_batch_retention(kept_for: timedelta, field: str) -> None:
    """Refuse a retention that cannot be meant; zero is one, and means for ever.

    Raises:
        InvalidArgumentError: It is negative, less than an hour, or more than a hundred years.
    """
    if kept_for and not LEAST_RETENTION <= kept_for <= MOST_RETENTION:
        raise InvalidArgumentError.of_field(
            field, f"must be 0, which is for ever, or between 1 hour and {MOST_RETENTION.days:,} days."
        )


def batch_expiry_reason(kept_for: timedelta) -> str:
    """Say why a batch has expired."""
    return f"Expired: its dataset keeps batches for {_in_words(kept_for)}."


def upload_expiry_reason(kept_for: timedelta) -> str:
    """Say why a batch was given up that was being uploaded."""
    return f"Given up: nothing was sent for {_in_words(kept_for)}. Upload it again."


def expired_job(job_id: int, expire_time: datetime) -> NotFoundError:
    """Return the refusal of a job that retention has removed."""
    when = expire_time.isoformat(timespec="seconds").replace("+00:00", "Z")
    return NotFoundError(
        "EXPIRED",
        f"The job {job_id} has expired: it was removed at {when}. What it has exported stays, with the receipt.",
        metadata={"id": str(job_id), "expire_time": when},
    )


def _in_words(time: timedelta) -> str:
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1))):
        count, rest = divmod(time, length)
        if count and not rest:
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{time.total_seconds():,.0f} seconds"
