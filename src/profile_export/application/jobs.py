"""Export jobs: asked for, bound to what exists, followed and cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from profile_export.application.estimates import Estimated, Estimates
from profile_export.application.profiles import suggesting
from profile_export.domain.catalog.datasets import DatasetKind, Tenant
from profile_export.domain.export.request import BoundRequest, ExportRequest, bind, without_unknown_fields
from profile_export.domain.export.selection import UnknownPath
from profile_export.domain.job import JobView
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.schemas.types import WIDE, ObjectType, is_wide
from profile_export.processes.turns import compute_if
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.policies import Policies
from profile_export.store.jobs.jobs import Jobs, NewJob


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
