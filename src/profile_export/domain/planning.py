"""From a bound request and a snapshot to the plan that every attempt of a job carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import EventSelection, ExportPlan, PinnedBatch, Source
from profile_export.domain.request import BoundRequest
from profile_export.domain.schema import ObjectType
from profile_export.domain.selection import select_fields


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The batches of all source datasets that count at one moment, and what else a plan is made of.

    `unions` holds the union schema of record and of event sources; the two mappings are as `ExportPlan` has them.
    """

    sources: tuple[Source, ...]
    batches: tuple[PinnedBatch, ...]
    unions: Mapping[DatasetKind, ObjectType]
    namespaces: Mapping[str, str]
    segment_namespaces: Mapping[str, str]


def plan_export(bound: BoundRequest, snapshot: Snapshot, batch_id: str) -> ExportPlan:
    """Make the plan of a job.

    Raises:
        InvalidArgumentError: A field that the request names is not known any more.
    """
    request = bound.request
    record_fields, event_fields = snapshot.unions[DatasetKind.RECORD], snapshot.unions[DatasetKind.EVENT]
    kept = select_fields(record_fields, request.fields, "spec.fields")
    events = None
    if request.event_list:
        selection = select_fields(event_fields, request.event_list.fields, "spec.event_list.fields")
        events = EventSelection(
            selection.fields,
            selection.identity_members,
            request.event_list.from_ingest_time,
            request.event_list.to_ingest_time,
        )
    return ExportPlan(
        batch_id=batch_id,
        graph=bound.policy.graph,
        sources=snapshot.sources,
        batches=snapshot.batches,
        namespaces=snapshot.namespaces,
        segment_namespaces=snapshot.segment_namespaces,
        record_fields=record_fields,
        event_fields=event_fields,
        fields=kept.fields,
        identity_members=kept.identity_members,
        events=events,
        empty_profiles=request.empty_profiles,
    )
