"""Resolution and merging, said once in plain Python: SEMANTICS with its sentence numbers, for rows in memory.

Profile look-up answers with it, and every engine is held to it row for row.

Values are plain: objects and maps are dicts, arrays lists, instants aware datetimes. What comes out holds no null
and no empty object or map except as an item of an array, where it keeps its place as None (S13, S24); a profile
without attached events has no `timeSeriesEvents`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Context, Decimal
from typing import Any, NamedTuple

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    EventSelection,
    ExportCounts,
    ExportPlan,
    LinkingIdentity,
    PinnedBatch,
    strongest_link,
)
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.merging.identity import (
    MAX_IDENTITIES,
    UNUSUALLY_MANY,
    Identity,
    IdentityKey,
    identity_key,
    profile_id,
)
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    DOUBLE,
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    MAX_DECIMAL_DIGITS,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TIME_SERIES_EVENTS,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
)


@dataclass(frozen=True, slots=True)
class StatedIdentity:
    """An identity as a row states it: namespace as sent, `authenticated_state` None where absent or ambiguous (S6)."""

    identity: Identity
    authenticated_state: str | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A record or experience event as its data file holds it.

    `links` are its other identities, each once. `value` has the user's fields without `identityMap`, and no empty
    array whose item type was unknown when its batch was committed (S13).
    """

    dataset_id: str
    batch_id: str
    row: int
    primary: StatedIdentity
    value: Mapping[str, Any]
    links: tuple[StatedIdentity, ...] = ()


class Place(NamedTuple):
    """Where a row stands in the order of everything the tenant has committed (S8)."""

    number: int
    row: int


@dataclass(frozen=True, slots=True)
class Row:
    """A source row in its place, its namespaces registered. `states` has all its identities that count (S4).

    `strength` is that of its batch.
    """

    dataset_id: str
    strength: int
    place: Place
    ingest_time: datetime
    primary: Identity
    states: Mapping[Identity, str | None]
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """All rows of a plan: `records` and `events` of datasets that take part, and `others` (S10)."""

    records: list[Row]
    events: list[Row]
    others: list[Row]


@dataclass(frozen=True, slots=True)
class Person:
    """What belongs to one profile, of what takes part: its records from the strongest, its events from the latest.

    `first` is the identity that gives the profile its key.
    """

    first: Identity
    states: Mapping[Identity, str | None]
    primaries: Collection[Identity]
    records: Sequence[Row]
    events: Sequence[Row]


# --- Rows: their order, and which of them count ---


def placed(plan: ExportPlan, rows: Iterable[SourceRow]) -> Placed:
    """Give every row its place and ingest time (S8) and registered namespaces (S2), apart by what it is good for.

    Links to and from what the plan excludes are gone (S4).
    """
    batches = {batch.id: batch for batch in plan.batches}
    sources = {source.dataset_id: source for source in plan.sources}
    found = Placed([], [], [])
    kinds = {DatasetKind.RECORD: found.records, DatasetKind.EVENT: found.events}
    excluded = frozenset(plan.excluded)
    for row in rows:
        source = sources[row.dataset_id]
        target = kinds[source.kind] if source.takes_part else found.others
        counting = replace(row, links=_counting_links(row, excluded)) if excluded else row
        target.append(_in_place(counting, batches[row.batch_id], plan.namespaces))
    return found


def _counting_links(row: SourceRow, excluded: Collection[IdentityKey]) -> tuple[StatedIdentity, ...]:
    if identity_key(row.primary.identity) in excluded:
        return ()
    return tuple(link for link in row.links if identity_key(link.identity) not in excluded)


def _in_place(row: SourceRow, batch: PinnedBatch, namespaces: Mapping[str, str]) -> Row:
    states = {
        Identity(namespaces.get(stated.identity.namespace, stated.identity.namespace), stated.identity.id): (
            stated.authenticated_state
        )
        for stated in (row.primary, *row.links)
    }
    primary = next(iter(states))
    place = Place(batch.number, row.row)
    return Row(row.dataset_id, batch.strength, place, batch.ingest_time, primary, states, row.value)


