"""What a caller asks of an export, and how it is bound to what exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from profile_export.domain.catalog.datasets import PROFILE_CLASS, Dataset, DatasetKind
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.selection import (
    SegmentFilter,
    SegmentSelection,
    UnknownPath,
    check_segments,
    select_fields,
    unknown_paths,
)
from profile_export.domain.merging.policy import MergePolicy
from profile_export.domain.schemas.types import EVENT_ID, IDENTITY_MAP, ObjectType

MAX_RUN_TIME = timedelta(days=366)
"""The longest limit that a job can be given: what is never reached is no limit."""


class WriteMode(StrEnum):
    """What becomes of the batches that a destination has already when an export succeeds."""

    APPEND = "append"
    """They stay, beside the new one."""
    REPLACE = "replace"
    """They are hidden in the transaction in which the new one begins to count."""


@dataclass(frozen=True, slots=True)
class EventList:
    """Which events to attach, and which of their fields (S17, S18); no fields means all, None an open end."""

    fields: tuple[str, ...] = ()
    from_ingest_time: datetime | None = None
    to_ingest_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """A request as sent, checked as far as it can be without looking anything up.

    `policy_id` empty means the default policy, `policy_version` None the newest version. `event_list` None means no
    events. `empty_profiles` also takes profiles that have events only (S19). `segments` empty means no restriction;
    the qualification times, None for an open end, need some (S21). `from_ingest_time` None takes all (S20).
    `schema_name` and `engine` may be empty. `max_run_time` is the longest time from creation to end, None for no limit.
    """

    destination_id: str
    fields: tuple[str, ...] = ()
    policy_id: str = ""
    policy_version: int | None = None
    event_list: EventList | None = None
    empty_profiles: bool = False
    schema_name: str = ""
    engine: str = ""
    segments: tuple[SegmentFilter, ...] = ()
    qualified_from: datetime | None = None
    qualified_to: datetime | None = None
    from_ingest_time: datetime | None = None
    segment_per_batch: bool = False
    max_run_time: timedelta | None = None
    mode: WriteMode = WriteMode.APPEND

    def __post_init__(self) -> None:
        if not self.destination_id:
            raise InvalidArgumentError.of_field(
                "spec.destination.dataset_id", "is required.", "FIELD_REQUIRED"
            )
        if self.max_run_time is not None and not timedelta() < self.max_run_time <= MAX_RUN_TIME:
            raise InvalidArgumentError.of_field(
                "spec.max_run_time", f"must be more than zero and at most {MAX_RUN_TIME.days} days."
            )
        window = self.event_list or EventList()
        check_window(
            window.from_ingest_time,
            window.to_ingest_time,
            "spec.event_list.filter.from_ingest_time",
            "to_ingest_time",
        )
        self._check_segments()

    def deadline(self, create_time: datetime) -> datetime | None:
        """Say when the run time of a job created then is used up; None if it has no limit."""
        return None if self.max_run_time is None else create_time + self.max_run_time

    def _check_segments(self) -> None:
        check_segments(self.segments, "spec.filter.segments")
        window = "spec.filter.segment_qualification_time"
        check_window(self.qualified_from, self.qualified_to, f"{window}.start_time", "end_time")
        if not self.segments:
            for field, needs in (
                ("spec.destination.segment_per_batch", self.segment_per_batch),
                (window, self.qualified_from or self.qualified_to),
            ):
                if needs:
                    raise InvalidArgumentError.of_field(
                        field, "needs segments; name them in spec.filter.segments.", "SEGMENTS_REQUIRED"
                    )
        if len(self.segments) > 1 and not self.policy_id:
            raise InvalidArgumentError.of_field(
                "spec.merge_policy",
                "is required with several segments: say under which policy they are judged.",
                "MERGE_POLICY_REQUIRED",
            )

    @property
    def selection(self) -> SegmentSelection | None:
        """Which memberships let a profile in; None if it need not be in any segment."""
        if not self.segments:
            return None
        return SegmentSelection(self.segments, self.qualified_from, self.qualified_to)


def check_window(start: datetime | None, end: datetime | None, field: str, other: str) -> None:
    """Refuse a window whose start, which `field` holds, is later than its end in `other`; None leaves an end open."""
    if start and end and start > end:
        raise InvalidArgumentError.of_field(field, f"is later than {other}.", "TIME_WINDOW_INVALID")


@dataclass(frozen=True, slots=True)
class BoundRequest:
    """A request whose names stand for things that exist: this is what a job keeps, echoes and plans from."""

    request: ExportRequest
    policy: MergePolicy
    engine: str = ""
    """By name; the one that the request names, or that the server takes where it names none."""

    @property
    def resolved(self) -> ExportRequest:
        """The request with what was left to the server filled in."""
        return replace(
            self.request,
            policy_id=self.policy.id,
            policy_version=self.policy.version,
            schema_name=self.request.schema_name or self.policy.schema_name,
            engine=self.engine,
        )


def bind(
    request: ExportRequest,
    destination: Dataset,
    policy: MergePolicy,
    record_fields: ObjectType,
    event_fields: ObjectType,
    engines: Sequence[str],
) -> BoundRequest:
    """Check a request against the destination and the policy that it names, or the default policy.

    `record_fields` and `event_fields` are the union schemas of the tenant's sources. Of `engines`, the names of those
    there are, the first is taken where the request names none.

    Raises:
        InvalidArgumentError: The engine or a field path is unknown, or the destination is not a union dataset or of
            another class.
    """
    if request.engine not in {"", *engines}:
        known = " or ".join(f"'{engine}'" for engine in engines)
        raise InvalidArgumentError.of_field(
            "spec.engine",
            f"must be empty or {known}; this server has no '{request.engine}'.",
            "ENGINE_UNKNOWN",
        )
    if destination.kind is not DatasetKind.UNION:
        raise InvalidArgumentError.of_field(
            "spec.destination.dataset_id",
            f"'{destination.id}' follows '{destination.schema.id}'; an export needs a dataset of a union schema, "
            "such as https://ns.adobe.com/xdm/context/profile__union.",
            "DESTINATION_NOT_UNION",
        )
    if request.schema_name not in {"", PROFILE_CLASS}:
        raise InvalidArgumentError.of_field(
            "spec.schema_name", f"must be the destination's class, '{PROFILE_CLASS}'.", "SCHEMA_NAME_MISMATCH"
        )
    select_fields(record_fields, request.fields, "spec.fields")
    if request.event_list:
        select_fields(event_fields, request.event_list.fields, "spec.event_list.fields")
    return BoundRequest(request, policy, request.engine or engines[0])


def without_unknown_fields(
    request: ExportRequest, record_fields: ObjectType, event_fields: ObjectType
) -> tuple[ExportRequest, Sequence[UnknownPath]]:
    """Return a request with the fields that are known, and the paths of the others.

    Where none is known that was named, identities alone are kept, and of events their ids: no field at all would mean
    every one.

    Raises:
        InvalidArgumentError: A path is wrong in another way.
    """
    unknown = unknown_paths(record_fields, request.fields, "spec.fields")
    reduced = replace(request, fields=_without(request.fields, unknown, IDENTITY_MAP))
    wanted = request.event_list
    if wanted is None:
        return reduced, unknown
    of_events = unknown_paths(event_fields, wanted.fields, "spec.event_list.fields")
    kept = replace(wanted, fields=_without(wanted.fields, of_events, EVENT_ID))
    return replace(reduced, event_list=kept), [*unknown, *of_events]


def _without(paths: Sequence[str], unknown: Sequence[UnknownPath], otherwise: str) -> tuple[str, ...]:
    refused = {one.path for one in unknown}
    known = tuple(path for path in paths if path not in refused)
    return known if known or not paths else (otherwise,)
