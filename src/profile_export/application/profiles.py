"""Looking one person up as exports would merge it, and the nearest path for one that no source has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

from profile_export.application.mappings import Mappings
from profile_export.application.ports import Lake
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import FailedPreconditionError, UnavailableError
from profile_export.domain.export.lookup import (
    EventListing,
    FoundEvent,
    FoundProfile,
    events_of,
    plan_events,
    plan_profile,
    profile_of,
)
from profile_export.domain.export.plan import (
    EngineDiedError,
    EngineFailedError,
    ExportPlan,
    Snapshot,
    takes_long,
)
from profile_export.domain.export.selection import UnknownFieldError, UnknownPath
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key
from profile_export.domain.merging.policy import IdentityGraph, MergePolicy
from profile_export.lake.rows import source_rows
from profile_export.processes.turns import FairTurns, compute, compute_if
from profile_export.store.catalog.policies import Policies
from profile_export.store.files.snapshots import Snapshots

MOST_SUGGESTIONS = 5
"""How many unknown paths of one request get a suggestion: whoever sends more of them has not mistyped them all."""
# Comparing takes time by both lengths, and what differs later than this is no slip of the pen.
_MOST_COMPARED = 200
# Nothing else runs in the process while one call compares.
_COMPARED_AT_ONCE = 500
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def nearest_path(unknown: UnknownPath) -> str:
    """Return the known path of the least edit distance, the first in UTF-8 of several; empty if nothing is known."""
    path = unknown.path.strip()[:_MOST_COMPARED]
    # Code points sort as their UTF-8 does.
    known = sorted(unknown.candidates())
    nearest, least = "", _MOST_COMPARED + 1
    for start in range(0, len(known), _COMPARED_AT_ONCE):
        some = known[start : start + _COMPARED_AT_ONCE]
        found = extractOne(
            path,
            [one[:_MOST_COMPARED] for one in some],
            scorer=Levenshtein.distance,
            score_cutoff=least - 1,
        )
        if found is not None:
            _, least, place = found
            nearest = some[place]
        if least == 0:
            break
    return nearest


def nearest_paths(unknown: Sequence[UnknownPath]) -> Sequence[str]:
    """Return a suggestion for each of the first unknown paths of a request, and empty text for the others."""
    told = [nearest_path(one) for one in unknown[:MOST_SUGGESTIONS]]
    return [*told, *[""] * (len(unknown) - len(told))]


def suggesting(work: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function that resolves field paths tell the nearest known one with an unknown one."""

    @wraps(work)
    def suggest(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return work(*args, **kwargs)
        except UnknownFieldError as error:
            raise error.with_nearest(nearest_path(error.unknown)) from None

    return suggest


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a call asks for, merged how, and of what fields.

    No `policy_id` means the default, no `policy_version` the newest; no field means all.
    """

    tenant: Tenant
    identity: Identity
    policy_id: str
    policy_version: int | None
    fields: Sequence[str]


_MOST_AT_ONCE = 4
"""How many people's rows are held at a time, over all tenants; see `MOST_HELD`."""


class ProfileUseCases:
    """Looks people up in what the store and the lake hold now."""

    def __init__(self, snapshots: Snapshots, policies: Policies, mappings: Mappings, lake: Lake) -> None:
        self._snapshots, self._policies = snapshots, policies
        self._mappings, self._lake = mappings, lake
        self._turns = FairTurns(_MOST_AT_ONCE)

    async def profile(self, asked: Asked) -> tuple[FoundProfile, MergePolicy]:
        """Merge one profile; return the policy, too.

        Raises:
            InvalidArgumentError: A field is unknown.
            NotFoundError: The policy is not known, or nothing of the identity.
            FailedPreconditionError: The person has too many identities, or the engine cannot resolve them.
            UnavailableError: The engine broke while it found out who is one person; trying again may help.
            ExhaustedError: The rows of the person take too much memory or time.
        """
        policy, plan = await self._planned(asked, plan_profile)
        keys = await self._keys(plan, asked)
        async with self._turns.taken(asked.tenant), self._lake.readable(plan.paths):
            rows = await compute(source_rows, self._lake.root, plan, keys)
            return await compute(profile_of, plan, rows, asked.identity), policy

    async def events(self, asked: Asked, listing: EventListing, page: PageRequest) -> Page[FoundEvent]:
        """List a page of the events of one profile.

        Raises:
            InvalidArgumentError: A field is unknown, or the page token was made up.
            NotFoundError: As `profile`.
            FailedPreconditionError: As `profile`.
            UnavailableError: As `profile`.
            ExhaustedError: As `profile`.
        """
        _, plan = await self._planned(asked, plan_events)
        keys = await self._keys(plan, asked)
        async with self._turns.taken(asked.tenant), self._lake.readable(plan.paths):
            rows = await compute(source_rows, self._lake.root, plan, keys)
            return await compute(events_of, plan, rows, asked.identity, listing, page)

    async def _planned(
        self, asked: Asked, plan: Callable[[MergePolicy, Snapshot, Sequence[str]], ExportPlan]
    ) -> tuple[MergePolicy, ExportPlan]:
        policy = await self._policies.find_policy(asked.tenant, asked.policy_id, asked.policy_version)
        snapshot = await self._snapshots.take(asked.tenant)
        wide = takes_long(snapshot, asked.fields)
        return policy, await compute_if(wide, suggesting(plan), policy, snapshot, asked.fields)

    async def _keys(self, plan: ExportPlan, asked: Asked) -> Collection[IdentityKey]:
        key = identity_key(asked.identity)
        return await self._together(asked.tenant, plan, key) if plan.graph is IdentityGraph.PDG else {key}

    async def _together(self, tenant: Tenant, plan: ExportPlan, key: IdentityKey) -> Collection[IdentityKey]:
        try:
            return await self._mappings.together(tenant, plan, key)
        except EngineDiedError as error:
            raise UnavailableError(
                "RESOLUTION_FAILED", str(error), retry_after=timedelta(seconds=1)
            ) from error
        except EngineFailedError as error:
            raise FailedPreconditionError(error.code, str(error)) from error
