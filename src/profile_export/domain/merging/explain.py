"""Why a profile has the values it has: of each field the record that won, and those that lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from operator import itemgetter
from typing import Any

from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.merge import Person, Row, SourceRow, placed, whole
from profile_export.domain.schemas.types import (
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
)

MOST_FIELDS = 1_000
"""How many fields are explained."""
MOST_LOST = 5
"""How many records are told of one field that have lost it, the strongest first."""


@dataclass(frozen=True, slots=True)
class FieldSource:
    """A record that has a value for a field: where it comes from, and what it says, as an export would write it."""

    dataset_id: str
    batch_id: str
    ingest_time: datetime
    value: Any


@dataclass(frozen=True, slots=True)
class FieldExplanation:
    """Of one field of a profile: whose value it has, and whose it has not; of the latter `lost_count` in all."""

    path: FieldPath
    won: FieldSource
    lost: tuple[FieldSource, ...]
    lost_count: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of the fields of a profile, as far as `MOST_FIELDS`; `more` are left."""

    fields: tuple[FieldExplanation, ...]
    more: int = 0


_Held = Sequence[tuple[Row, Any]]
"""Records from the strongest, each with its value of one field, which is not None."""
_Ranked = tuple[FieldPath, _Held, FieldType]
"""A field, the records that have it, whose first has won, and what is kept of the value."""
_BEGINNING = datetime.min.replace(tzinfo=UTC)


def explained(plan: ExportPlan, rows: Iterable[SourceRow], person: Person) -> Explanation:
    """Say of each leaf, map entry and membership of a profile where it comes from.

    `identityMap` is not among them, since no record wins it (S6). `plan` and `rows` are as for `merge_profiles`,
    `person` is one of `people_in`.
    """
    batches = {batch.number: batch.id for batch in plan.batches}
    held = [(record, record.value) for record in _records(plan, rows, person)]
    ranked = chain(_leaves(held, plan.record_fields, plan.fields, ()), _memberships(plan, held))
    shown = ((path, found, kept) for path, found, kept in ranked if whole(found[0][1], kept) is not None)
    fields = tuple(_explanation(batches, *one) for one in islice(shown, MOST_FIELDS))
    return Explanation(fields, sum(1 for _ in shown))


def _explanation(
    batches: Mapping[int, str], path: FieldPath, found: _Held, kept: FieldType
) -> FieldExplanation:
    won, *lost = (
        FieldSource(record.dataset_id, batches[record.place.number], record.ingest_time, whole(value, kept))
        for record, value in found[: MOST_LOST + 1]
    )
    return FieldExplanation(path, won, tuple(lost), len(found) - 1)


def _records(plan: ExportPlan, rows: Iterable[SourceRow], person: Person) -> Iterator[Row]:
    """Yield the records that make up a person's fragments, from the strongest: several where a dataset upserts (S9)."""
    upserting = {source.dataset_id for source in plan.sources if source.upserts}
    patches: dict[tuple[str, Identity], list[Row]] = defaultdict(list)
    for record in placed(plan, rows).records if upserting else ():
        patches[record.dataset_id, record.primary].append(record)
    for fragment in person.records:
        if fragment.dataset_id in upserting:
            together = patches[fragment.dataset_id, fragment.primary]
            yield from sorted(together, key=lambda record: record.place, reverse=True)
        else:
            yield fragment


def _leaves(held: _Held, kind: FieldType, kept: FieldType, path: FieldPath) -> Iterator[_Ranked]:
    """Rank the records that have a leaf (S12), or an entry of a map (S14); `kept` is what is kept of `kind`."""
    if isinstance(kind, ObjectType) and isinstance(kept, ObjectType):
        for name, member in kept.fields.items():
            if (*path, name) != (SEGMENT_MEMBERSHIP,):
                having = [(row, value[name]) for row, value in held if value.get(name) is not None]
                yield from _leaves(having, kind.fields[name], member, (*path, name))
    elif isinstance(kind, MapType) and isinstance(kept, MapType):
        for key in sorted({key for _, value in held for key in value}):
            having = [(row, value[key]) for row, value in held if value.get(key) is not None]
            yield from _single(having, kind.value, kept.kept(key), (*path, key))
    else:
        yield from _single(held, kind, kept, path)


def _single(held: _Held, kind: FieldType, kept: FieldType | None, path: FieldPath) -> Iterator[_Ranked]:
    having = [(row, value) for row, value in held if whole(value, kind) is not None]
    if having and kept is not None:
        yield path, having, kept


def _memberships(plan: ExportPlan, held: _Held) -> Iterator[_Ranked]:
    """Rank the records that have an entry for a segment: that of the newest qualification comes first (S15)."""
    kept = plan.fields.fields.get(SEGMENT_MEMBERSHIP)
    entries: dict[tuple[str, str], list[tuple[Row, Any]]] = defaultdict(list)
    for row, value in held:
        memberships = whole(value.get(SEGMENT_MEMBERSHIP), SEGMENT_MEMBERSHIP_TYPE) or {}
        for namespace, segments in sorted(memberships.items()):
            registered = plan.segment_namespaces.get(namespace, namespace)
            for segment, entry in segments.items():
                entries[registered, segment].append((row, entry))
    for (namespace, segment), found in sorted(entries.items(), key=itemgetter(0)):
        of_namespace = kept.kept(namespace) if isinstance(kept, MapType) else None
        member = of_namespace.kept(segment) if isinstance(of_namespace, MapType) else None
        if member is not None:
            newest_first = sorted(found, key=_qualification, reverse=True)
            yield (SEGMENT_MEMBERSHIP, namespace, segment), newest_first, member


def _qualification(held: tuple[Row, Any]) -> datetime:
    _, entry = held
    time: datetime | None = entry.get("lastQualificationTime")
    return time or _BEGINNING
