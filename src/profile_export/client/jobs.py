"""Calls about export jobs."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from profile_export.client.calls import PAGE, Calls, stamp
from profile_export.client.watch import watch_job, watch_jobs
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2 as jobs
from profile_export.v1.merge_policy_pb2 import MergePolicyRef


@dataclass(frozen=True)
class Events:
    """Which experience events an export takes along. Empty fields: all. The times are ingest times."""

    fields: tuple[str, ...] = ()
    from_time: datetime | None = None
    to_time: datetime | None = None


@dataclass(frozen=True)
class Segment:
    """A segment, and the memberships by which a profile is in it. Empty: namespace `ups`, realized and existing."""

    segment_id: str
    namespace: str = ""
    statuses: tuple[jobs.MembershipStatus.ValueType, ...] = ()


@dataclass(frozen=True)
class Profiles:
    """Which profiles an export takes: those in one of the segments, with something newer; by default all with a record.

    `qualified_from` and `qualified_to` say when their membership last qualified, `newer_than` is an ingest time;
    `without_record` also takes those that have events only.
    """

    segments: tuple[Segment, ...] = ()
    qualified_from: datetime | None = None
    qualified_to: datetime | None = None
    newer_than: datetime | None = None
    without_record: bool = False


def export_spec(
    dataset_id: str,
    *,
    fields: Sequence[str] = (),
    policy_id: str = "",
    profiles: Profiles | None = None,
    events: Events | None = None,
    batch_per_segment: bool = False,
    max_run_time: timedelta | None = None,
) -> jobs.ExportSpec:
    """Say what to export into a union dataset, for `create_job` and `estimate_job`.

    Args:
        dataset_id: The union dataset.
        fields: Field paths; none means all.
        policy_id: A merge policy; empty means the default one.
        profiles: Which profiles; None means all that have a record.
        events: Which events to take along; None means none.
        batch_per_segment: Whether each segment gets a batch of its own.
        max_run_time: The longest time from creation to end, after which the job ends FAILED; None means no limit.
    """
    to = jobs.ExportDestination(dataset_id=dataset_id, segment_per_batch=batch_per_segment)
    spec = jobs.ExportSpec(fields=fields, destination=to)
    if policy_id:
        spec.merge_policy.CopyFrom(MergePolicyRef(id=policy_id))
    if profiles is not None:
        spec.filter.CopyFrom(_filter(profiles))
    if events is not None:
        spec.event_list.CopyFrom(_event_list(events))
    if max_run_time is not None:
        spec.max_run_time.FromTimedelta(max_run_time)
    return spec


class JobCalls(Calls):
    """Calls about export jobs."""

    async def create_job(self, spec: jobs.ExportSpec, request_id: str = "") -> pb.CreateJobResponse:
        """Ask for an export; with the same request_id and content it is the same job."""
        request = pb.CreateJobRequest(spec=spec, request_id=request_id or str(uuid.uuid4()))
        return await self._call(self._exports.CreateJob, request)

    async def estimate_job(self, spec: jobs.ExportSpec, sample_rows: int = 0) -> pb.EstimateJobResponse:
        """Ask what a job would do. This waits as long as it takes: a large source needs a look at all its links."""
        request = pb.EstimateJobRequest(spec=spec, sample_rows=sample_rows)
        return await self._call(self._exports.EstimateJob, request, timeout=None)

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

        Where the server is lost, stops, or ends the connection, the watch goes on after the last revision received as
        soon as one answers: no transition is missed, none comes twice. Progress is the latest, some may be skipped.

        Args:
            job_id: The job.
            after_revision: The revision that is known already. None: the job as it is, then what follows.
            progress_interval: Shortest time between two progress messages. None: the server's choice.

        Returns:
            The messages as in the contract that have news, so no heartbeats. Errors are raised as ClientError; a server
            that stays away for longer than the client's patience is one.
        """
        request = pb.WatchJobRequest(job_id=job_id, after_revision=after_revision)
        if progress_interval is not None:
            request.min_progress_interval.FromTimedelta(progress_interval)
        return watch_job(
            lambda asked: self._exports.WatchJob(asked, metadata=self._metadata), self._patience, request
        )

    def watch_jobs(
        self,
        *,
        states: Sequence[jobs.JobState.ValueType] = (),
        dataset_id: str = "",
        created_from: datetime | None = None,
        after_revision: int | None = None,
        progress_interval: timedelta | None = None,
    ) -> AsyncGenerator[pb.WatchJobsResponse]:
        """Follow the jobs of the tenant: first those there are, then every change. It does not end by itself.

        It goes on over lost servers as `watch_job` does; a list that broke off begins anew, without what was told.

        Args:
            states: Only jobs in these states, or that leave or enter one. None: all.
            dataset_id: Only jobs that write to this dataset. Empty: all.
            created_from: Only jobs created then or later. None: all.
            after_revision: The revision of a message received before, with or after `list_complete`: no list then.
            progress_interval: Shortest time between two progresses of one job. None: the server's choice.

        Returns:
            The messages as in the contract that have news, so no heartbeats.
        """
        request = pb.WatchJobsRequest(
            states=states,
            dataset_id=dataset_id,
            from_create_time=stamp(created_from) if created_from else None,
            after_revision=after_revision,
        )
        if progress_interval is not None:
            request.min_progress_interval.FromTimedelta(progress_interval)
        return watch_jobs(
            lambda asked: self._exports.WatchJobs(asked, metadata=self._metadata), self._patience, request
        )


def _event_list(events: Events) -> jobs.EventList:
    event_list = jobs.EventList(fields=events.fields)
    if events.from_time:
        event_list.filter.from_ingest_time.CopyFrom(stamp(events.from_time))
    if events.to_time:
        event_list.filter.to_ingest_time.CopyFrom(stamp(events.to_time))
    return event_list


def _filter(profiles: Profiles) -> jobs.ExportFilter:
    segments = [
        jobs.SegmentFilter(segment_id=one.segment_id, namespace=one.namespace, statuses=one.statuses)
        for one in profiles.segments
    ]
    kept = jobs.ExportFilter(segments=segments, empty_profiles=profiles.without_record)
    if profiles.qualified_from:
        kept.segment_qualification_time.start_time.CopyFrom(stamp(profiles.qualified_from))
    if profiles.qualified_to:
        kept.segment_qualification_time.end_time.CopyFrom(stamp(profiles.qualified_to))
    if profiles.newer_than:
        kept.from_ingest_time.CopyFrom(stamp(profiles.newer_than))
    return kept
