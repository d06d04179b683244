"""What of a plan decides the text of its expression. Everything else is bound, so that equal shapes compile once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import ExportPlan
from profile_export.domain.policy import IdentityGraph
from profile_export.domain.schema import EMPTY, ObjectType, to_json
from profile_export.engines.leaves import Leaf, needed_leaves, without_empty


@dataclass(frozen=True)
class EventShape:
    """Which fields and identity members of events are attached."""

    fields: ObjectType
    identity_members: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """The form of an export, without its data: see `ExportPlan` for the members it shares with it.

    `linked` says whether any row has more identities than its primary one, `respelled` and `segments_respelled`
    whether any namespace was sent in another than its registered spelling (S2), `upserts` whether any source of records
    does (S9). Object types hold no empty objects.
    """

    graph: IdentityGraph
    record_fields: ObjectType
    event_fields: ObjectType
    fields: ObjectType
    identity_members: tuple[str, ...]
    events: EventShape | None
    empty_profiles: bool
    has_records: bool
    has_events: bool
    linked: bool
    respelled: bool
    segments_respelled: bool
    upserts: bool

    @property
    def kinds(self) -> tuple[DatasetKind, ...]:
        """The kinds of sources that have rows."""
        kinds = ((DatasetKind.RECORD, self.has_records), (DatasetKind.EVENT, self.has_events))
        return tuple(kind for kind, present in kinds if present)

    @cached_property
    def record_leaves(self) -> tuple[Leaf, ...]:
        """The leaves of record sources that the export needs."""
        return needed_leaves(self.fields, self.record_fields)

    @cached_property
    def event_leaves(self) -> tuple[Leaf, ...]:
        """The leaves of event sources that the export needs; none if no event is attached."""
        return () if self.events is None else needed_leaves(self.events.fields, self.event_fields)

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal shapes only."""
        events = self.events and [to_json(self.events.fields), self.events.identity_members]
        types = [to_json(kind) for kind in (self.record_fields, self.event_fields, self.fields)]
        flags = [self.empty_profiles, self.has_records, self.has_events, self.linked, self.upserts]
        return json.dumps(
            [self.graph, types, self.identity_members, events, flags, self.respelled, self.segments_respelled]
        )


def shape_of(plan: ExportPlan, *, linked: bool) -> Shape:
    """Take from a plan what its expression depends on."""
    kinds = {source.kind for source in plan.sources if source.rows}
    events = plan.events
    return Shape(
        graph=plan.graph,
        record_fields=_filled(plan.record_fields),
        event_fields=_filled(plan.event_fields),
        fields=_filled(plan.fields),
        identity_members=plan.identity_members,
        events=None if events is None else EventShape(_filled(events.fields), events.identity_members),
        empty_profiles=plan.empty_profiles,
        has_records=DatasetKind.RECORD in kinds,
        has_events=DatasetKind.EVENT in kinds,
        linked=linked,
        respelled=bool(plan.namespaces),
        segments_respelled=bool(plan.segment_namespaces),
        upserts=any(source.upserts for source in plan.sources if source.rows),
    )


def _filled(fields: ObjectType) -> ObjectType:
    left = without_empty(fields)
    return left if isinstance(left, ObjectType) else EMPTY
