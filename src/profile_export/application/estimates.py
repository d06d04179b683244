"""Estimates: a job's plan carried out on as many profiles as one range holds, in a folder that goes at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from profile_export.application.ports import Engine, Lake
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import ExhaustedError, FailedPreconditionError, UnavailableError
from profile_export.domain.export.plan import (
    ESTIMATES,
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    Estimate,
    ExportCounts,
    ExportPlan,
    KeyRange,
    estimate,
    notes_of,
    plan_export,
    sample_of,
    takes_long,
)
from profile_export.domain.export.request import BoundRequest
from profile_export.lake.rows import first_rows
from profile_export.processes.turns import FairTurns, compute_if
from profile_export.store.files.snapshots import Snapshots

MOST_SECONDS = 600.0
"""How long one estimate may take by the clock, from its turn on."""
_MOST_AT_ONCE = 2
"""As few as can be, for each takes as much memory as a job: of two places, one stays free for another tenant."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """What a job would do, sentences worth knowing about it, and some rows as it would write them."""

    estimate: Estimate
    notes: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]


class Estimates:
    """Estimates jobs, one at a time of a tenant, and for the tenants by turns."""

    def __init__(
        self, snapshots: Snapshots, engines: Mapping[str, Engine], lake: Lake, new_id: Callable[[], str]
    ) -> None:
        self._snapshots, self._engines, self._lake, self._new_id = snapshots, engines, lake, new_id
        self._turns = FairTurns(_MOST_AT_ONCE)

    async def estimate(self, tenant: Tenant, bound: BoundRequest, sample_rows: int) -> Estimated:
        """Say what a job would do that started now. Nothing of it stays.

        Raises:
            UnavailableError: The engine broke; trying again may help.
            FailedPreconditionError: The engine cannot carry out the plan, as it could not for a job.
            ExhaustedError: It takes too long.
        """
        request, engine = bound.request, self._engines[bound.engine]
        batches = len(request.segments) if request.segment_per_batch else 0
        of_segments = tuple(str(position) for position in range(batches))
        snapshot = await self._snapshots.take(tenant)
        plan = await compute_if(
            takes_long(snapshot, request.fields),
            plan_export,
            bound,
            snapshot,
            "" if batches else "estimate",
            of_segments,
            engine.values_per_range,
        )
        folder = f"{ESTIMATES}/{self._new_id()}"
        async with self._turns.taken(tenant):
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    return await self._counted(engine, plan, self._lake.staging(folder), sample_rows)
            except TimeoutError:
                raise _too_expensive() from None
            except EngineDiedError as error:
                raise UnavailableError(
                    "ESTIMATE_FAILED", str(error), retry_after=timedelta(seconds=1)
                ) from error
            except EngineFailedError as error:
                raise FailedPreconditionError(error.code, str(error)) from error
            finally:
                await asyncio.to_thread(self._lake.remove, folder)

    async def _counted(self, engine: Engine, plan: ExportPlan, folder: Path, sample_rows: int) -> Estimated:
        sample = sample_of(plan)
        of_segments = {batch_id: folder / batch_id for batch_id in plan.segment_batches}
        async with (
            self._lake.readable(plan.paths),
            engine.attempt(plan, self._lake.root, folder, _ignore, tuple(of_segments.values())) as attempt,
        ):
            await attempt.resolve()
            result = await attempt.run(sample)
        paths = [of_segments.get(file.batch_id, folder) / file.name for file in result.files]
        rows = await asyncio.to_thread(lambda: list(islice(first_rows(paths), sample_rows)))
        return Estimated(estimate(plan, sample, result), _notes(plan, sample, result.counts), rows)


def _notes(plan: ExportPlan, sample: KeyRange, counts: ExportCounts) -> tuple[str, ...]:
    """Only who has looked at every profile knows that nobody is in a segment."""
    return notes_of(plan, counts) if sample.share == 1 else plan.notes


def _too_expensive() -> ExhaustedError:
    return ExhaustedError(
        "REQUEST_TOO_EXPENSIVE",
        f"The estimate takes more than {MOST_SECONDS:g} s. Ask for fewer fields, or run the job.",
        metadata={"limit": f"{MOST_SECONDS:g}s"},
    )


def _ignore(_progress: EngineProgress) -> None:
    pass