def newest(rows: Iterable[Row], same: Callable[[Row], Hashable]) -> list[Row]:
    """Keep the row of the latest place among those that are the same thing: S9 for records, S16 for events."""
    return list({same(row): row for row in sorted(rows, key=lambda row: row.place)}.values())


def patched(plan: ExportPlan, records: Iterable[Row]) -> list[Row]:
    """Make one fragment of all records of an identity in a dataset that upserts, in the place of the newest (S9)."""
    fragments: dict[Hashable, list[Row]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.place, reverse=True):
        fragments[record.dataset_id, record.primary].append(record)
    return [
        replace(
            found[0],
            states=_states((identity for record in found for identity in record.states), found),
            value=_merged_record(plan, [record.value for record in found]),
        )
        for found in fragments.values()
    ]


def _strength(record: Row) -> tuple[int, Place]:
    """Rank a fragment, the greater the stronger: by dataset if the policy says so, then by place (S10)."""
    return record.strength, record.place


# --- People: which rows and identities belong to one profile ---


def people(
    graph: IdentityGraph, records: Iterable[Row], events: Iterable[Row], found: Placed
) -> Iterator[Person]:
    """Bring together what belongs to one profile, in the order of profile keys.

    With graph `none` every primary identity is a profile of its own (S5), whose identities are those of its current
    records and its events. With `pdg` a profile is a component of the identities that occur together on any row,
    replaced or not, of a dataset that takes part or not (S4), and has all of them (S6). `records` are the fragments and
    `events` the events that count, both of datasets that take part; `found` are all rows.
    """
    linking = [*found.records, *found.events, *found.others] if graph is IdentityGraph.PDG else ()
    firsts = resolve(row.states for row in linking)
    identities: dict[Identity, dict[Identity, None]] = defaultdict(dict)
    for identity, first in firsts.items():
        identities[first][identity] = None
    fragments: dict[Identity, list[Row]] = defaultdict(list)
    attached: dict[Identity, list[Row]] = defaultdict(list)
    for rows, by_person in ((records, fragments), (events, attached)):
        for row in rows:
            first = firsts.get(row.primary, row.primary)
            by_person[first].append(row)
            identities[first].update(dict.fromkeys(row.states))
    for row in found.others:
        identities[firsts.get(row.primary, row.primary)].setdefault(row.primary)
    for first in sorted(identities, key=identity_key):
        strongest = sorted(fragments[first], key=_strength, reverse=True)
        latest = sorted(attached[first], key=lambda event: event.place, reverse=True)
        yield Person(
            first,
            _states(identities[first], [*strongest, *latest]),
            {row.primary for row in (*strongest, *latest)},
            strongest,
            latest,
        )


def _states(identities: Iterable[Identity], rows: Iterable[Row]) -> Mapping[Identity, str | None]:
    """Give each identity the state of the first row that has one: strongest fragment, then latest event (S6)."""
    states: dict[Identity, str | None] = dict.fromkeys(identities)
    for row in rows:
        for identity, state in row.states.items():
            if states[identity] is None:
                states[identity] = state
    return states


# --- Components ---


def resolve(links: Iterable[Iterable[Identity]]) -> Mapping[Identity, Identity]:
    """Return for every identity the first of its person: that of its component with the smallest low half of its key.

    Args:
        links: Groups of identities that occur together (S4), with namespaces in one spelling. A chain of groups of
            any length is one component, and a group of one is known too.
    """
    parents: dict[Identity, Identity] = {}
    for group in links:
        roots = {_root(parents, identity) for identity in group}
        first = min(roots, key=_low_first)
        parents.update(dict.fromkeys(roots, first))
    return {identity: _root(parents, identity) for identity in parents}


def _low_first(identity: Identity) -> IdentityKey:
    """Rank by the half of the key that work is not cut by, so that profiles lie as evenly in ranges as identities."""
    high, low = identity_key(identity)
    return low, high


