"""From a bound request and a snapshot to the plan of all attempts, and to an estimate of what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    LEFT_OUT_REASONS,
    VALUES_PER_RANGE,
    EventSelection,
    ExportCounts,
    ExportPlan,
    KeyRange,
    PinnedBatch,
    Source,
)
from profile_export.domain.export.request import BoundRequest
from profile_export.domain.export.selection import select_fields
from profile_export.domain.merging.policy import AttributeMerge, MergePolicy
from profile_export.domain.schemas.types import SEGMENT_MEMBERSHIP, WIDE, ObjectType, is_wide


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The batches of all source datasets that count at one moment, and what else a plan is made of.

    `datasets` are all source datasets, also those without a batch. `unions` holds the union schema of record and of
    event sources; the two mappings of namespaces and `graph_folder` are as `ExportPlan` has them. `spellings` are the
    registered spellings of identity and of segment namespaces by folded name, under the field that has them as keys.
    """

    datasets: Mapping[str, DatasetKind]
    sources: tuple[Source, ...]
    batches: tuple[PinnedBatch, ...]
    unions: Mapping[DatasetKind, ObjectType]
    namespaces: Mapping[str, str]
    segment_namespaces: Mapping[str, str]
    spellings: Mapping[str, Mapping[str, str]]
    graph_folder: str = ""


def plan_export(
    bound: BoundRequest,
    snapshot: Snapshot,
    batch_id: str,
    segment_batches: tuple[str, ...] = (),
    values_per_range: int = VALUES_PER_RANGE,
) -> ExportPlan:
    """Make the plan of a job; `values_per_range` is what the memory of its engine can hold.

    Raises:
        InvalidArgumentError: A field that the request names is not known any more.
    """
    request = bound.request
    record_fields, event_fields = snapshot.unions[DatasetKind.RECORD], snapshot.unions[DatasetKind.EVENT]
    kept = select_fields(record_fields, request.fields, "spec.fields", snapshot.spellings)
    events = None
    if request.event_list:
        selection = select_fields(
            event_fields, request.event_list.fields, "spec.event_list.fields", snapshot.spellings
        )
        events = EventSelection(
            selection.fields,
            selection.identities,
            request.event_list.from_ingest_time,
            request.event_list.to_ingest_time,
        )
    precedence = _Precedence(bound.policy, snapshot.datasets)
    segments = request.selection
    return ExportPlan(
        batch_id=batch_id,
        graph=bound.policy.graph,
        sources=tuple(
            replace(source, takes_part=precedence.takes_part(source.dataset_id))
            for source in snapshot.sources
        ),
        batches=tuple(
            replace(batch, strength=precedence.strength(batch.dataset_id)) for batch in snapshot.batches
        ),
        namespaces=snapshot.namespaces,
        segment_namespaces=snapshot.segment_namespaces,
        record_fields=record_fields,
        event_fields=event_fields,
        fields=kept.fields,
        identities=kept.identities,
        events=events,
        empty_profiles=request.empty_profiles,
        segments=segments and segments.registered(snapshot.spellings[SEGMENT_MEMBERSHIP]),
        newer_than=request.from_ingest_time,
        segment_batches=segment_batches,
        notes=precedence.notes,
        graph_folder=snapshot.graph_folder,
        values_per_range=values_per_range,
    )


def takes_long(snapshot: Snapshot, paths: Sequence[str]) -> bool:
    """Whether a plan for so many paths takes more than a few milliseconds to make."""
    things = len(paths) + len(snapshot.batches) + len(snapshot.datasets)
    return things > WIDE or is_wide(snapshot.unions.values())


class _Precedence:
    """What a policy's `order` makes of the source datasets (S10)."""

    def __init__(self, policy: MergePolicy, datasets: Mapping[str, DatasetKind]) -> None:
        self._datasets = datasets
        self._ordered = policy.attribute_merge is AttributeMerge.DATASET_PRECEDENCE
        named = [dataset_id for dataset_id in policy.order if dataset_id in datasets]
        self._strengths = {dataset_id: rank for rank, dataset_id in enumerate(reversed(named), start=1)}
        self._names_events = any(datasets[dataset_id] is DatasetKind.EVENT for dataset_id in named)
        self.notes = tuple(
            f"The dataset '{dataset_id}', which the merge policy '{policy.id}' names, is no source any more; "
            "its place in the order was ignored."
            for dataset_id in policy.order
            if dataset_id not in datasets
        )

    def takes_part(self, dataset_id: str) -> bool:
        """Say whether a dataset's rows become part of profiles; events do unless other events are named."""
        if not self._ordered or dataset_id in self._strengths:
            return True
        return self._datasets[dataset_id] is DatasetKind.EVENT and not self._names_events

    def strength(self, dataset_id: str) -> int:
        """Rank a record dataset; events are only restricted and never ranked."""
        if self._datasets[dataset_id] is DatasetKind.EVENT:
            return 0
        return self._strengths.get(dataset_id, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: the truth is not below `at_least` and not above `at_most` (None: no bound is known)."""

    value: int
    exact: bool
    at_least: int
    at_most: int | None


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of a sample."""

    counts: ExportCounts
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would do. `left_out` has a figure for every reason."""

    profiles: Figure
    events: Figure
    rows: Figure
    bytes: Figure
    files: Figure
    left_out: Mapping[str, Figure]


def sample_of(plan: ExportPlan) -> KeyRange:
    """Choose what to count: the middle one of the job's ranges, which hold about the same. It may be the only one."""
    ranges = plan.ranges()
    return ranges[len(ranges) // 2]


def estimate(plan: ExportPlan, sample: KeyRange, counted: Counted) -> Estimate:
    """Make figures of what was counted; those of a sample are scaled up.

    Bytes and files are never exact: they depend on how rows happen to be spread over threads.
    """
    counts, is_whole = counted.counts, sample.share == 1
    known = {kind: _rows(plan, kind) for kind in (DatasetKind.RECORD, DatasetKind.EVENT)}
    # Every exported profile has a record, or an event if those are enough.
    most = known[DatasetKind.RECORD] + (known[DatasetKind.EVENT] if plan.empty_profiles else 0)

    def figure(value: int, at_most: int | None) -> Figure:
        if is_whole:
            return Figure(value, exact=True, at_least=value, at_most=value)
        scaled = round(value / sample.share)
        return Figure(
            scaled if at_most is None else min(scaled, at_most), exact=False, at_least=value, at_most=at_most
        )

    written = round(counted.bytes / sample.share)
    # A range that has rows for a batch gives it a file of its own.
    files = counted.files if is_whole else len(plan.ranges()) * len(plan.batch_ids)
    return Estimate(
        profiles=figure(counts.profiles_exported, most),
        events=figure(counts.events_exported, known[DatasetKind.EVENT] if plan.events else 0),
        rows=figure(counted.rows, most * len(plan.batch_ids)),
        bytes=Figure(written, exact=False, at_least=0, at_most=None),
        files=Figure(files if counted.rows else 0, exact=False, at_least=0, at_most=None),
        left_out={reason: figure(getattr(counts, reason), None) for reason in LEFT_OUT_REASONS},
    )


def _rows(plan: ExportPlan, kind: DatasetKind) -> int:
    return sum(source.rows for source in plan.sources if source.kind is kind and source.takes_part)
