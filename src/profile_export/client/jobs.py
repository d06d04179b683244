"""Calls about export jobs."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.client.calls import PAGE, Calls
from profile_export.client.watch import watch
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2 as jobs
from profile_export.v1.merge_policy_pb2 import MergePolicyRef


@dataclass(frozen=True)
class Events:
    """Which experience events an export takes along. Empty fields: all. The times are ingest times."""

    fields: tuple[str, ...] = ()
    from_time: datetime | None = None
    to_time: datetime | None = None


class JobCalls(Calls):
    """Calls about export jobs."""

    async def create_job(
        self,
        dataset_id: str,
        *,
        fields: Sequence[str] = (),
        policy_id: str = "",
        events: Events | None = None,
        request_id: str = "",
    ) -> pb.CreateJobResponse:
        """Ask for an export into a union dataset; with the same request_id and content it is the same job."""
        spec = jobs.ExportSpec(fields=fields, destination=jobs.ExportDestination(dataset_id=dataset_id))
        if policy_id:
            spec.merge_policy.CopyFrom(MergePolicyRef(id=policy_id))
        if events is not None:
            spec.event_list.CopyFrom(_event_list(events))
        request = pb.CreateJobRequest(spec=spec, request_id=request_id or str(uuid.uuid4()))
        return await self._call(self._exports.CreateJob, request)

    async def get_job(self, job_id: int) -> jobs.ExportJob:
        """Look a job up."""
        return (await self._call(self._exports.GetJob, pb.GetJobRequest(job_id=job_id))).job

    async def list_jobs(self, limit: int = PAGE) -> list[jobs.ExportJob]:
        """List the newest jobs of the tenant, newest first."""
        listed: list[jobs.ExportJob] = []
        async for page in self._pages(self._exports.ListJobs, pb.ListJobsRequest(page_size=min(limit, PAGE))):
            listed.extend(page.jobs)
            if len(listed) >= limit:
                break
        return listed[:limit]

    async def cancel_job(self, job_id: int, reason: str = "") -> jobs.ExportJob:
        """Ask a job to stop; return it as it stands then."""
        request = pb.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self._call(self._exports.CancelJob, request)).job

    def watch_job(
        self, job_id: int, after_revision: int | None = None, *, progress_interval: timedelta | None = None
    ) -> AsyncGenerator[pb.WatchJobResponse]:
        """Follow a job until its final state has been given.

        A server that was lost is looked for again, and the watch goes on after the last revision received: no
        transition is missed, none comes twice.

        Args:
            job_id: The job.
            after_revision: The revision that is known already. None: the job as it is, then what follows.
            progress_interval: Shortest time between two progress messages. None: the server's choice.

        Returns:
            The messages as in the contract, heartbeats included.
        """
        request = pb.WatchJobRequest(job_id=job_id, after_revision=after_revision)
        if progress_interval is not None:
            request.min_progress_interval.FromTimedelta(progress_interval)
        return watch(self._exports, self._metadata, self._patience, request)


def _event_list(events: Events) -> jobs.EventList:
    event_list = jobs.EventList(fields=events.fields)
    if events.from_time:
        event_list.filter.from_ingest_time.CopyFrom(_stamp(events.from_time))
    if events.to_time:
        event_list.filter.to_ingest_time.CopyFrom(_stamp(events.to_time))
    return event_list


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