def _root(parents: dict[Identity, Identity], identity: Identity) -> Identity:
    """Follow an identity to the root of its component, and shorten the way for whoever comes next."""
    root = identity
    while (parent := parents.setdefault(root, root)) != root:
        root = parent
    while (parent := parents[identity]) != root:
        parents[identity], identity = root, parent
    return root


EventKey = tuple[datetime, str, str, Place]
Profile = dict[str, Any]
_DECIMALS = Context(prec=MAX_DECIMAL_DIGITS)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The exported profiles by identity key, and what was read, kept and left out.

    `ids` says of each profile what its rows have as `_profile_id`, `segments` at which positions of the plan's segments
    it is in one (S21).
    """

    profiles: tuple[Profile, ...]
    ids: tuple[str, ...]
    segments: tuple[tuple[int, ...], ...]
    counts: ExportCounts


def merge_profiles(plan: ExportPlan, rows: Iterable[SourceRow]) -> MergeResult:
    """Merge rows into profiles as a plan says; of its sources only what they are is looked at, never the files.

    Args:
        plan: The plan that an engine would get.
        rows: All rows of the plan's sources, or all that any of the profiles in question may need.
    """
    found, current, happened, persons = _read(plan, rows)
    crowded: set[Identity] = set()
    counts: Counter[str] = Counter(fragments_read=len(current), events_read=len(happened))
    namespaces: Counter[str] = Counter()
    members: Counter[int] = Counter()
    profiles: list[tuple[Profile, str, tuple[int, ...]]] = []
    for person in persons:
        counts["profiles_read"] += 1
        if len(person.states) > UNUSUALLY_MANY:
            crowded.update(person.states)
        counts["events_with_record"] += len(person.events) if person.records else 0
        merged = _merged_record(plan, [record.value for record in person.records])
        entries = plan.segments.entries(merged.get(SEGMENT_MEMBERSHIP) or {}) if plan.segments else {}
        members.update(entries.keys())
        admitted = _admitted(plan, entries)
        if left_out := _left_out(plan, person, admitted):
            counts.update(left_out)
            continue
        profile = _profile(plan, person, merged)
        profiles.append((profile, profile_id(person.first), admitted))
        counts["profiles_merged"] += len(person.records) > 1
        counts["events_exported"] += len(profile.get(TIME_SERIES_EVENTS, ()))
        namespaces.update({identity.namespace for identity in person.states})
    counts["profiles_exported"] = len(profiles)
    figures: dict[str, Any] = dict(counts)
    return MergeResult(
        tuple(profile for profile, _, _ in profiles),
        tuple(found for _, found, _ in profiles),
        tuple(admitted for _, _, admitted in profiles),
        replace(
            ExportCounts(**figures),
            by_namespace=dict(sorted(namespaces.items())),
            segment_members=dict(sorted(members.items())),
            links_most=_links_most(plan, found, crowded),
        ),
    )


def _links_most(plan: ExportPlan, found: Placed, crowded: Collection[Identity]) -> LinkingIdentity | None:
    """Find the identity that occurs with the most others, among those of profiles of unusually many; with a graph."""
    others: dict[Identity, set[Identity]] = defaultdict(set)
    for row in (*found.records, *found.events, *found.others) if plan.graph is IdentityGraph.PDG else ():
        if row.primary in crowded:
            for identity in row.states.keys() - {row.primary}:
                others[row.primary].add(identity)
                others[identity].add(row.primary)
    return strongest_link(
        LinkingIdentity(identity.namespace, identity.id, len(linked)) for identity, linked in others.items()
    )


def people_in(plan: ExportPlan, rows: Iterable[SourceRow]) -> Iterator[Person]:
    """Bring together what belongs to each profile, even if an export leaves it out; `rows` as for `merge_profiles`."""
    *_, persons = _read(plan, rows)
    return persons


def _read(
    plan: ExportPlan, rows: Iterable[SourceRow]
) -> tuple[Placed, list[Row], list[Row], Iterator[Person]]:
    """Find all rows, the fragments and the events that count, and whose they are."""
    found = placed(plan, rows)
    current = _fragments(plan, found.records)
    happened = newest(found.events, lambda event: (event.dataset_id, event.primary, event.value[EVENT_ID]))
    return found, current, happened, people(plan.graph, current, happened, found)


def _fragments(plan: ExportPlan, records: Sequence[Row]) -> list[Row]:
    """Make the records of each identity in a dataset one: the newest of them, or what they patch together (S9)."""
    upserting = {source.dataset_id for source in plan.sources if source.upserts}
    replacing = [record for record in records if record.dataset_id not in upserting]
    patching = [record for record in records if record.dataset_id in upserting]
    return [
        *newest(replacing, lambda record: (record.dataset_id, record.primary)),
        *patched(plan, patching),
    ]


def _admitted(plan: ExportPlan, entries: Mapping[int, Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the positions of the segments that let a profile in (S21)."""
    if plan.segments is None:
        return ()
    return tuple(position for position, entry in entries.items() if plan.segments.admits(position, entry))


