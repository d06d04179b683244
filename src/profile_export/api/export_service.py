"""ExportService: jobs and their watch."""

from __future__ import annotations

from functools import partial

from profile_export.api.convert import jobs as convert
from profile_export.api.convert.lists import Pages, fitting
from profile_export.api.interceptors import Context, current_tenant, write_last
from profile_export.application.doors import compute
from profile_export.application.jobs import JobUseCases
from profile_export.application.watch.job_feed import FeedWatches
from profile_export.application.watch.job_log import JobWatches
from profile_export.domain.job import JOB_LIST
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1.export_service_pb2_grpc import ExportServiceServicer


class ExportService(ExportServiceServicer):
    """Converts calls about jobs and their watches."""

    def __init__(self, jobs: JobUseCases, watches: JobWatches, feeds: FeedWatches, pages: Pages) -> None:
        self._jobs, self._watches, self._feeds, self._pages = jobs, watches, feeds, pages

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        asked = convert.export_request(request.spec)
        view, replayed = await self._jobs.create(current_tenant(), asked, request.request_id)
        return pb.CreateJobResponse(job=convert.export_job(view), replayed=replayed)

    async def EstimateJob(self, request: pb.EstimateJobRequest, context: Context) -> pb.EstimateJobResponse:
        rows = convert.sample_rows(request)
        asked = convert.export_request(request.spec)
        found = await self._jobs.estimate(current_tenant(), asked, rows)
        return await compute(convert.estimate_job, *found)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        view = await self._jobs.get(current_tenant(), request.job_id)
        return pb.GetJobResponse(job=convert.export_job(view))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        page = await self._jobs.list(current_tenant(), await self._pages.among(JOB_LIST, request))
        jobs, token = fitting(page, convert.export_job)
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        view = await self._jobs.cancel(current_tenant(), request.job_id, context.peer(), request.reason)
        return pb.CancelJobResponse(job=convert.export_job(view))

    # Streams are written to the context, which grpc.aio takes as well as a generator, and which waits for the reader.
    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> None:  # type: ignore[override]  # as said
        options = convert.watch_options(request)
        await self._watches.serve(current_tenant(), options, context.write, partial(write_last, context))

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: Context) -> None:  # type: ignore[override]  # as above
        tenant, options = current_tenant(), convert.feed_options(request)
        if request.dataset_id:
            await self._jobs.check_destination(tenant, request.dataset_id)
        await self._feeds.serve(tenant, options, context.write)
