"""Turns of calls: of one tenant's calls to one method some run at once, and the others wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from profile_export.domain.catalog import Tenant

MOST_AT_ONCE = 16
"""More would be no faster, and would stand in the one queue for connections before every other tenant's call."""


@dataclass(slots=True)
class _Turn:
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))
    calls: int = 0


class CallTurns:
    """The turns of all tenants and methods; those that nobody has or waits for are forgotten."""

    def __init__(self) -> None:
        self._turns: dict[tuple[Tenant, str], _Turn] = {}

    @asynccontextmanager
    async def taken(self, tenant: Tenant, method: str) -> AsyncIterator[None]:
        """Wait for a place among a tenant's calls to a method, first come first served, and hold it."""
        turn = self._turns.setdefault((tenant, method), _Turn())
        turn.calls += 1
        try:
            async with turn.places:
                yield
        finally:
            turn.calls -= 1
            if not turn.calls:
                del self._turns[tenant, method]
