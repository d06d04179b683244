"""Renews the leases of this process from a thread while its event loop is too busy to renew them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from threading import Condition, Thread

import structlog

from profile_export.domain.job import LEASE_MARGIN, LEASE_TTL
from profile_export.store.jobs.attempts import Fence, Renewals

TRUSTED_SECONDS = (LEASE_TTL - LEASE_MARGIN).total_seconds()
LATE_SECONDS = 3.0
"""After so many seconds without a heartbeat, which come every second, the thread renews a lease."""
MOST_SECONDS = 120.0
"""So many seconds after the last heartbeat, the loop counts as hanging: the thread stops, and others take the jobs."""
_LOOK_SECONDS = 0.5
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Held:
    """A lease that this process holds. Times are of the monotonic clock, which is the loop's."""

    trust: asyncio.Timeout
    beaten: float
    trusted_until: float

    def beat(self, asked: float) -> None:
        """Note a heartbeat that was asked for then and has come through."""
        self.beaten = asked
        self.renewed(asked)
        self.extend()

    def renewed(self, asked: float) -> None:
        """Trust the lease for as long as a renewal allows that was asked for then.

        A heartbeat may have waited for the writer, and others that were asked for later may have come before it.
        """
        self.trusted_until = max(self.trusted_until, asked + TRUSTED_SECONDS)

    def extend(self) -> None:
        """Let the attempt go on for as long; in the loop only."""
        with suppress(RuntimeError):  # it has ended meanwhile
            self.trust.reschedule(self.trusted_until)


class LeaseKeeper:
    """A thread that renews leases whose heartbeat is late, until it is too late for a loop that is only busy."""

    def __init__(self, renewals: Renewals) -> None:
        self._renewals = renewals
        self._held: dict[Fence, Held] = {}
        self._changed = Condition()
        self._thread: Thread | None = None
        self._closed = False

    @asynccontextmanager
    async def holding(self, fence: Fence, trusted_until: float) -> AsyncIterator[Held]:
        """Hold a lease that may be trusted until then, and for longer with each of its heartbeats.

        Raises:
            TimeoutError: It may not be trusted any more.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(trusted_until) as trust:
            held = Held(trust, trusted_until - TRUSTED_SECONDS, trusted_until)
            with self._changed:
                self._held[fence] = held
                if self._thread is None:
                    self._thread = Thread(target=self._run, args=(loop,), name="leases", daemon=True)
                    self._thread.start()
                self._changed.notify()
            try:
                yield held
            finally:
                with self._changed:
                    del self._held[fence]

    def keeps(self, fence: Fence) -> bool:
        """Whether this process holds a lease and may still trust it."""
        with self._changed:
            held = self._held.get(fence)
        return held is not None and time.monotonic() < held.trusted_until

    def close(self) -> None:
        """End the thread; blocks for as long as a renewal takes."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._held)
                self._changed.wait_for(lambda: self._closed, _LOOK_SECONDS)
                if self._closed:
                    return
                late = [(fence, held) for fence, held in self._held.items() if _is_late(held)]
            for fence, held in late:
                asked = time.monotonic()
                if self._renewals.renew(fence):
                    held.renewed(asked)
                    loop.call_soon_threadsafe(held.extend)
                    _log.warning("lease_kept", job_id=fence.job_id, attempt=fence.attempt)


def _is_late(held: Held) -> bool:
    return LATE_SECONDS < time.monotonic() - held.beaten < MOST_SECONDS
