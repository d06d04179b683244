"""Whose turn it is: one thing at a time for each, round robin, and never the last place for who has one already."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from itertools import count

Whose = Hashable
"""For whom something is done, such as a tenant."""


class FairTurns:
    """Gives out so many places.

    Who has none gets the next free one, the longest waiting first and round robin. Who has one gets another while
    nobody without waits, and another place stays free for those who may come.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: Counter[Whose] = Counter()
        self._waiting: dict[Whose, deque[asyncio.Future[None]]] = {}
        # When who has a place, or waits for the next, got the last one.
        self._served: dict[Whose, int] = {}
        self._numbers = count(1)

    @asynccontextmanager
    async def taken(self, whose: Whose) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._give_back(whose)
            else:
                self._leave(whose, turn)
            self._admit()

    def _give_back(self, whose: Whose) -> None:
        self._held[whose] -= 1
        if not self._held[whose]:
            del self._held[whose]
            if whose not in self._waiting:
                del self._served[whose]

    def _leave(self, whose: Whose, turn: asyncio.Future[None]) -> None:
        self._waiting[whose].remove(turn)
        if not self._waiting[whose]:
            del self._waiting[whose]
            if not self._held[whose]:
                self._served.pop(whose, None)

    def _admit(self) -> None:
        while self._waiting and (free := self._places - self._held.total()):
            whose = min(self._waiting, key=lambda one: (self._held[one], self._served.get(one, 0)))
            if self._held[whose] and free == 1:
                return
            waiting = self._waiting[whose]
            waiting.popleft().set_result(None)
            self._held[whose] += 1
            self._served[whose] = next(self._numbers)
            if not waiting:
                del self._waiting[whose]