def _left_out(plan: ExportPlan, person: Person, admitted: Collection[int]) -> Mapping[str, int]:
    """Say under which figures a profile that is left out counts; none if it is exported.

    The first reason counts: not listed (S10), too many identities (S7), events only (S19), not newer (S20), not in
    segments (S21, S22).
    """
    told = person.records or person.events
    if not told:
        return {"not_listed": 1}
    if len(person.states) > MAX_IDENTITIES:
        return {
            "too_many_identities": 1,
            "identities_left_out": len(person.states),
            "fragments_left_out": len(person.records),
        }
    if not person.records and not plan.empty_profiles:
        return {"events_only": 1}
    if plan.newer_than and max(row.ingest_time for row in told) <= plan.newer_than:
        return {"not_newer": 1}
    if plan.segments and not admitted:
        return {"not_in_segments": 1}
    return {}


# --- Profiles: merged fragments and attached events ---


def written_profile(plan: ExportPlan, person: Person) -> Profile:
    """Write the profile of one person, whether or not an export would leave it out."""
    return _profile(plan, person, _merged_record(plan, [record.value for record in person.records]))


def _profile(plan: ExportPlan, person: Person, merged: Mapping[str, Any]) -> Profile:
    """Write one profile: merge first and select last, so that `fields` never changes which value wins (S23)."""
    profile: Profile = whole(merged, plan.fields) or {}
    if known := _identity_map(person.states, person.primaries, plan.identities):
        profile[IDENTITY_MAP] = known
    if plan.events is not None and (attached := _time_series(plan, plan.events, person.events)):
        profile[TIME_SERIES_EVENTS] = attached
    return profile


