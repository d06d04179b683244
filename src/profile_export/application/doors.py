"""What all doors share: how many streams of a tenant are open, and what takes long of their conversions.

Doors do the latter beside the loop, in the tenant's name, by `compute`, `compute_if` and `compute_for`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from profile_export.domain.catalog.allowances import quota_exceeded
from profile_export.domain.catalog.datasets import Tenant
from profile_export.processes.turns import compute, compute_for, compute_if

__all__ = ["Streams", "compute", "compute_for", "compute_if"]

_RETRY_AFTER = timedelta(seconds=1)


class Streams:
    """Streams of one kind.

    Args:
        quota: What they are called in `Quotas`.
        most: How many a tenant may have open at once; None: any number.
        way_out: A sentence that says what makes room.
    """

    def __init__(self, quota: str, most: int | None, way_out: str) -> None:
        self._quota, self._most, self._way_out = quota, most, way_out
        self._open: Counter[Tenant] = Counter()

    @contextmanager
    def one(self, tenant: Tenant) -> Iterator[None]:
        """Count a stream of a tenant while the block runs.

        Raises:
            ExhaustedError: It has as many as it may have.
        """
        used = self._open[tenant]
        if self._most is not None and used >= self._most:
            raise quota_exceeded(self._quota, self._most, used, self._way_out, _RETRY_AFTER)
        self._open[tenant] = used + 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
