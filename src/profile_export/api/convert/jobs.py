"""Export requests, jobs, transitions, progress, estimates and watches as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from profile_export.api.convert.lists import rows_that_fit
from profile_export.api.convert.profiles import WIRE_GRAPHS, WIRE_MERGES
from profile_export.api.convert.values import (
    duration,
    given,
    instant,
    length_of_time,
    refuse_unbuilt,
    required,
    timestamp,
)
from profile_export.application.jobs import Estimated
from profile_export.application.suggestions import nearest_paths
from profile_export.application.watch.job_feed import FeedEncoder, FeedOptions
from profile_export.application.watch.job_log import JobEncoder, WatchOptions
from profile_export.application.watch.watchers import Intervals
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.plan import Figure
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest, WriteMode
from profile_export.domain.export.selection import (
    DEFAULT_NAMESPACE,
    MembershipStatus,
    SegmentFilter,
    UnknownPath,
)
from profile_export.domain.job import (
    Cancellation,
    JobFilter,
    JobMetrics,
    JobState,
    JobView,
    Phase,
    PhaseTime,
    Progress,
    Transition,
)
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2, merge_policy_pb2

_STATUSES = {
    job_pb2.MembershipStatus.Value(f"MEMBERSHIP_STATUS_{status.name}"): status for status in MembershipStatus
}
_MODES = {mode: job_pb2.WriteMode.Value(f"WRITE_MODE_{mode.name}") for mode in WriteMode}
_KNOWN_MODES = {
    job_pb2.WRITE_MODE_UNSPECIFIED: WriteMode.APPEND,
    **{wire: mode for mode, wire in _MODES.items()},
}
_ON_WIRE = {status: wire for wire, status in _STATUSES.items()}
_QUALIFIED = "spec.filter.segment_qualification_time"
_STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
_KNOWN_STATES = {wire: state for state, wire in _STATES.items()}
_LONGEST_SECONDS = 60.0
_MOST_SAMPLE_ROWS = 100
_PHASES = {phase: job_pb2.JobPhase.Value(f"JOB_PHASE_{phase.name}") for phase in Phase}


def export_request(spec: job_pb2.ExportSpec) -> ExportRequest:
    """Read and check what a caller asks of an export.

    Raises:
        InvalidArgumentError: A field is wrong.
        UnimplementedError: It asks for what is not built yet; the field is named.
    """
    refuse_unbuilt(spec, "evaluate_segments", prefix="spec.")
    qualified = spec.filter.segment_qualification_time
    if spec.filter.HasField("segment_qualification_time") and not qualified.ListFields():
        raise InvalidArgumentError.of_field(_QUALIFIED, "needs start_time or end_time.", "FIELD_REQUIRED")
    policy_id = spec.merge_policy.id
    if spec.HasField("merge_policy"):
        required(policy_id, "spec.merge_policy.id")
    return ExportRequest(
        destination_id=spec.destination.dataset_id,
        fields=tuple(spec.fields),
        policy_id=policy_id,
        policy_version=given(spec.merge_policy, "version"),
        event_list=_event_list(spec.event_list) if spec.HasField("event_list") else None,
        empty_profiles=spec.filter.empty_profiles,
        schema_name=spec.schema_name,
        engine=spec.engine,
        segments=tuple(_segment(one, index) for index, one in enumerate(spec.filter.segments)),
        qualified_from=instant(qualified, "start_time", f"{_QUALIFIED}."),
        qualified_to=instant(qualified, "end_time", f"{_QUALIFIED}."),
        from_ingest_time=instant(spec.filter, "from_ingest_time", "spec.filter."),
        segment_per_batch=spec.destination.segment_per_batch,
        max_run_time=length_of_time(spec, "max_run_time", "spec."),
        mode=_mode(spec.destination.mode),
    )


def _mode(wire: job_pb2.WriteMode.ValueType) -> WriteMode:
    if wire not in _KNOWN_MODES:
        raise InvalidArgumentError.of_field("spec.destination.mode", "must be APPEND or REPLACE.")
    return _KNOWN_MODES[wire]


def _segment(message: job_pb2.SegmentFilter, index: int) -> SegmentFilter:
    where = f"spec.filter.segments[{index}]"
    found = SegmentFilter(message.segment_id, message.namespace or DEFAULT_NAMESPACE)
    for position, status in enumerate(message.statuses):
        if status not in _STATUSES:
            raise InvalidArgumentError.of_field(
                f"{where}.statuses[{position}]", "must be REALIZED, EXISTING or EXITED."
            )
    if not message.statuses:
        return found
    return replace(found, statuses=tuple(dict.fromkeys(_STATUSES[status] for status in message.statuses)))


def _event_list(message: job_pb2.EventList) -> EventList:
    where = "spec.event_list.filter."
    return EventList(
        fields=tuple(message.fields),
        from_ingest_time=instant(message.filter, "from_ingest_time", where),
        to_ingest_time=instant(message.filter, "to_ingest_time", where),
    )


def export_spec(bound: BoundRequest) -> job_pb2.ExportSpec:
    """Write a request as resolved."""
    request = bound.resolved
    kept = _filter(request)
    return job_pb2.ExportSpec(
        fields=request.fields,
        merge_policy=merge_policy_pb2.MergePolicyRef(id=request.policy_id, version=request.policy_version),
        destination=job_pb2.ExportDestination(
            dataset_id=request.destination_id,
            segment_per_batch=request.segment_per_batch,
            mode=_MODES[request.mode],
        ),
        schema_name=request.schema_name,
        engine=request.engine,
        max_run_time=duration(request.max_run_time),
        filter=kept if kept.ListFields() else None,
        event_list=_written_events(request.event_list) if request.event_list else None,
    )


def _written_events(value: EventList) -> job_pb2.EventList:
    window = job_pb2.EventFilter(
        from_ingest_time=timestamp(value.from_ingest_time), to_ingest_time=timestamp(value.to_ingest_time)
    )
    return job_pb2.EventList(fields=value.fields, filter=window)


def _filter(request: ExportRequest) -> job_pb2.ExportFilter:
    qualified = job_pb2.TimeWindow(
        start_time=timestamp(request.qualified_from), end_time=timestamp(request.qualified_to)
    )
    return job_pb2.ExportFilter(
        segments=[segment_filter(one) for one in request.segments],
        segment_qualification_time=qualified if qualified.ListFields() else None,
        from_ingest_time=timestamp(request.from_ingest_time),
        empty_profiles=request.empty_profiles,
    )


def segment_filter(value: SegmentFilter) -> job_pb2.SegmentFilter:
    """Write a segment and the memberships that count."""
    statuses = [_ON_WIRE[status] for status in value.statuses]
    return job_pb2.SegmentFilter(segment_id=value.segment_id, namespace=value.namespace, statuses=statuses)


def export_job(view: JobView) -> job_pb2.ExportJob:
    """Write a job."""
    job = view.job
    return job_pb2.ExportJob(
        id=job.id,
        spec=export_spec(job.bound),
        state=_STATES[job.state],
        revision=job.revision,
        attempt=job.attempt,
        batch_id=job.batch_id,
        batches=[
            job_pb2.JobBatch(
                segment_id=one.segment_id,
                namespace=one.namespace,
                statuses=[_ON_WIRE[status] for status in one.statuses],
                batch_id=batch_id,
            )
            for one, batch_id in zip(job.bound.request.segments, job.segment_batches, strict=False)
        ],
        phases=[
            job_pb2.PhaseTime(
                phase=_PHASES[time.phase],
                attempt=time.attempt,
                start_time=timestamp(time.start_time),
                end_time=timestamp(time.end_time),
            )
            for time in view.phases
        ],
        metrics=job_metrics(job.metrics, view.phases, job.create_time, view.until),
        errors=[
            job_pb2.JobError(
                code=error.code,
                message=error.message,
                component=error.component,
                retryable=error.retryable,
                attempt=error.attempt,
            )
            for error in job.errors
        ],
        notes=job.notes,
        state_reason=job.state_reason,
        create_time=timestamp(job.create_time),
        update_time=timestamp(job.update_time),
        end_time=timestamp(job.end_time),
        not_before_time=timestamp(job.not_before),
        request_id=job.request_id,
        expire_time=timestamp(view.expire_time),
        merge_policy_name=job.bound.policy.name,
        identity_graph=WIRE_GRAPHS[job.bound.policy.graph],
        attribute_merge_type=WIRE_MERGES[job.bound.policy.attribute_merge],
        excluded_identity_count=len(job.bound.policy.excluded_identities),
        cancellation=_cancellation(job.cancellation) if job.cancellation else None,
        progress=job_progress(view.progress) if view.progress else None,
    )


def _cancellation(value: Cancellation) -> job_pb2.JobCancellation:
    return job_pb2.JobCancellation(
        requested_by=value.requested_by, request_time=timestamp(value.request_time), reason=value.reason
    )


def job_transition(view: JobView, transition: Transition) -> job_pb2.JobTransition:
    """Write one entry of a job's log, with the metrics as they were then."""
    return job_pb2.JobTransition(
        revision=transition.revision,
        time=timestamp(transition.time),
        attempt=transition.attempt,
        reason=transition.reason,
        metrics=job_metrics(transition.metrics, view.phases, view.job.create_time, transition.time),
        from_state=_STATES[transition.from_state] if transition.from_state else job_pb2.JOB_STATE_UNSPECIFIED,
        to_state=_STATES[transition.to_state],
    )


