"""The export plan: everything an engine needs to know, as plain data, fixed once for all attempts of a job.

Below it stands what an engine reports of carrying it out, how a plan is made, and how a job is estimated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.request import BoundRequest
from profile_export.domain.export.selection import IdentitySelection, SegmentSelection, select_fields
from profile_export.domain.merging.identity import IdentityKey, identity_key
from profile_export.domain.merging.policy import AttributeMerge, IdentityGraph, MergePolicy
from profile_export.domain.schemas.types import (
    EMPTY,
    IDENTITY_MAP,
    SEGMENT_MEMBERSHIP,
    TIME_SERIES_EVENTS,
    WIDE,
    ArrayType,
    ObjectType,
    is_wide,
    leaves,
    written,
)

GRAPHS = "graphs"
"""Below the lake's root, the folder that keeps graphs: those of a tenant in one of its own. No dataset has this id."""
ESTIMATES, MAPPINGS = "estimates", "mappings"
"""Likewise, folders of what is made for the time of one call, each under a name that `MADE_NAME` matches."""
MADE_NAME = re.compile(r"[0-9a-f]{24}")
"""The names that are made here for datasets, batches and folders."""
LOWEST_KEY = -(2**63)
HIGHEST_KEY = 2**63 - 1
_KEYS = HIGHEST_KEY - LOWEST_KEY + 1
VALUES_PER_RANGE = 8_000_000
"""How many values of source rows one range should read at most: bounds the memory, yet gives no tiny files."""
VALUES_OF_A_ROW = 4
"""What a row costs besides the fields that are kept of it: key, place, identity."""
BYTES_OF_A_VALUE = 32
"""How many bytes of source files cost as much as a further value: long texts take memory, however few they are."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A data file of the snapshot; `path` is relative to the lake's root."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SourcePart:
    """Files of a source that were written with the same fields. A known field that is not among them is null there."""

    fields: ObjectType
    files: tuple[PinnedFile, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset of the snapshot, with exactly the files that count. `kind` is RECORD or EVENT.

    `upserts` says whether a record patches the older ones of its identity instead of replacing them (S9). One that
    does not take part (S10) still says which identities are one person (S4).
    """

    dataset_id: str
    kind: DatasetKind
    parts: tuple[SourcePart, ...]
    upserts: bool = False
    takes_part: bool = True

    @property
    def rows(self) -> int:
        """All rows of its files."""
        return sum(file.rows for part in self.parts for file in part.files)

    @property
    def bytes(self) -> int:
        """All bytes of its files."""
        return sum(file.bytes for part in self.parts for file in part.files)


@dataclass(frozen=True, slots=True)
class PinnedBatch:
    """What a row's place and ingest time follow from (S8).

    `strength` ranks the batch's dataset under `dataSetPrecedence`, the greater the stronger; 0 for all else (S10).
    """

    id: str
    number: int
    ingest_time: datetime
    dataset_id: str = ""
    rows: int = 0
    strength: int = 0


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A slice of the work: profiles whose key's high half is in [low, high], both ends included."""

    index: int
    low: int
    high: int

    @property
    def width(self) -> int:
        """How many keys it holds."""
        return self.high - self.low + 1

    @property
    def share(self) -> float:
        """Which share of all keys it is, 1 if it is all of them."""
        return self.width / _KEYS

    def halves(self) -> tuple[KeyRange, KeyRange]:
        """Return its lower and its upper half, of the same index; its width must be 2 at least."""
        middle = self.low + self.width // 2
        return replace(self, high=middle - 1), replace(self, low=middle)


