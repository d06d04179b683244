"""Resolution: where rows stand, which of them count, and which identities and rows are one person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.identity import Identity, IdentityKey, identity_key
from profile_export.domain.plan import ExportPlan, PinnedBatch
from profile_export.domain.policy import IdentityGraph


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
    """A source row in its place, its namespaces registered. `states` has all its identities.

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
    """What belongs to one profile, of what takes part: its records from the strongest, its events from the latest."""

    states: Mapping[Identity, str | None]
    primaries: Collection[Identity]
    records: Sequence[Row]
    events: Sequence[Row]


# --- Rows: their order, and which of them count ---


def placed(plan: ExportPlan, rows: Iterable[SourceRow]) -> Placed:
    """Give every row its place and ingest time (S8) and registered namespaces (S2), apart by what it is good for."""
    batches = {batch.id: batch for batch in plan.batches}
    sources = {source.dataset_id: source for source in plan.sources}
    found = Placed([], [], [])
    kinds = {DatasetKind.RECORD: found.records, DatasetKind.EVENT: found.events}
    for row in rows:
        source = sources[row.dataset_id]
        target = kinds[source.kind] if source.takes_part else found.others
        target.append(_in_place(row, batches[row.batch_id], plan.namespaces))
    return found


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
    """Keep of rows that are the same thing the one of the latest place: S9 for records, S16 for events."""
    return list({same(row): row for row in sorted(rows, key=lambda row: row.place)}.values())


def patched(
    records: Iterable[Row], merged: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
) -> list[Row]:
    """Make one fragment of all records of an identity in a dataset, in the place of the newest (S9).

    Args:
        records: The records of datasets that upsert.
        merged: Merges values, the newest first.
    """
    fragments: dict[Hashable, list[Row]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.place, reverse=True):
        fragments[record.dataset_id, record.primary].append(record)
    return [
        replace(
            found[0],
            states=_states((identity for record in found for identity in record.states), found),
            value=merged([record.value for record in found]),
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
    replaced or not, of a dataset that takes part or not (S4), and has all of them (S6).

    Args:
        graph: Which identities are one person.
        records: The fragments of datasets that take part.
        events: The events that count, of datasets that take part.
        found: All rows.
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
