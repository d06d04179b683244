"""Whose turn it is: one thing at a time for each, round robin, and never the last place for who has one already."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from itertools import count

Whose = Hashable
"""For whom something is done, such as a tenant."""


class WaitedTooLongError(Exception):
    """No turn has come in time."""


class FairTurns:
    """Gives out so many places.

    Who has none gets the next free one, the longest waiting first and round robin. Who has one gets another while
    nobody without waits, and another place stays free for those who may come.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._held: Counter[Whose] = Counter()
        self._waiting: dict[Whose, deque[asyncio.Future[None]]] = {}
        # Where in the round stands who has a place, or waits for one: it goes to the end when it comes, when it gets a
        # place, and when it gives one back. Who came later, however often, is served later.
        self._round: dict[Whose, int] = {}
        self._numbers = count(1)

    @asynccontextmanager
    async def taken(self, whose: Whose, seconds: float | None = None) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            WaitedTooLongError: There was none within so many seconds; None: it is waited for as long as need be.
        """
        turn = asyncio.get_running_loop().create_future()
        if whose not in self._round:
            self._to_end_of_round(whose)
        self._waiting.setdefault(whose, deque()).append(turn)
        self._admit()
        try:
            if not turn.done():
                await _within(seconds, turn)
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._give_back(whose)
            else:
                self._leave(whose, turn)
            self._admit()

    def _give_back(self, whose: Whose) -> None:
        self._held[whose] -= 1
        self._to_end_of_round(whose)
        if not self._held[whose]:
            del self._held[whose]
            if whose not in self._waiting:
                del self._round[whose]

    def _leave(self, whose: Whose, turn: asyncio.Future[None]) -> None:
        self._waiting[whose].remove(turn)
        if not self._waiting[whose]:
            del self._waiting[whose]
            if not self._held[whose]:
                del self._round[whose]

    def _admit(self) -> None:
        while self._waiting and (free := self._places - self._held.total()):
            whose = min(self._waiting, key=lambda one: (self._held[one], self._round[one]))
            if self._held[whose] and free == 1:
                return
            waiting = self._waiting[whose]
            waiting.popleft().set_result(None)
            self._held[whose] += 1
            self._to_end_of_round(whose)
            if not waiting:
                del self._waiting[whose]

    def _to_end_of_round(self, whose: Whose) -> None:
        self._round[whose] = next(self._numbers)


async def _within(seconds: float | None, turn: asyncio.Future[None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await turn
    except TimeoutError:
        raise WaitedTooLongError from None