def job_progress(value: Progress) -> job_pb2.JobProgress:
    """Write how far an attempt is."""
    return job_pb2.JobProgress(
        phase=_PHASES[value.phase],
        attempt=value.attempt,
        done=value.done,
        estimated=value.estimated,
        unit="rows",
        rows_per_second=value.rows_per_second,
        eta=duration(value.rest),
    )


def job_metrics(
    metrics: JobMetrics, phases: Iterable[PhaseTime], create_time: datetime, until: datetime
) -> job_pb2.JobMetrics:
    """Write the counters of a job, and where its time went from its creation until a moment."""
    counts = metrics.counts
    return job_pb2.JobMetrics(
        total_time=duration(until - create_time),
        phases=_phase_metrics(metrics, phases, until),
        profiles_read=counts.profiles_read,
        fragments_read=counts.fragments_read,
        profiles_merged=counts.profiles_merged,
        profiles_exported=counts.profiles_exported,
        profiles_exported_by_namespace=counts.by_namespace or {},
        events_read=counts.events_read,
        events_exported=counts.events_exported,
        left_out=job_pb2.LeftOut(
            not_listed=counts.not_listed,
            too_many_identities=counts.too_many_identities,
            events_only=counts.events_only,
            not_newer=counts.not_newer,
            not_in_segments=counts.not_in_segments,
            too_many_identities_identities=counts.identities_left_out,
            too_many_identities_fragments=counts.fragments_left_out,
        ),
        rows_written=metrics.rows_written,
        bytes_written=metrics.bytes_written,
        files_written=metrics.files_written,
        peak_memory_bytes=metrics.peak_memory_bytes,
    )


