"""Export requests, jobs, transitions, progress and estimates as messages and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from profile_export.api.convert.values import (
    duration,
    instant,
    length_of_time,
    refuse_unbuilt,
    required,
    rows_that_fit,
    timestamp,
)
from profile_export.application.jobs import Estimated
from profile_export.application.profiles import nearest_paths
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.plan import Figure
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.export.selection import (
    DEFAULT_NAMESPACE,
    MembershipStatus,
    SegmentFilter,
    UnknownPath,
)
from profile_export.domain.job import JobMetrics, JobState, JobView, Phase, PhaseTime, Progress, Transition
from profile_export.v1 import export_service_pb2 as pb
from profile_export.v1 import job_pb2, merge_policy_pb2

_STATUSES = {
    job_pb2.MembershipStatus.Value(f"MEMBERSHIP_STATUS_{status.name}"): status for status in MembershipStatus
}
_ON_WIRE = {status: wire for wire, status in _STATUSES.items()}
_QUALIFIED = "spec.filter.segment_qualification_time"
_STATES = {job_pb2.JobState.Value(f"JOB_STATE_{state.name}"): state for state in JobState}
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
        policy_version=spec.merge_policy.version if spec.merge_policy.HasField("version") else None,
        event_list=_event_list(spec.event_list) if spec.HasField("event_list") else None,
        empty_profiles=spec.filter.empty_profiles,
        schema_name=spec.schema_name,
        engine=spec.engine,
        segments=tuple(_segment(one, index) for index, one in enumerate(spec.filter.segments)),
        qualified_from=instant(qualified, "start_time", f"{_QUALIFIED}."),
        qualified_to=instant(qualified, "end_time", f"{_QUALIFIED}."),
        from_ingest_time=instant(spec.filter, "from_ingest_time", "spec.filter."),
        segment_per_batch=spec.destination.segment_per_batch,
        max_run_time=(
            length_of_time(spec.max_run_time, "spec.max_run_time") if spec.HasField("max_run_time") else None
        ),
    )


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
    spec = job_pb2.ExportSpec(
        fields=request.fields,
        merge_policy=merge_policy_pb2.MergePolicyRef(id=request.policy_id, version=request.policy_version),
        destination=job_pb2.ExportDestination(
            dataset_id=request.destination_id, segment_per_batch=request.segment_per_batch
        ),
        schema_name=request.schema_name,
        engine=request.engine,
        max_run_time=duration(request.max_run_time),
    )
    kept = _filter(request)
    if kept.ListFields():
        spec.filter.CopyFrom(kept)
    if request.event_list:
        window = job_pb2.EventFilter(
            from_ingest_time=timestamp(request.event_list.from_ingest_time),
            to_ingest_time=timestamp(request.event_list.to_ingest_time),
        )
        spec.event_list.CopyFrom(job_pb2.EventList(fields=request.event_list.fields, filter=window))
    return spec


def _filter(request: ExportRequest) -> job_pb2.ExportFilter:
    kept = job_pb2.ExportFilter(
        segments=[segment_filter(one) for one in request.segments],
        from_ingest_time=timestamp(request.from_ingest_time),
        empty_profiles=request.empty_profiles,
    )
    if request.qualified_from or request.qualified_to:
        window = job_pb2.TimeWindow(
            start_time=timestamp(request.qualified_from), end_time=timestamp(request.qualified_to)
        )
        kept.segment_qualification_time.CopyFrom(window)
    return kept


def segment_filter(value: SegmentFilter) -> job_pb2.SegmentFilter:
    """Write a segment and the memberships that count."""
    statuses = [_ON_WIRE[status] for status in value.statuses]
    return job_pb2.SegmentFilter(segment_id=value.segment_id, namespace=value.namespace, statuses=statuses)


def export_job(view: JobView) -> job_pb2.ExportJob:
    """Write a job."""
    job = view.job
    message = job_pb2.ExportJob(
        id=job.id,
        spec=export_spec(job.bound),
        state=job_pb2.JobState.Value(f"JOB_STATE_{job.state.name}"),
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
        create_time=timestamp(job.create_time),
        update_time=timestamp(job.update_time),
        end_time=timestamp(job.end_time),
        not_before_time=timestamp(job.not_before),
        request_id=job.request_id,
        expire_time=timestamp(view.expire_time),
    )
    if job.cancellation:
        message.cancellation.CopyFrom(
            job_pb2.JobCancellation(
                requested_by=job.cancellation.requested_by,
                request_time=timestamp(job.cancellation.request_time),
                reason=job.cancellation.reason,
            )
        )
    if view.progress:
        message.progress.CopyFrom(progress(view.progress))
    return message


def job_transition(view: JobView, transition: Transition) -> job_pb2.JobTransition:
    """Write one entry of a job's log, with the metrics as they were then."""
    states = {
        f"{end}_state": job_pb2.JobState.Value(f"JOB_STATE_{state.name}")
        for end, state in (("from", transition.from_state), ("to", transition.to_state))
        if state
    }
    return job_pb2.JobTransition(
        revision=transition.revision,
        time=timestamp(transition.time),
        attempt=transition.attempt,
        reason=transition.reason,
        metrics=job_metrics(transition.metrics, view.phases, view.job.create_time, transition.time),
        **states,
    )


def progress(value: Progress) -> job_pb2.JobProgress:
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
            spent = min(time.end_time or until, until) - time.start_time
            times[time.phase] = times.get(time.phase, timedelta()) + spent
    messages = [
        job_pb2.PhaseMetrics(phase=_PHASES[phase], time=duration(time)) for phase, time in times.items()
    ]
    for message in messages:
        match message.phase:
            case job_pb2.JOB_PHASE_PLAN:
                pinned = metrics.pinned
                message.rows, message.bytes, message.files = pinned.rows, pinned.bytes, pinned.files
            case job_pb2.JOB_PHASE_RESOLVE:
                message.rows = metrics.resolved.rows_moved
                message.peak_memory_bytes = metrics.resolved.peak_memory_bytes
            case job_pb2.JOB_PHASE_RUN | job_pb2.JOB_PHASE_COMMIT:
                message.rows, message.bytes = metrics.rows_written, metrics.bytes_written
                message.files = metrics.files_written
        if message.phase == job_pb2.JOB_PHASE_RUN:
            message.peak_memory_bytes = metrics.peak_memory_bytes
    return messages


def job_states(values: Iterable[job_pb2.JobState.ValueType], field: str) -> frozenset[JobState]:
    """Read the states that are asked for.

    Raises:
        InvalidArgumentError: One is none that a job can be in.
    """
    states = []
    for index, value in enumerate(values):
        if value not in _STATES:
            raise InvalidArgumentError.of_field(f"{field}[{index}]", "must be a state that a job can be in.")
        states.append(_STATES[value])
    return frozenset(states)


def seconds_between(value: Duration, field: str, least: float, most: float) -> float:
    """Read a Duration in seconds.

    Raises:
        InvalidArgumentError: It is not between `least` and `most` seconds.
    """
    seconds = length_of_time(value, field).total_seconds()
    if not least <= seconds <= most:
        raise InvalidArgumentError.of_field(field, f"must be between {least:g} and {most:g} seconds.")
    return seconds


_MOST_SAMPLE_ROWS = 100


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
