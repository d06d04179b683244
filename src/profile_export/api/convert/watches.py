"""Requests of watches as options, and the changes that watches tell as serialised messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from profile_export.api.convert import jobs as convert_jobs
from profile_export.api.convert.values import instant, timestamp
from profile_export.application.watch.job_feed import FeedEncoder, FeedOptions
from profile_export.application.watch.job_log import JobEncoder, WatchOptions
from profile_export.application.watch.watchers import Intervals
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.job import JobFilter, JobView, Progress, Transition
from profile_export.v1 import export_service_pb2 as pb

_LONGEST_SECONDS = 60.0


def watch_options(request: pb.WatchJobRequest) -> WatchOptions:
    """Read and check what a watcher of one job asks for.

    Raises:
        InvalidArgumentError: The revision is negative, or an interval out of bounds.
    """
    return WatchOptions(request.job_id, _after_revision(request), _intervals(request))


def feed_options(request: pb.WatchJobsRequest) -> FeedOptions:
    """Read and check what a watcher of all jobs asks for.

    Raises:
        InvalidArgumentError: A state is none, the revision is negative, or an interval out of bounds.
    """
    wanted = JobFilter(
        convert_jobs.job_states(request.states, "states"),
        request.dataset_id,
        instant(request, "from_create_time"),
    )
    return FeedOptions(wanted, _after_revision(request), _intervals(request))


def _after_revision(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> int | None:
    """Read from where a watch goes on; None: it begins with what is there."""
    after = request.after_revision if request.HasField("after_revision") else None
    if after is not None and after < 0:
        raise InvalidArgumentError.of_field("after_revision", "must not be negative.")
    return after


def _intervals(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> Intervals:
    """Read how often a watcher wants to hear something; `Intervals` has the defaults."""
    intervals = Intervals()
    heartbeat, progress = intervals.heartbeat, intervals.progress
    if request.HasField("heartbeat_interval"):
        heartbeat = convert_jobs.seconds_between(
            request.heartbeat_interval, "heartbeat_interval", 1.0, _LONGEST_SECONDS
        )
    if request.HasField("min_progress_interval"):
        progress = convert_jobs.seconds_between(
            request.min_progress_interval, "min_progress_interval", 0.0, _LONGEST_SECONDS
        )
    return Intervals(heartbeat, progress)


class GrpcJobEncoder(JobEncoder):
    """Serialises `WatchJobResponse`.

    A part is a message with one transition. Joined, they are one message: its fields may come one by one, in any order.
    """

    def move(self, view: JobView, move: Transition) -> bytes:
        transition = convert_jobs.job_transition(view, move)
        return pb.WatchJobResponse(transitions=[transition]).SerializeToString()

    def moves(self, parts: Sequence[bytes], view: JobView, now: datetime) -> bytes:
        end = pb.WatchJobResponse(job=convert_jobs.export_job(view) if view.job.is_final else None)
        return b"".join((*parts, _finished(end, view, now)))

    def snapshot(self, view: JobView, now: datetime) -> bytes:
        return _finished(pb.WatchJobResponse(job=convert_jobs.export_job(view)), view, now)

    def progress(self, view: JobView, now: datetime) -> bytes:
        progress = convert_jobs.progress(view.progress) if view.progress else None
        return _finished(pb.WatchJobResponse(progress=progress), view, now)

    def heartbeat(self, view: JobView, now: datetime) -> bytes:
        return _finished(pb.WatchJobResponse(), view, now)


def _finished(message: pb.WatchJobResponse, view: JobView, now: datetime) -> bytes:
    message.revision = view.job.revision
    message.server_time.FromDatetime(now)
    return message.SerializeToString()


class GrpcFeedEncoder(FeedEncoder):
    """Serialises `WatchJobsResponse`.

    A part is a message with one change. Joined, they are one message: its fields may come one by one, in any order.
    """

    def listed(self, view: JobView) -> bytes:
        return _part(pb.JobChange(job_id=view.job.id, job=convert_jobs.export_job(view)))

    def moved(self, revision: int, view: JobView, move: Transition, told: JobView | None) -> bytes:
        change = pb.JobChange(
            job_id=view.job.id,
            revision=revision,
            transition=convert_jobs.job_transition(view, move),
            job=convert_jobs.export_job(told) if told else None,
        )
        return _part(change)

    def removed(self, job_id: int, revision: int = 0) -> bytes:
        return _part(pb.JobChange(job_id=job_id, revision=revision, removed=True))

    def progress(self, job_id: int, progress: Progress) -> bytes:
        return _part(pb.JobChange(job_id=job_id, progress=convert_jobs.progress(progress)))

    def message(
        self, parts: Sequence[bytes], revision: int, now: datetime, *, list_complete: bool = False
    ) -> bytes:
        rest = pb.WatchJobsResponse(
            revision=revision, list_complete=list_complete, server_time=timestamp(now)
        )
        return b"".join((*parts, rest.SerializeToString()))


def _part(change: pb.JobChange) -> bytes:
    return pb.WatchJobsResponse(changes=[change]).SerializeToString()