@dataclass(frozen=True, slots=True)
class EventSelection:
    """Which events are attached (S17, S18) and which of their fields; both ends may be None for open."""

    fields: ObjectType
    identities: IdentitySelection
    from_ingest_time: datetime | None
    to_ingest_time: datetime | None

    @property
    def type(self) -> ArrayType:
        """The type of `timeSeriesEvents`."""
        return ArrayType(with_identities(self.identities, self.fields))


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export, from what.

    `record_fields` and `event_fields` are the union schemas of the sources: the types every part is cast to.
    `fields` is what is kept of `record_fields` (a subtree: objects have fewer members, arrays of objects fewer item
    members, maps fewer keys or value members), without `identityMap`, of which `identities` says what is kept.
    `namespaces` maps every spelling of an identity namespace that was sent and differs from the registered one to that;
    `segment_namespaces` is the same for segments (S2). `events` is None where no event is attached, `segments` where
    profiles need not be in any. `newer_than` keeps profiles whose newest record was ingested later (S20). With
    `segment_batches`, one per segment, a profile is in the batch of every segment it is in, and `batch_id` is empty.
    `notes` are sentences for the job. `graph_folder` is where the tenant's identity graph is kept, relative to the
    lake's root; empty: nowhere. `values_per_range` says how the work is cut; it is more than 0. `origin` is what each
    file says of itself beside its batch: by name the job, if there is one, and the merge policy. `excluded` are, in
    order, the keys of identities that link nobody: rows are read as if none of their links led to or from one (S4).
    """

    batch_id: str
    graph: IdentityGraph
    sources: tuple[Source, ...]
    batches: tuple[PinnedBatch, ...]
    namespaces: Mapping[str, str]
    segment_namespaces: Mapping[str, str]
    record_fields: ObjectType
    event_fields: ObjectType
    fields: ObjectType
    identities: IdentitySelection
    events: EventSelection | None
    empty_profiles: bool = False
    segments: SegmentSelection | None = None
    newer_than: datetime | None = None
    segment_batches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    graph_folder: str = ""
    values_per_range: int = VALUES_PER_RANGE
    origin: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[IdentityKey, ...] = ()

    @property
    def batch_ids(self) -> tuple[str, ...]:
        """The batches that it fills."""
        return self.segment_batches or (self.batch_id,)

    @property
    def exported_fields(self) -> ObjectType:
        """The fields that exported rows may have, as files have them."""
        events = {} if self.events is None else {TIME_SERIES_EVENTS: self.events.type}
        kept = {**with_identities(self.identities, self.fields).fields, **events}
        return ObjectType({name: written(member) for name, member in kept.items()})

    @property
    def paths(self) -> Iterator[str]:
        """The data files that it reads."""
        return (file.path for source in self.sources for part in source.parts for file in part.files)

    def ranges(self) -> tuple[KeyRange, ...]:
        """Cut the work into ranges of the profile key; the same for every attempt.

        Ranges of equal width hold about equally many profiles: keys are hashes, and the half that ranges are of has no
        say in which of a profile's identities gives it its key.
        """
        kept = {
            DatasetKind.RECORD: self.fields,
            DatasetKind.EVENT: self.events.fields if self.events else EMPTY,
        }
        values = {kind: VALUES_OF_A_ROW + sum(1 for _ in leaves(fields)) for kind, fields in kept.items()}
        cost = sum(
            source.rows * values[source.kind] + source.bytes // BYTES_OF_A_VALUE for source in self.sources
        )
        count = max(1, round(cost / self.values_per_range))
        width = _KEYS // count
        starts = [LOWEST_KEY + index * width for index in range(count)]
        ends = [start - 1 for start in starts[1:]] + [HIGHEST_KEY]
        return tuple(
            KeyRange(index, low, high) for index, (low, high) in enumerate(zip(starts, ends, strict=True))
        )

    @property
    def rows(self) -> int:
        """All rows of its sources."""
        return sum(source.rows for source in self.sources)

    def rows_in(self, key_range: KeyRange) -> int:
        """Return about how many rows a range reads; over all ranges exactly `rows`."""
        before, up_to = key_range.low - LOWEST_KEY, key_range.high + 1 - LOWEST_KEY
        return self.rows * up_to // _KEYS - self.rows * before // _KEYS


def with_identities(identities: IdentitySelection, fields: ObjectType) -> ObjectType:
    """Return what is written of a profile or an event: its fields, behind an `identityMap` if any of that is kept."""
    column = {IDENTITY_MAP: identities.type} if identities.type else {}
    return ObjectType({**column, **fields.fields})


# --- What an engine reports ---


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written. `name` is that in its folder; `sha256` is in hex.

    `batch_id` says which of an export's batches it is for; empty for an upload's, which is for one.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    batch_id: str = ""


@dataclass(frozen=True, slots=True)
class LinkingIdentity:
    """An identity, its namespace in the registered spelling, and with how many others it occurs on rows."""

    namespace: str
    id: str
    others: int


LEFT_OUT_REASONS = ("not_listed", "too_many_identities", "events_only", "not_newer", "not_in_segments")
"""The figures of `ExportCounts` that say why profiles are left out, in the order in which they apply (S22)."""


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What was read, kept and left out; sums over ranges. Each left-out profile is in exactly one figure (S22).

    Fragments (of record datasets, S9) and events are read of datasets that take part. `profiles_read` are all profiles
    found, `profiles_merged` the exported ones that were put together from two or more fragments.
    `identities_left_out` and `fragments_left_out` went with profiles of too many identities (S7).
    `events_with_record` are the events read of profiles that have a fragment. `links_most`, with a graph, is the
    identity that links the most others in profiles of more than `UNUSUALLY_MANY`; None if there is no such profile.
    """

    fragments_read: int = 0
    events_read: int = 0
    profiles_read: int = 0
    profiles_exported: int = 0
    profiles_merged: int = 0
    events_exported: int = 0
    not_listed: int = 0
    too_many_identities: int = 0
    identities_left_out: int = 0
    fragments_left_out: int = 0
    events_only: int = 0
    not_newer: int = 0
    not_in_segments: int = 0
    by_namespace: Mapping[str, int] | None = None
    """Exported profiles that have an identity of the namespace, in its registered spelling; None counts as empty."""
    segment_members: Mapping[int, int] = field(default_factory=dict)
    """Profiles found that have an entry for the segment asked for at this position."""
    events_with_record: int = 0
    links_most: LinkingIdentity | None = None

    @classmethod
    def total(cls, several: Iterable[ExportCounts]) -> ExportCounts:
        """Add counts up, in a time that grows with what they hold together."""
        every = list(several)
        if not every:
            return cls()
        added: dict[str, Any] = {}
        for figure in (found.name for found in fields(cls)):
            values = [getattr(counts, figure) for counts in every]
            if figure == "links_most":
                added[figure] = strongest_link(values)
            elif figure in {"by_namespace", "segment_members"}:
                sums: Counter[Any] = Counter()
                for value in values:
                    sums.update(value or {})
                added[figure] = {key: sums[key] for key in sorted(sums)}
            else:
                added[figure] = sum(values)
        return cls(**added)

    def __add__(self, other: ExportCounts) -> ExportCounts:
        return ExportCounts.total((self, other))


