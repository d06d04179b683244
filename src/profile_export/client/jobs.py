"""Calls about export jobs."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from profile_export.client.calls import PAGE, BackOff, Calls, ClientError, duration, messages, quoted, stamp
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2 as jobs
from profile_export.v1.merge_policy_pb2 import MergePolicyRef

FINAL_STATES = (jobs.JOB_STATE_SUCCEEDED, jobs.JOB_STATE_FAILED, jobs.JOB_STATE_CANCELLED)
"""A job in one of these does not change any more."""

_HEARTBEAT = Duration(seconds=15)
_SILENCE_SECONDS = 45.0
"""Three heartbeats."""
_END_SECONDS = 1.0
"""How long a server may take to end a call whose last message has come."""
# A call that arrives just as a server stops may be told CANCELLED, which nobody here has asked for.
_LOST = {"UNAVAILABLE", "CANCELLED"}

_Request = TypeVar("_Request", bound=Message)
_Message = TypeVar("_Message", bound=Message)


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


def export_spec(  # noqa: PLR0913 - one for each part of a request, all but the first by name
    dataset_id: str,
    *,
    fields: Sequence[str] = (),
    policy_id: str = "",
    profiles: Profiles | None = None,
    events: Events | None = None,
    batch_per_segment: bool = False,
    replace: bool = False,
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
        replace: Whether what counts of the dataset is replaced when the export succeeds; else it stays beside it.
        max_run_time: The longest time from creation to end, after which the job ends FAILED; None means no limit.
    """
    return jobs.ExportSpec(
        fields=fields,
        destination=jobs.ExportDestination(
            dataset_id=dataset_id,
            segment_per_batch=batch_per_segment,
            mode=jobs.WRITE_MODE_REPLACE if replace else jobs.WRITE_MODE_APPEND,
        ),
        merge_policy=MergePolicyRef(id=policy_id) if policy_id else None,
        filter=None if profiles is None else _filter(profiles),
        event_list=None if events is None else _event_list(events),
        max_run_time=duration(max_run_time),
    )


def _event_list(events: Events) -> jobs.EventList:
    window = jobs.EventFilter(from_ingest_time=stamp(events.from_time), to_ingest_time=stamp(events.to_time))
    return jobs.EventList(fields=events.fields, filter=window)


def _filter(profiles: Profiles) -> jobs.ExportFilter:
    qualified = jobs.TimeWindow(
        start_time=stamp(profiles.qualified_from), end_time=stamp(profiles.qualified_to)
    )
    return jobs.ExportFilter(
        segments=[
            jobs.SegmentFilter(segment_id=one.segment_id, namespace=one.namespace, statuses=one.statuses)
            for one in profiles.segments
        ],
        segment_qualification_time=qualified if qualified.ListFields() else None,  # refused if it is empty
        from_ingest_time=stamp(profiles.newer_than),
        empty_profiles=profiles.without_record,
    )


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

    async def list_jobs(
        self,
        limit: int = PAGE,
        *,
        states: Collection[jobs.JobState.ValueType] = (),
        dataset_id: str = "",
        created_from: datetime | None = None,
    ) -> list[jobs.ExportJob]:
        """List jobs of the tenant, newest first.

        Args:
            limit: How many at most.
            states: Only jobs in these states. None: all.
            dataset_id: Only jobs that write to this dataset. Empty: all.
            created_from: Only jobs created then or later. None: all.
        """
        others = [one for one in jobs.JobState.values() if one and states and one not in states]
        conditions = [f"state != {jobs.JobState.Name(one)}" for one in others]
        if dataset_id:
            conditions.append(f"dataset_id = {quoted(dataset_id)}")
        if created_from:
            conditions.append(f"create_time >= {quoted(created_from.isoformat())}")
        request = pb.ListJobsRequest(filter=" AND ".join(conditions))
        return await self._list(self._exports.ListJobs, request, lambda page: page.jobs, limit)

    async def cancel_job(self, job_id: int, reason: str = "") -> jobs.ExportJob:
        """Ask a job to stop; return it as it stands then."""
        request = pb.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self._call(self._exports.CancelJob, request)).job

    async def watch_job(
        self, job_id: int, after_revision: int | None = None, *, progress_interval: timedelta | None = None
    ) -> AsyncGenerator[pb.WatchJobResponse]:
        """Follow a job until its final state has been given.

        Where the server is lost, stops, or ends the connection, the watch goes on after the last revision received as
        soon as one answers: no transition is missed, none comes twice. Progress is the latest, some may be skipped.

        Args:
            job_id: The job.
            after_revision: The revision that is known already. None: the job as it is, then what follows.
            progress_interval: Shortest time between two progress messages. None: the server's choice.

        Yields:
            The messages as in the contract that have news, so no heartbeats. Errors are raised as ClientError; a server
            that stays away for longer than the client's patience is one.
        """
        request = pb.WatchJobRequest(
            job_id=job_id,
            after_revision=after_revision,
            heartbeat_interval=_HEARTBEAT,
            min_progress_interval=duration(progress_interval),
        )
        told = jobs.JobProgress()
        async with aclosing(self._resuming(self._exports.WatchJob, request)) as received:
            async for message in received:
                # A call that goes on begins after `after_revision`, but with the progress that was told already.
                request.after_revision = message.revision
                if message.HasField("progress"):
                    if message.progress == told:
                        continue
                    told = message.progress
                if message.transitions or message.HasField("job") or message.HasField("progress"):
                    yield message
                if message.HasField("job") and message.job.state in FINAL_STATES:
                    # What the call still has to say is that it is over; if it breaks off instead, nothing is missing.
                    with suppress(ClientError, TimeoutError):
                        async with asyncio.timeout(_END_SECONDS):
                            await anext(received, None)
                    return

    async def watch_jobs(
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

        Yields:
            The messages as in the contract that have news, so no heartbeats.
        """
        request = pb.WatchJobsRequest(
            states=states,
            dataset_id=dataset_id,
            from_create_time=stamp(created_from),
            after_revision=after_revision,
            heartbeat_interval=_HEARTBEAT,
            min_progress_interval=duration(progress_interval),
        )
        listed: dict[int, int] = {}
        async with aclosing(self._resuming(self._exports.WatchJobs, request)) as received:
            async for message in received:
                complete = message.list_complete or request.HasField("after_revision")
                if not complete or message.list_complete:
                    # A list that broke off begins anew.
                    new = [change for change in message.changes if not _known(change, listed)]
                    del message.changes[:]
                    message.changes.extend(new)
                if complete:
                    request.after_revision = message.revision
                    listed.clear()
                if message.changes or message.list_complete:
                    yield message

    async def _resuming(
        self, method: "grpc.aio.UnaryStreamMultiCallable[_Request, _Message]", request: _Request
    ) -> AsyncGenerator[_Message]:
        """Yield the messages of a call and, where it breaks off, of the next one, until one comes to its end."""
        back_off = BackOff(self._patience)
        while True:
            call = method(request, metadata=self._metadata)
            try:
                async for message in messages(call, _SILENCE_SECONDS):
                    back_off.heard()
                    yield message
                return
            except ClientError as error:
                if error.code not in _LOST:
                    raise
                await back_off.wait(error)
            finally:
                call.cancel()


def _known(change: pb.JobChange, listed: dict[int, int]) -> bool:
    """Whether an entry of the list has been told already; note it if not."""
    if not change.HasField("job"):
        return False
    known = listed.get(change.job_id) == change.job.revision
    listed[change.job_id] = change.job.revision
    return known
