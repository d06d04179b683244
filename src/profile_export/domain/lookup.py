"""Looking one person up: the plan to read by, and what is told. Nothing is told that an export would not write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from profile_export.domain.errors import FailedPreconditionError, NotFoundError
from profile_export.domain.identity import MAX_IDENTITIES, Identity, fold_namespace
from profile_export.domain.merge import Profile, people_in, written_profile
from profile_export.domain.plan import EventSelection, ExportPlan
from profile_export.domain.planning import Snapshot, plan_export
from profile_export.domain.policy import IdentityGraph, MergePolicy
from profile_export.domain.request import BoundRequest, EventList, ExportRequest
from profile_export.domain.resolution import Person, SourceRow
from profile_export.domain.schema import EMPTY
from profile_export.domain.selection import IdentitySelection, select_fields

_FIELDS = "fields"
_NOWHERE = "look-up"


@dataclass(frozen=True, slots=True)
class FoundProfile:
    """One person as merged under a policy.

    `values` is the row that an export would write, without events. `identities` and `dataset_ids` are sorted, the
    latter those that the person has records or events of. `ingest_time` is that of the newest record, of the newest
    event if there is none.
    """

    values: Profile
    identities: tuple[Identity, ...]
    dataset_ids: tuple[str, ...]
    ingest_time: datetime


# --- Plans ---


def plan_profile(policy: MergePolicy, snapshot: Snapshot, paths: Sequence[str]) -> ExportPlan:
    """Make the plan that a profile is merged by: an export of it alone. No path keeps every field.

    Raises:
        InvalidArgumentError: A path is unknown.
    """
    plan = plan_export(BoundRequest(ExportRequest(_NOWHERE), policy), snapshot, "")
    kept = select_fields(plan.record_fields, paths, _FIELDS, snapshot.spellings)
    return replace(plan, fields=kept.fields, identities=kept.identities)


def plan_events(policy: MergePolicy, snapshot: Snapshot, paths: Sequence[str]) -> ExportPlan:
    """Make the plan that events are listed by: an export of them alone. No path keeps every field.

    Raises:
        InvalidArgumentError: A path is unknown.
    """
    plan = plan_export(BoundRequest(ExportRequest(_NOWHERE, event_list=EventList()), policy), snapshot, "")
    kept = select_fields(plan.event_fields, paths, _FIELDS, snapshot.spellings)
    events = EventSelection(kept.fields, kept.identities, None, None)
    return replace(plan, fields=EMPTY, identities=IdentitySelection(), events=events)


# --- Answers ---


def profile_of(plan: ExportPlan, rows: Iterable[SourceRow], identity: Identity) -> FoundProfile:
    """Merge the one profile that an identity belongs to, also one that has events only; errors as `person_of`."""
    person = person_of(plan, rows, identity)
    return FoundProfile(
        values=written_profile(plan, person),
        identities=tuple(sorted(person.states)),
        dataset_ids=tuple(sorted({row.dataset_id for row in (*person.records, *person.events)})),
        ingest_time=max(row.ingest_time for row in person.records or person.events),
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