def _merged_record(plan: ExportPlan, values: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Merge the values of records or fragments, the strongest first (S12 to S15)."""
    merged = _merged(values, plan.record_fields) or {}
    return {**merged, SEGMENT_MEMBERSHIP: _merged_segments(plan, plan.record_fields, values)}


def _merged(values: Sequence[Any], kind: FieldType) -> Any:
    """Merge the values of fragments, the strongest first; None if none has any.

    Objects merge by leaf (S12) and maps by key, where a value comes whole even if it is an object (S14). Everything
    else, arrays among it, comes whole from the first that has it: null and objects without any value never
    override, an empty text or array does (S13).
    """
    present = [value for value in values if value is not None]
    match kind:
        case ObjectType(fields):
            found = {
                name: _merged([value.get(name) for value in present], member)
                for name, member in fields.items()
            }
            return _with_values(found)
        case MapType():
            weakest_first = [whole(value, kind) or {} for value in reversed(present)]
            return {key: value for entries in weakest_first for key, value in entries.items()} or None
        case _:
            return whole(present[0], kind) if present else None


def whole(value: Any, kind: FieldType) -> Any:
    """Take of one value what its type names (S23), without what is null or empty (S13); None if nothing is left.

    Items of an array keep their number and order, and are None where nothing is left (S13, S24). Numbers become
    the type that holds those of every source.
    """
    if value is None:
        return None
    match kind:
        case ObjectType(fields):
            return _with_values({name: whole(value.get(name), member) for name, member in fields.items()})
        case MapType():
            kept = {key: kind.kept(key) for key in value}
            return _with_values({key: whole(value[key], member) for key, member in kept.items() if member})
        case ArrayType(item):
            return [whole(entry, item) for entry in value]
        case DecimalType(_, scale):
            return _DECIMALS.quantize(Decimal(value), Decimal(1).scaleb(-scale))
        case _:
            return float(value) if kind == DOUBLE else value


def _with_values(members: Mapping[str, Any]) -> dict[str, Any] | None:
    """Leave out members that are null; an object or map without any value is null itself (S13)."""
    return {name: value for name, value in members.items() if value is not None} or None


def _merged_segments(plan: ExportPlan, fields: ObjectType, values: Sequence[Mapping[str, Any]]) -> Any:
    """Merge `segmentMembership` of fragments, the strongest first; None if none has an entry.

    Per registered namespace and segment the whole entry of the newest `lastQualificationTime` stays; among equals the
    strongest fragment's, and within one record that of the namespace that comes first as sent (S2, S15).
    """
    kind = fields.fields.get(SEGMENT_MEMBERSHIP, SEGMENT_MEMBERSHIP_TYPE)
    merged: dict[str, dict[str, Any]] = {}
    for value in values:
        memberships = whole(value.get(SEGMENT_MEMBERSHIP), kind) or {}
        for namespace, segments in sorted(memberships.items()):
            known = merged.setdefault(plan.segment_namespaces.get(namespace, namespace), {})
            for segment, entry in segments.items():
                if segment not in known or _qualified_later(entry, known[segment]):
                    known[segment] = entry
    return merged or None


def _qualified_later(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compare two memberships by `lastQualificationTime`, of which none is the oldest (S15)."""
    time, other_time = entry.get("lastQualificationTime"), other.get("lastQualificationTime")
    return time is not None and (other_time is None or time > other_time)


def _identity_map(
    states: Mapping[Identity, str | None], primaries: Collection[Identity], kept: IdentitySelection
) -> Profile | None:
    """Write identities by namespace, items sorted by id (S6), and of them what is kept (S25); None if nothing is.

    Text compares as UTF-8 bytes do: Python's order of code points is the same.
    """
    found: dict[str, list[Profile]] = defaultdict(list)
    for identity in sorted(states):
        item = {
            "id": identity.id,
            "authenticatedState": states[identity],
            "primary": True if identity in primaries else None,
        }
        found[identity.namespace].append(item)
    return whole(found, kept.type) if kept.type else None


def _time_series(plan: ExportPlan, selection: EventSelection, events: Iterable[Row]) -> list[Profile | None]:
    """List the events in the window (S18), in the order of S17, each with the selected fields (S23 to S25)."""
    after, up_to = selection.from_ingest_time, selection.to_ingest_time
    kept = [
        event
        for event in events
        if (after is None or after < event.ingest_time) and (up_to is None or event.ingest_time <= up_to)
    ]
    return [written_event(plan, selection, event) for event in sorted(kept, key=event_key)]


def event_key(event: Row) -> EventKey:
    """Return what events are ordered by (S17)."""
    return event.value[EVENT_TIME], event.value[EVENT_ID], event.dataset_id, event.place


def written_event(plan: ExportPlan, selection: EventSelection, event: Row) -> Profile | None:
    """Write one event, its namespaces in the registered spelling too (S2); None if no selected field has a value."""
    segments = _merged_segments(plan, plan.event_fields, [event.value])
    value = {**event.value, SEGMENT_MEMBERSHIP: segments}
    written: Profile = whole(value, selection.fields) or {}
    if known := _identity_map(event.states, {event.primary}, selection.identities):
        written[IDENTITY_MAP] = known
    return written or None
