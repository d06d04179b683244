"""An engine that writes nothing and does what a test tells it, job by job: so a job makes the moves of a plot."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from profile_export.application.ports import EngineAttempt
from profile_export.domain.export.plan import (
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
)

ROWS = 1_000


@dataclass
class Script:
    """What the attempts at one job do: whatever is told next, whichever server runs them.

    `running` is set while an attempt waits to be told.
    """

    running: asyncio.Event = field(default_factory=asyncio.Event)
    _acts: asyncio.Queue[int | EngineFailedError | None] = field(default_factory=asyncio.Queue)

    def advance(self, done: int) -> None:
        """Have the attempt report so many rows."""
        self._acts.put_nowait(done)

    def fail(self, message: str, *, retryable: bool) -> None:
        """Have the attempt end with an error."""
        self._end(EngineFailedError("ENGINE_QUERY", message, retryable=retryable))

    def finish(self) -> None:
        """Have the attempt end well."""
        self._end(None)

    def _end(self, act: EngineFailedError | None) -> None:
        # Cleared here: whoever waits from now on waits for the next attempt.
        self.running.clear()
        self._acts.put_nowait(act)

    async def perform(self, on_progress: Callable[[EngineProgress], None]) -> None:
        """Do what is told until the attempt is over, or cancelled.

        Raises:
            EngineFailedError: That was told.
        """
        self.running.set()
        try:
            while isinstance(act := await self._acts.get(), int):
                on_progress(EngineProgress(act, ROWS))
        finally:
            self.running.clear()
        if act:
            raise act


class Scripts:
    """The scripts of all jobs by the batch that they fill, and what the engines of all servers began, and when."""

    def __init__(self) -> None:
        self.of_batch: dict[str, Script] = defaultdict(Script)
        self.begun: list[tuple[str, float]] = []


class ScriptedEngine:
    """The engine of one server."""

    name = "duckdb"
    values_per_range = 1_000_000_000  # one range

    def __init__(self, server: str, scripts: Scripts) -> None:
        self._server, self._scripts = server, scripts

    @asynccontextmanager
    async def attempt(
        self,
        plan: ExportPlan,
        lake_root: Path,  # noqa: ARG002 - the port's signature
        folder: Path,  # noqa: ARG002 - the port's signature
        on_progress: Callable[[EngineProgress], None],
        segment_folders: Sequence[Path] = (),  # noqa: ARG002 - the port's signature
    ) -> AsyncIterator[EngineAttempt]:
        self._scripts.begun.append((self._server, time.time()))
        yield _ScriptedAttempt(self._scripts.of_batch[plan.batch_id], on_progress)


@dataclass
class _ScriptedAttempt:
    script: Script
    on_progress: Callable[[EngineProgress], None]

    async def resolve(self) -> ResolutionFacts:
        return ResolutionFacts()

    async def identity_graph(self) -> Path | None:
        return None

    async def run(self, key_range: KeyRange) -> RangeResult:  # noqa: ARG002 - the port's signature
        await self.script.perform(self.on_progress)
        return RangeResult()
