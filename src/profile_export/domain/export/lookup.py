"""Looking one person up, and listing that person's events. Nothing is told that an export would not write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from profile_export.domain.errors import FailedPreconditionError, NotFoundError
from profile_export.domain.export.plan import EventSelection, ExportPlan, Snapshot, plan_export
from profile_export.domain.export.request import BoundRequest, EventList, ExportRequest, check_window
from profile_export.domain.export.selection import IdentitySelection, select_fields
from profile_export.domain.lists import (
    Filter,
    Order,
    Page,
    PageRequest,
    Reader,
    cut_page,
    instant,
    read_filter,
    read_order,
    refused_token,
)
from profile_export.domain.merging.explain import Explanation, explained
from profile_export.domain.merging.identity import (
    MAX_IDENTITIES,
    Identity,
    fold_namespace,
    identity_key,
    profile_id,
)
from profile_export.domain.merging.merge import (
    EventKey,
    Person,
    Place,
    Profile,
    Row,
    SourceRow,
    event_key,
    people_in,
    written_event,
    written_profile,
)
from profile_export.domain.merging.policy import IdentityGraph, MergePolicy
from profile_export.domain.schemas.types import EMPTY, EVENT_ID, EVENT_TIME

_FIELDS = "fields"
_NOWHERE = "look-up"


@dataclass(frozen=True, slots=True)
class FoundProfile:
    """One person as merged under a policy.

    `id` is what exported rows have as `_profile_id`, `values` what else an export would write, without events.
    `identities` and `dataset_ids` are sorted, the latter those that the person has records or events of. `ingest_time`
    is that of the newest record, of the newest event if there is none. `explanation` is None unless it was asked for.
    """

    id: str
    values: Profile
    identities: tuple[Identity, ...]
    dataset_ids: tuple[str, ...]
    ingest_time: datetime
    explanation: Explanation | None = None


# --- Plans ---


def plan_profile(policy: MergePolicy, snapshot: Snapshot, paths: Sequence[str]) -> ExportPlan:
    """Make the plan that a profile is merged by, an export of it alone, with all fields if no path is named.

    Raises:
        InvalidArgumentError: A path is unknown.
    """
    plan = plan_export(BoundRequest(ExportRequest(_NOWHERE), policy), snapshot, "")
    kept = select_fields(plan.record_fields, paths, _FIELDS, snapshot.spellings)
    return replace(plan, fields=kept.fields, identities=kept.identities)


def plan_events(policy: MergePolicy, snapshot: Snapshot, paths: Sequence[str]) -> ExportPlan:
    """Make the plan that events are listed by, an export of them alone; fields and errors as `plan_profile`."""
    plan = plan_export(BoundRequest(ExportRequest(_NOWHERE, event_list=EventList()), policy), snapshot, "")
    kept = select_fields(plan.event_fields, paths, _FIELDS, snapshot.spellings)
    events = EventSelection(kept.fields, kept.identities, None, None)
    return replace(plan, fields=EMPTY, identities=IdentitySelection(), events=events)


# --- Answers ---


def profile_of(
    plan: ExportPlan, rows: Sequence[SourceRow], identity: Identity, *, explain: bool = False
) -> FoundProfile:
    """Merge the one profile that an identity belongs to, also one that has events only; errors as `person_of`.

    With `explain` it says of each field where its value comes from.
    """
    person = person_of(plan, rows, identity)
    return FoundProfile(
        id=profile_id(person.first),
        values=written_profile(plan, person),
        identities=tuple(sorted(person.states)),
        dataset_ids=tuple(sorted({row.dataset_id for row in (*person.records, *person.events)})),
        ingest_time=max(row.ingest_time for row in person.records or person.events),
        explanation=explained(plan, rows, person) if explain else None,
    )


def person_of(plan: ExportPlan, rows: Iterable[SourceRow], identity: Identity) -> Person:
    """Find the one person that an identity belongs to.

    Args:
        plan: As `plan_profile` or `plan_events` makes it.
        rows: All rows of the person, perhaps with others.
        identity: Any of the person; the primary one with graph `none` (S5).

    Raises:
        NotFoundError: Nothing of the person is in a dataset that takes part.
        FailedPreconditionError: The person has too many identities (S7).
    """
    for person in people_in(plan, rows):
        known = person.primaries if plan.graph is IdentityGraph.NONE else person.states
        if (person.records or person.events) and any(_same(identity, one) for one in known):
            return _within_limit(person, identity)
    found = "any identity of a profile is found"
    if plan.graph is IdentityGraph.NONE:
        found = "only primary identities are found, because its graph is 'none'"
    elif identity_key(identity) in plan.excluded:
        found = "it excludes this identity, which is found only where a row has it as its primary one"
    raise NotFoundError(
        "PROFILE_NOT_FOUND",
        f"Nothing is known of {_shown(identity)} under this merge policy: {found}.",
        metadata={"id": _shown(identity)},
    )


def _same(one: Identity, other: Identity) -> bool:
    return one.id == other.id and fold_namespace(one.namespace) == fold_namespace(other.namespace)


def _within_limit(person: Person, identity: Identity) -> Person:
    if len(person.states) <= MAX_IDENTITIES:
        return person
    raise FailedPreconditionError(
        "TOO_MANY_IDENTITIES",
        f"The profile of {_shown(identity)} has {len(person.states)} identities; more than {MAX_IDENTITIES} are left "
        "out, as by an export. Most often a source gives many people the same identity.",
        metadata={"id": _shown(identity), "identities": str(len(person.states))},
    )


def _shown(identity: Identity) -> str:
    return f"{identity.namespace}:{identity.id}"


_TIME_ORDER = "event_time"


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """One experience event of a person; `values` is what an export would attach, empty if no field is left."""

    id: str
    event_time: datetime
    ingest_time: datetime
    dataset_id: str
    values: Profile


@dataclass(frozen=True, slots=True)
class EventListing:
    """Which events of a person are listed, and in which order: those that happened in [start, end), None for open."""

    start_time: datetime | None
    end_time: datetime | None
    filter: Filter
    order: Order

    @classmethod
    def of(
        cls, start_time: datetime | None, end_time: datetime | None, filter_text: str, order_text: str
    ) -> EventListing:
        """Read what a caller asks for; the oldest come first unless the order says otherwise.

        Raises:
            InvalidArgumentError: The filter or the order is wrong, or the start is later than the end.
        """
        check_window(start_time, end_time, "start_time", "end_time")
        known: dict[str, Reader] = {"dataset_id": str, "id": str, "ingest_time": instant}
        order = read_order(order_text, (_TIME_ORDER,)) or Order(_TIME_ORDER)
        return cls(start_time, end_time, read_filter(filter_text, known), order)

    def lists(self, event: Row) -> bool:
        """Say whether an event is among those asked for."""
        happened = event.value[EVENT_TIME]
        told = {"dataset_id": event.dataset_id, "id": event.value[EVENT_ID], "ingest_time": event.ingest_time}
        return (
            (self.start_time is None or self.start_time <= happened)
            and (self.end_time is None or happened < self.end_time)
            and all(condition.holds(told[condition.field]) for condition in self.filter)
        )


def events_of(
    plan: ExportPlan,
    rows: Iterable[SourceRow],
    identity: Identity,
    listing: EventListing,
    request: PageRequest,
) -> Page[FoundEvent]:
    """List a page of the events of one profile, in the order of S17 or the reverse, each `_id` once (S16).

    `plan`, `rows`, `identity` and errors are as with `person_of`; InvalidArgumentError if the page token was made up.
    """
    after = _read_cursor(request) if request.cursor else None
    latest_first = listing.order.descending
    listed = sorted(
        (event for event in person_of(plan, rows, identity).events if listing.lists(event)),
        key=event_key,
        reverse=latest_first,
    )
    if after:
        listed = [
            event
            for event in listed
            if (event_key(event) < after if latest_first else event_key(event) > after)
        ]
    page = cut_page(listed[: request.size + 1], request, _cursor)
    return page.turned(lambda event: _found(plan, event))


def _cursor(event: Row) -> str:
    happened, *rest = event_key(event)
    return json.dumps([happened.isoformat(), *rest])


def _read_cursor(request: PageRequest) -> EventKey:
    try:
        happened, event_id, dataset_id, (number, row) = json.loads(request.cursor)
        return instant(happened), str(event_id), str(dataset_id), Place(int(number), int(row))
    except (ValueError, TypeError):
        raise refused_token() from None


def _found(plan: ExportPlan, event: Row) -> FoundEvent:
    selection = plan.events
    values = written_event(plan, selection, event) if selection else None
    return FoundEvent(
        event.value[EVENT_ID], event.value[EVENT_TIME], event.ingest_time, event.dataset_id, values or {}
    )
