"""The named points of the state machine: where a process under fire kills or stops itself.

A point is a moment of what the product does: `before` it, `inside` its transaction when all of it is written and
nothing committed, or `after` it, when it has happened and nobody has been told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class How(StrEnum):
    KILL = "kill"
    STOP = "stop"


class Needs(StrEnum):
    """What brings a process to a point, besides jobs."""

    NOTHING = "nothing"
    TO_BE_DRAINED = "to be drained"
    ITS_ENGINE_TO_CRASH = "its engine to crash"


@dataclass(frozen=True)
class Fuse:
    """What happens to a process, and where: at the first time that it comes there."""

    point: str
    how: How = How.KILL
    needs: Needs = Needs.NOTHING

    @property
    def name(self) -> str:
        return f"{self.how} {self.point}"


def _kills(*points: str, needs: Needs = Needs.NOTHING) -> list[Fuse]:
    return [Fuse(point, How.KILL, needs) for point in points]


def _stops(*points: str, needs: Needs = Needs.NOTHING) -> list[Fuse]:
    return [Fuse(point, How.STOP, needs) for point in points]


OF_WORKERS: Sequence[Fuse] = (
    *_kills("inside claim", "after claim"),
    *_kills("inside begin resolve", "after begin resolve", "before resolving", "after resolving"),
    *_kills("inside begin run", "after begin run", "before writing a range", "after writing a range"),
    *_kills("inside record a range", "after record a range"),
    *_kills("inside begin commit", "after begin commit", "before commit", "inside commit", "after commit"),
    *_kills(
        "before write a receipt", "after write a receipt", "inside note a receipt", "after note a receipt"
    ),
    *_kills("before tidy up", "after tidy up"),
    *_kills("after see a cancel", "before let go", "inside let go", "after let go", "after remove"),
    *_kills("before release", "inside release", "after release", needs=Needs.TO_BE_DRAINED),
    *_kills("before end in error", "inside end in error", needs=Needs.ITS_ENGINE_TO_CRASH),
    *_kills("after end in error", needs=Needs.ITS_ENGINE_TO_CRASH),
    *_stops("after claim", "after begin resolve", "after resolving", "after writing a range"),
    *_stops("after record a range", "before commit", "inside commit", "before let go"),
    *_stops("before release", needs=Needs.TO_BE_DRAINED),
    *_stops("before end in error", needs=Needs.ITS_ENGINE_TO_CRASH),
)
OF_SERVERS: Sequence[Fuse] = (
    *_kills("inside create", "after create", "inside cancel", "after cancel"),
    *_kills("inside lapse", "after lapse", "before forget what was swept"),
)
