"""How fast work goes and how long the rest takes, from what was done when; times are seconds of any one clock."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

_LATELY = 10.0
"""Seconds: the speed that people see is that of the last few of them."""
_SOON = 1.0
"""Seconds that a phase must have lasted before anything is said of its rest."""


class Pace:
    """The pace of one phase, from its beginning."""

    def __init__(self, done: int, now: float) -> None:
        self._first = (now, done)
        self._seen = deque([self._first])

    def seen(self, done: int, now: float) -> None:
        """Note how much is done; neither may be less than before."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _LATELY:  # noqa: PLR2004 - a stretch has two ends
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        """How much was done a second, lately; 0 if that is not known."""
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began) if now > began else 0.0

    def rest(self, estimated: int) -> timedelta | None:
        """Return how long what is left takes at the pace of the whole phase; None if nothing is known of that."""
        (began, before), (now, done) = self._first, self._seen[-1]
        if now - began < _SOON or done <= before:
            return None
        return timedelta(seconds=max(0, estimated - done) * (now - began) / (done - before))
