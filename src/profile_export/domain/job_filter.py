"""Which jobs a watch of all of them is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from profile_export.domain.job import JobState


class Described(Protocol):
    """What tells one job from another here."""

    @property
    def destination_id(self) -> str:
        """The dataset that it writes to."""

    @property
    def create_time(self) -> datetime:
        """When it was created."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that all have to hold: one of these states, this destination, created at this instant or later.

    No states, an empty dataset id and None ask for nothing.
    """

    states: frozenset[JobState] = frozenset()
    destination_id: str = ""
    from_create_time: datetime | None = None

    def admits(self, job: Described, states: Iterable[JobState | None]) -> bool:
        """Whether it lets a job through that is in one of these states, or goes from one to another."""
        return (
            (not self.states or not self.states.isdisjoint(states))
            and (not self.destination_id or job.destination_id == self.destination_id)
            and (self.from_create_time is None or job.create_time >= self.from_create_time)
        )