def strongest_link(found: Iterable[LinkingIdentity | None]) -> LinkingIdentity | None:
    """Return the one that links the most, of equals the first by namespace and id; None if there is none."""
    known = [one for one in found if one is not None]
    return min(known, key=lambda one: (-one.others, one.namespace, one.id), default=None)


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """Source rows worked through so far and in all, as estimated by the engine; never falls within an attempt."""

    done: int
    estimated: int


@dataclass(frozen=True, slots=True)
class IdentityFindings:
    """What is worth telling of the identities that are read, estimated where there are very many.

    With a graph, `linked` are those that occur together with another. Without one, `shared` are those that occur with
    several primary ones, which a graph would link. `spellings` counts by namespace, as sent, the ids that differ
    from another in case or blanks alone.
    """

    linked: int = 0
    shared: int = 0
    spellings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolutionFacts:
    """What identity resolution found; all 0 with graph `none`, or if no row has more than one identity.

    `identities` are those that occur together with another, `components` the profiles they make up, `identities_moved`
    those whose profile has another key than they, `rows_moved` the rows that had to be shuffled for it. `findings` are
    there whatever the graph.
    """

    identities: int = 0
    components: int = 0
    identities_moved: int = 0
    rows_moved: int = 0
    peak_memory_bytes: int = 0
    findings: IdentityFindings = field(default_factory=IdentityFindings)


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The files of one range (none if no profile of it is exported) and what was read, kept and left out."""

    files: tuple[WrittenFile, ...] = ()
    counts: ExportCounts = field(default_factory=ExportCounts)
    peak_memory_bytes: int = 0


class EngineDiedError(Exception):
    """The engine's process ended or ran out of memory: another attempt may succeed.

    The text is a sentence; `code` is for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineFailedError(Exception):
    """A query failed: a file that cannot be read, a full disk. The text is a sentence; `code` is for programs."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code, self.retryable = code, retryable


# --- Making a plan ---


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
    job_id: int | None = None,
) -> ExportPlan:
    """Make the plan of a job; `values_per_range` is what the memory of its engine can hold.

    `job_id` is None for what is no job's.

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
        # A kept graph says from which batches it was made, and no more: it would link what is excluded.
        graph_folder="" if bound.policy.excluded_identities else snapshot.graph_folder,
        values_per_range=values_per_range,
        origin=_origin(bound.policy, job_id),
        excluded=tuple(sorted(map(identity_key, bound.policy.excluded_identities))),
    )


def _origin(policy: MergePolicy, job_id: int | None) -> Mapping[str, str]:
    job = {} if job_id is None else {"job-id": str(job_id)}
    rules = {"identity-graph": policy.graph.value, "attribute-merge": policy.attribute_merge.value}
    return job | {"policy-id": policy.id, "policy-version": str(policy.version)} | rules


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


# --- Estimating a job ---


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: the truth is not below `at_least` and not above `at_most` (None: no bound is known)."""

    value: int
    exact: bool
    at_least: int
    at_most: int | None


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


def estimate(plan: ExportPlan, sample: KeyRange, result: RangeResult) -> Estimate:
    """Make figures of what came of a range; those of a sample are scaled up.

    Bytes and files are never exact: they depend on how rows happen to be spread over threads.
    """
    counts, is_whole = result.counts, sample.share == 1
    rows = sum(file.rows for file in result.files)
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

    size = round(sum(file.bytes for file in result.files) / sample.share)
    # A range that has rows for a batch gives it a file of its own.
    files = len(result.files) if is_whole else len(plan.ranges()) * len(plan.batch_ids)
    return Estimate(
        profiles=figure(counts.profiles_exported, most),
        events=figure(counts.events_exported, known[DatasetKind.EVENT] if plan.events else 0),
        rows=figure(rows, most * len(plan.batch_ids)),
        bytes=Figure(size, exact=False, at_least=0, at_most=None),
        files=Figure(files if rows else 0, exact=False, at_least=0, at_most=None),
        left_out={reason: figure(getattr(counts, reason), None) for reason in LEFT_OUT_REASONS},
    )


def _rows(plan: ExportPlan, kind: DatasetKind) -> int:
    return sum(source.rows for source in plan.sources if source.kind is kind and source.takes_part)
