"""Engines that stop at a named point until the test lets them go on: the real engine behind a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from profile_export.application.ports import EngineAttempt
from profile_export.domain.export.plan import (
    EngineProgress,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
)
from profile_export.engines.duckdb.engine import DuckDbEngine


class Gate:
    """A point where an attempt waits. `reached` is set when one arrives, `passed` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.passed = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.passed.wait()


class GatedEngine:
    """The real engine; `before_run` and `after_run` are awaited around every range."""

    name = "duckdb"

    def __init__(self, engine: DuckDbEngine) -> None:
        self.engine = engine
        self.before_run: Callable[[], Awaitable[None]] = go_on
        self.after_run: Callable[[], Awaitable[None]] = go_on

    @property
    def values_per_range(self) -> int:
        return self.engine.values_per_range

    @asynccontextmanager
    async def attempt(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        on_progress: Callable[[EngineProgress], None],
        segment_folders: Sequence[Path] = (),
    ) -> AsyncIterator[EngineAttempt]:
        async with self.engine.attempt(plan, lake_root, folder, on_progress, segment_folders) as attempt:
            yield _GatedAttempt(self, attempt)


class _GatedAttempt:
    def __init__(self, gates: GatedEngine, attempt: EngineAttempt) -> None:
        self._gates, self._attempt = gates, attempt

    async def resolve(self) -> ResolutionFacts:
        return await self._attempt.resolve()

    async def identity_graph(self) -> Path | None:
        return await self._attempt.identity_graph()

    async def run(self, key_range: KeyRange) -> RangeResult:
        await self._gates.before_run()
        result = await self._attempt.run(key_range)
        await self._gates.after_run()
        return result


async def go_on() -> None:
    """Hold nothing up."""


def real_engine() -> DuckDbEngine:
    return DuckDbEngine(memory_limit_mb=None, threads=1)
