"""How much one tenant may have at a time, so that none takes what the others need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from profile_export.domain.errors import ExhaustedError

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Quotas:
    """The shares of each tenant, None: as much as it likes.

    `watches` and `transfers`, which are uploads and downloads that run, count per server, all else over all servers.
    """

    waiting_jobs: int | None = 1_000
    running_jobs: int | None = 100
    datasets: int | None = 10_000
    loading_batches: int | None = 1_000
    staged_bytes: int | None = 100 * _GB
    watches: int | None = 25_000
    transfers: int | None = 256


DEFAULT_QUOTAS = Quotas()


def quota_exceeded(
    quota: str, limit: int, used: int, way_out: str, retry_after: timedelta | None = None
) -> ExhaustedError:
    """Return the refusal of what would be more than a tenant's share.

    Args:
        quota: What is shared out, as in `Quotas`.
        limit: How much the tenant may have.
        used: How much it has.
        way_out: A sentence that says what makes room.
        retry_after: When there may be room again without anything being done; None: never.
    """
    what = quota.replace("_", " ")
    return ExhaustedError(
        "QUOTA_EXCEEDED",
        f"This tenant may have {limit:,} {what} and has {used:,}. {way_out}",
        metadata={"quota": quota, "limit": str(limit), "used": str(used)},
        retry_after=retry_after,
    )
