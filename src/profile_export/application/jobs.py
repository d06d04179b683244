"""Export jobs: estimated, asked for, bound to what exists, followed and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from profile_export.application.ports import Engine, Lake, passing_attempt, telling_engine_errors
from profile_export.application.suggestions import suggesting
from profile_export.domain.catalog.datasets import DatasetKind, Tenant
from profile_export.domain.errors import ExhaustedError
from profile_export.domain.export.notes import notes_before, notes_of
from profile_export.domain.export.plan import (
    ESTIMATES,
    Estimate,
    ExportCounts,
    ExportPlan,
    IdentityFindings,
    KeyRange,
    estimate,
    plan_export,
    sample_of,
    takes_long,
)
from profile_export.domain.export.request import BoundRequest, ExportRequest, bind, without_unknown_fields
from profile_export.domain.export.selection import UnknownPath
from profile_export.domain.job import JobView
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.schemas.types import WIDE, ObjectType, is_wide
from profile_export.lake.rows import first_rows
from profile_export.processes.turns import FairTurns, compute, compute_if
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.policies import Policies
from profile_export.store.files.snapshots import Snapshots
from profile_export.store.jobs.jobs import Jobs, NewJob

MOST_SECONDS = 600.0
"""How long one estimate may take by the clock, from its turn on."""
_MOST_AT_ONCE = 2
"""How many estimates run at once: each takes as much memory as a job. Of two places, one stays free for others."""


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
                    with telling_engine_errors("ESTIMATE_FAILED"):
                        return await self._counted(engine, plan, folder, sample_rows)
            except TimeoutError:
                raise _too_expensive() from None

    async def _counted(self, engine: Engine, plan: ExportPlan, folder: str, sample_rows: int) -> Estimated:
        sample, place = sample_of(plan), self._lake.staging(folder)
        of_segments = {batch_id: place / batch_id for batch_id in plan.segment_batches}
        async with passing_attempt(engine, self._lake, plan, folder, tuple(of_segments.values())) as attempt:
            facts = await attempt.resolve()
            result = await attempt.run(sample)
            paths = [of_segments.get(file.batch_id, place) / file.name for file in result.files]
            rows = await compute(lambda: list(islice(first_rows(paths), sample_rows))) if sample_rows else []
        return Estimated(
            estimate(plan, sample, result), _notes(plan, sample, facts.findings, result.counts), rows
        )


class JobUseCases:
    """What callers do with export jobs. Raises what the store's methods of the same names raise."""

    def __init__(
        self,
        catalog: Catalog,
        policies: Policies,
        jobs: Jobs,
        estimates: Estimates,
        engines: Sequence[str],
        new_id: Callable[[], str],
    ) -> None:
        self._catalog, self._policies, self._jobs = catalog, policies, jobs
        self._estimates, self._engines, self._new_id = estimates, engines, new_id

    async def create(self, tenant: Tenant, asked: ExportRequest, request_id: str) -> tuple[JobView, bool]:
        """Make a job; True says that the request with this id had made it before.

        Raises:
            NotFoundError: The destination or the policy is not known.
            InvalidArgumentError: The request does not fit what exists.
        """
        # Looked for first: what the request names may be gone by now.
        before = await self._jobs.made_by(tenant, request_id, asked)
        if before:
            return before, True
        batches = len(asked.segments) if asked.segment_per_batch else 1
        folders = {self._new_id(): f"{asked.destination_id}/{self._new_id()}" for _ in range(batches)}
        bound = await self._bound(tenant, asked, await self._catalog.union_fields(tenant))
        return await self._jobs.create(tenant, NewJob(bound, request_id, folders))

    async def estimate(
        self, tenant: Tenant, asked: ExportRequest, sample_rows: int
    ) -> tuple[BoundRequest, Estimated, Sequence[UnknownPath]]:
        """Say what a job would do that started now, without the fields that nobody knows, which are told.

        Raises:
            DomainError: As `create` and `Estimates.estimate`.
        """
        unions = await self._catalog.union_fields(tenant)
        records, events = unions[DatasetKind.RECORD], unions[DatasetKind.EVENT]
        known, unknown = await compute_if(
            _takes_long(asked, unions), without_unknown_fields, asked, records, events
        )
        bound = await self._bound(tenant, known, unions)
        return (
            replace(bound, request=asked),
            await self._estimates.estimate(tenant, bound, sample_rows),
            unknown,
        )

    async def get(self, tenant: Tenant, job_id: int) -> JobView:
        """Return a job."""
        return await self._jobs.get(tenant, job_id)

    async def list(self, tenant: Tenant, request: PageRequest) -> Page[JobView]:
        """Return a page of the tenant's jobs."""
        return await self._jobs.list(tenant, request)

    async def cancel(self, tenant: Tenant, job_id: int, requested_by: str, reason: str) -> JobView:
        """End a job, at once or as soon as its worker lets go."""
        return await self._jobs.cancel(tenant, job_id, requested_by, reason)

    async def check_destination(self, tenant: Tenant, dataset_id: str) -> None:
        """Refuse a dataset that is not there."""
        await self._catalog.get_dataset(tenant, dataset_id)

    async def _bound(
        self, tenant: Tenant, asked: ExportRequest, unions: Mapping[DatasetKind, ObjectType]
    ) -> BoundRequest:
        destination = await self._catalog.get_dataset(tenant, asked.destination_id)
        policy = await self._policies.find_policy(tenant, asked.policy_id, asked.policy_version)
        records, events = unions[DatasetKind.RECORD], unions[DatasetKind.EVENT]
        return await compute_if(
            _takes_long(asked, unions),
            suggesting(bind),
            asked,
            destination,
            policy,
            records,
            events,
            self._engines,
        )


def _takes_long(asked: ExportRequest, unions: Mapping[DatasetKind, ObjectType]) -> bool:
    paths = len(asked.fields) + (len(asked.event_list.fields) if asked.event_list else 0)
    return paths > WIDE or is_wide(unions.values())


def _notes(
    plan: ExportPlan, sample: KeyRange, findings: IdentityFindings, counts: ExportCounts
) -> tuple[str, ...]:
    """Return the notes of a plan. Those about counts are left out unless the sample holds every profile."""
    return notes_of(plan, findings, counts) if sample.share == 1 else notes_before(plan, findings)


def _too_expensive() -> ExhaustedError:
    return ExhaustedError(
        "REQUEST_TOO_EXPENSIVE",
        f"The estimate takes more than {MOST_SECONDS:g} s. Ask for fewer fields, or run the job.",
        metadata={"limit": f"{MOST_SECONDS:g}s"},
    )
