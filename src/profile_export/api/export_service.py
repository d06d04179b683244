"""ExportService: jobs and their watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import grpc.aio

from profile_export.api import convert_estimates, convert_jobs
from profile_export.api.estimates import Estimates
from profile_export.api.pages import Pages, fitting
from profile_export.api.suggestions import suggesting
from profile_export.api.tenancy import current_tenant
from profile_export.api.watch import WatchOptions
from profile_export.api.watch_jobs import FeedOptions
from profile_export.api.watches import Watches
from profile_export.domain.catalog import DatasetKind
from profile_export.domain.request import BoundRequest, ExportRequest, bind, without_unknown_fields
from profile_export.domain.schema import ObjectType
from profile_export.domain.width import WIDE, is_wide
from profile_export.processes.computing import compute, compute_if
from profile_export.store.catalog import Catalog
from profile_export.store.jobs import Jobs, NewJob
from profile_export.store.policies import Policies
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1.export_service_pb2_grpc import ExportServiceServicer

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ExportService(ExportServiceServicer):
    """Serves jobs from the store."""

    def __init__(
        self,
        catalog: Catalog,
        policies: Policies,
        jobs: Jobs,
        watches: Watches,
        estimates: Estimates,
        pages: Pages,
        new_id: Callable[[], str],
    ) -> None:
        self._estimates = estimates
        self._pages = pages
        self._catalog = catalog
        self._policies = policies
        self._jobs = jobs
        self._watches = watches
        self._new_id = new_id

    async def CreateJob(self, request: pb.CreateJobRequest, context: _Context) -> pb.CreateJobResponse:
        tenant = current_tenant()
        asked = convert_jobs.export_request(request.spec)
        # Looked for first: what it names may be gone by now.
        before = await self._jobs.made_by(tenant, request.request_id, asked)
        if before:
            return pb.CreateJobResponse(job=convert_jobs.export_job(before), replayed=True)
        batches = len(asked.segments) if asked.segment_per_batch else 1
        folders = {self._new_id(): f"{asked.destination_id}/{self._new_id()}" for _ in range(batches)}
        bound = await self._bound(asked, await self._catalog.union_fields(tenant))
        view, replayed = await self._jobs.create(tenant, NewJob(bound, request.request_id, folders))
        return pb.CreateJobResponse(job=convert_jobs.export_job(view), replayed=replayed)

    async def EstimateJob(self, request: pb.EstimateJobRequest, context: _Context) -> pb.EstimateJobResponse:
        rows = convert_estimates.sample_rows(request)
        asked = convert_jobs.export_request(request.spec)
        tenant = current_tenant()
        unions = await self._catalog.union_fields(tenant)
        records, events = unions[DatasetKind.RECORD], unions[DatasetKind.EVENT]
        known, unknown = await compute_if(
            _takes_long(asked, unions), without_unknown_fields, asked, records, events
        )
        bound = await self._bound(known, unions)
        found = await self._estimates.estimate(tenant, bound, rows)
        return await compute(convert_estimates.estimate_job, replace(bound, request=asked), found, unknown)

    async def _bound(self, asked: ExportRequest, unions: Mapping[DatasetKind, ObjectType]) -> BoundRequest:
        tenant = current_tenant()
        destination = await self._catalog.get_dataset(tenant, asked.destination_id)
        policy = await self._policies.find_policy(tenant, asked.policy_id, asked.policy_version)
        records, events = unions[DatasetKind.RECORD], unions[DatasetKind.EVENT]
        return await compute_if(
            _takes_long(asked, unions), suggesting(bind), asked, destination, policy, records, events
        )

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        view = await self._jobs.get(current_tenant(), request.job_id)
        return pb.GetJobResponse(job=convert_jobs.export_job(view))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        page = await self._jobs.list(current_tenant(), await self._pages.of_all(request))
        jobs, token = fitting(page, convert_jobs.export_job)
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: _Context) -> pb.CancelJobResponse:
        view = await self._jobs.cancel(current_tenant(), request.job_id, context.peer(), request.reason)
        return pb.CancelJobResponse(job=convert_jobs.export_job(view))

    # Streams are written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def WatchJob(self, request: pb.WatchJobRequest, context: _Context) -> None:  # type: ignore[override]  # as said
        await self._watches.of_job.serve(current_tenant(), WatchOptions.of(request), context.write)

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: _Context) -> None:  # type: ignore[override]  # as above
        tenant, options = current_tenant(), FeedOptions.of(request)
        if request.dataset_id:
            await self._catalog.get_dataset(tenant, request.dataset_id)
        await self._watches.of_jobs.serve(tenant, options, context.write)


def _takes_long(asked: ExportRequest, unions: Mapping[DatasetKind, ObjectType]) -> bool:
    paths = len(asked.fields) + (len(asked.event_list.fields) if asked.event_list else 0)
    return paths > WIDE or is_wide(unions.values())