def _phase_metrics(
    metrics: JobMetrics, phases: Iterable[PhaseTime], until: datetime
) -> list[job_pb2.PhaseMetrics]:
    """Add up the time of each phase over all attempts, up to a moment; together they are the whole time."""
    times: dict[Phase, timedelta] = {}
    for time in phases:
        if time.start_time <= until:
            passed = min(time.end_time or until, until) - time.start_time
            times[time.phase] = times.get(time.phase, timedelta()) + passed
    messages = []
    for phase, spent in times.items():
        message = job_pb2.PhaseMetrics(phase=_PHASES[phase], time=duration(spent))
        match phase:
            case Phase.PLAN:
                pinned = metrics.pinned
                message.rows, message.bytes, message.files = pinned.rows, pinned.bytes, pinned.files
            case Phase.RESOLVE:
                message.rows = metrics.resolved.rows_moved
                message.peak_memory_bytes = metrics.resolved.peak_memory_bytes
            case Phase.RUN | Phase.COMMIT:
                message.rows, message.bytes = metrics.rows_written, metrics.bytes_written
                message.files = metrics.files_written
        if phase is Phase.RUN:
            message.peak_memory_bytes = metrics.peak_memory_bytes
        messages.append(message)
    return messages


def job_states(values: Iterable[job_pb2.JobState.ValueType], field: str) -> frozenset[JobState]:
    """Read the states that are asked for.

    Raises:
        InvalidArgumentError: One is none that a job can be in.
    """
    for index, value in enumerate(values):
        if value not in _KNOWN_STATES:
            raise InvalidArgumentError.of_field(f"{field}[{index}]", "must be a state that a job can be in.")
    return frozenset(_KNOWN_STATES[value] for value in values)


def sample_rows(request: pb.EstimateJobRequest) -> int:
    """Read how many rows are wanted.

    Raises:
        InvalidArgumentError: The number is not between 0 and 100.
    """
    if not 0 <= request.sample_rows <= _MOST_SAMPLE_ROWS:
        raise InvalidArgumentError.of_field("sample_rows", f"must be between 0 and {_MOST_SAMPLE_ROWS}.")
    return request.sample_rows


