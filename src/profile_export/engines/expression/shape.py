"""What of a plan decides the text of its expression. Everything else is bound, so that equal shapes compile once."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import EMPTY, SEGMENT_MEMBERSHIP, ObjectType, to_json
from profile_export.engines.expression.tables import Leaf, needed_leaves, without_empty


@dataclass(frozen=True)
class EventShape:
    """Which fields and identities of events are attached."""

    fields: ObjectType
    identities: IdentitySelection


@dataclass(frozen=True)
class Shape:
    """The form of an export, without its data: see `ExportPlan` for the members it shares with it.

    `has_others` says whether any source that does not take part has rows, `linked` whether any row has more identities
    than its primary one, `respelled` and `segments_respelled` whether any namespace was sent in another than its
    registered spelling (S2), `upserts` whether any source of records does (S9), `selects_segments` and `selects_newer`
    whether profiles are chosen by segments (S21) and by ingest time (S20). Object types hold no empty objects.
    """

    graph: IdentityGraph
    record_fields: ObjectType
    event_fields: ObjectType
    fields: ObjectType
    identities: IdentitySelection
    events: EventShape | None
    empty_profiles: bool
    has_records: bool
    has_events: bool
    has_others: bool
    linked: bool
    respelled: bool
    segments_respelled: bool
    upserts: bool
    selects_segments: bool
    selects_newer: bool

    @cached_property
    def record_leaves(self) -> tuple[Leaf, ...]:
        """The leaves of record sources that are merged."""
        return needed_leaves(self.fields, self.record_fields)

    @cached_property
    def membership(self) -> Leaf:
        """The leaf of `segmentMembership`, whether or not it is exported."""
        exported = (leaf for leaf in self.record_leaves if leaf.path == (SEGMENT_MEMBERSHIP,))
        kind = self.record_fields.fields[SEGMENT_MEMBERSHIP]
        return next(exported, Leaf("membership", (SEGMENT_MEMBERSHIP,), kind, kind))

    @cached_property
    def bound_record_leaves(self) -> tuple[Leaf, ...]:
        """The leaves of record sources that are read: those that are merged, and what profiles are chosen by."""
        if not self.selects_segments or self.membership in self.record_leaves:
            return self.record_leaves
        return (*self.record_leaves, self.membership)

    @cached_property
    def event_leaves(self) -> tuple[Leaf, ...]:
        """The leaves of event sources that the export needs; none if no event is attached."""
        return () if self.events is None else needed_leaves(self.events.fields, self.event_fields)

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal shapes only."""
        events = self.events and [to_json(self.events.fields), repr(self.events.identities)]
        types = [to_json(kind) for kind in (self.record_fields, self.event_fields, self.fields)]
        told = {"record_fields", "event_fields", "fields", "events"}
        others = [repr(getattr(self, member.name)) for member in fields(self) if member.name not in told]
        return json.dumps([events, types, others])


def shape_of(plan: ExportPlan, *, linked: bool) -> Shape:
    """Take from a plan what its expression depends on."""
    having_rows = [source for source in plan.sources if source.rows]
    kinds = {source.kind for source in having_rows if source.takes_part}
    events = plan.events
    return Shape(
        graph=plan.graph,
        record_fields=_filled(plan.record_fields),
        event_fields=_filled(plan.event_fields),
        fields=_filled(plan.fields),
        identities=plan.identities,
        events=None if events is None else EventShape(_filled(events.fields), events.identities),
        empty_profiles=plan.empty_profiles,
        has_records=DatasetKind.RECORD in kinds,
        has_events=DatasetKind.EVENT in kinds,
        has_others=any(not source.takes_part for source in having_rows),
        linked=linked,
        respelled=bool(plan.namespaces),
        segments_respelled=bool(plan.segment_namespaces),
        upserts=any(source.upserts for source in having_rows if source.takes_part),
        selects_segments=plan.segments is not None,
        selects_newer=plan.newer_than is not None,
    )


def _filled(fields: ObjectType) -> ObjectType:
    left = without_empty(fields)
    return left if isinstance(left, ObjectType) else EMPTY