def estimate_job(
    bound: BoundRequest, found: Estimated, unknown: Sequence[UnknownPath]
) -> pb.EstimateJobResponse:
    """Write what a job would do."""
    figures = found.estimate
    return pb.EstimateJobResponse(
        spec=export_spec(bound),
        profiles=_figure(figures.profiles),
        events=_figure(figures.events),
        rows=_figure(figures.rows),
        bytes=_figure(figures.bytes),
        files=_figure(figures.files),
        left_out=[
            pb.LeftOutFigure(reason=reason, profiles=_figure(figure))
            for reason, figure in figures.left_out.items()
        ],
        unknown_fields=[
            pb.UnknownField(path=one.path, nearest=nearest)
            for one, nearest in zip(unknown, nearest_paths(unknown), strict=True)
        ],
        sample_rows=rows_that_fit(found.rows),
        notes=found.notes,
    )


def _figure(value: Figure) -> pb.Figure:
    exactness = pb.EXACTNESS_EXACT if value.exact else pb.EXACTNESS_ESTIMATED
    return pb.Figure(value=value.value, exactness=exactness, at_least=value.at_least, at_most=value.at_most)


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
        job_states(request.states, "states"),
        request.dataset_id,
        instant(request, "from_create_time"),
    )
    return FeedOptions(wanted, _after_revision(request), _intervals(request))


def _after_revision(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> int | None:
    """Read the revision after which a watch goes on; None: it begins with the jobs as they are."""
    after: int | None = given(request, "after_revision")
    if after is not None and after < 0:
        raise InvalidArgumentError.of_field("after_revision", "must not be negative.")
    return after


def _intervals(request: pb.WatchJobRequest | pb.WatchJobsRequest) -> Intervals:
    """Read how often a watcher wants to hear something; `Intervals` has the defaults."""
    default = Intervals()
    return Intervals(
        _seconds(request, "heartbeat_interval", 1.0, default.heartbeat),
        _seconds(request, "min_progress_interval", 0.0, default.progress),
    )


def _seconds(
    request: pb.WatchJobRequest | pb.WatchJobsRequest, field: str, least: float, default: float
) -> float:
    """Read a Duration field of at most a minute."""
    asked = length_of_time(request, field)
    if asked is None:
        return default
    if not least <= asked.total_seconds() <= _LONGEST_SECONDS:
        raise InvalidArgumentError.of_field(
            field, f"must be between {least:g} and {_LONGEST_SECONDS:g} seconds."
        )
    return asked.total_seconds()


class GrpcJobEncoder(JobEncoder):
    """Serialises `WatchJobResponse`.

    A part is a message with one transition. Joined, they are one message: its fields may come one by one, in any order.
    """

    def move(self, view: JobView, move: Transition) -> bytes:
        transition = job_transition(view, move)
        return pb.WatchJobResponse(transitions=[transition]).SerializeToString()

    def moves(self, parts: Sequence[bytes], view: JobView, now: datetime) -> bytes:
        end = pb.WatchJobResponse(job=export_job(view) if view.job.is_final else None)
        return b"".join((*parts, _finished(end, view, now)))

    def snapshot(self, view: JobView, now: datetime) -> bytes:
        return _finished(pb.WatchJobResponse(job=export_job(view)), view, now)

    def progress(self, view: JobView, now: datetime) -> bytes:
        told = job_progress(view.progress) if view.progress else None
        return _finished(pb.WatchJobResponse(progress=told), view, now)

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
        return _part(pb.JobChange(job_id=view.job.id, job=export_job(view)))

    def moved(self, revision: int, view: JobView, move: Transition, told: JobView | None) -> bytes:
        change = pb.JobChange(
            job_id=view.job.id,
            revision=revision,
            transition=job_transition(view, move),
            job=export_job(told) if told else None,
        )
        return _part(change)

    def removed(self, job_id: int, revision: int = 0) -> bytes:
        return _part(pb.JobChange(job_id=job_id, revision=revision, removed=True))

    def progress(self, job_id: int, progress: Progress) -> bytes:
        return _part(pb.JobChange(job_id=job_id, progress=job_progress(progress)))

    def message(
        self, parts: Sequence[bytes], revision: int, now: datetime, *, list_complete: bool = False
    ) -> bytes:
        rest = pb.WatchJobsResponse(
            revision=revision, list_complete=list_complete, server_time=timestamp(now)
        )
        return b"".join((*parts, rest.SerializeToString()))


def _part(change: pb.JobChange) -> bytes:
    return pb.WatchJobsResponse(changes=[change]).SerializeToString()
