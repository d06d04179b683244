"""Looking one person up as exports would merge it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from profile_export.application.identity_graphs import IdentityGraphs
from profile_export.application.ports import Lake, telling_engine_errors
from profile_export.application.suggestions import suggesting
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.lookup import (
    EventListing,
    FoundEvent,
    FoundProfile,
    events_of,
    plan_events,
    plan_profile,
    profile_of,
)
from profile_export.domain.export.plan import ExportPlan, Snapshot, takes_long
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key
from profile_export.domain.merging.merge import SourceRow
from profile_export.domain.merging.policy import IdentityGraph, MergePolicy
from profile_export.lake.rows import source_rows
from profile_export.processes.turns import FairTurns, compute, compute_if
from profile_export.store.catalog.policies import Policies
from profile_export.store.files.snapshots import Snapshots

_MOST_LOOKED_UP_AT_ONCE = 4
"""How many people's rows are held at a time, over all tenants; see `MOST_HELD`."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a call asks for, merged how, and of what fields.

    No `policy_id` means the default, no `policy_version` the newest; no field means all. With `explain` a profile says
    of each field where its value comes from.
    """

    tenant: Tenant
    identity: Identity
    policy_id: str
    policy_version: int | None
    fields: Sequence[str]
    explain: bool = False


class ProfileUseCases:
    """Looks people up in what the store and the lake hold now."""

    def __init__(self, snapshots: Snapshots, policies: Policies, graphs: IdentityGraphs, lake: Lake) -> None:
        self._snapshots, self._policies = snapshots, policies
        self._graphs, self._lake = graphs, lake
        self._turns = FairTurns(_MOST_LOOKED_UP_AT_ONCE)

    async def profile(self, asked: Asked) -> tuple[FoundProfile, MergePolicy]:
        """Merge one profile; return the policy, too.

        Raises:
            InvalidArgumentError: A field is unknown.
            NotFoundError: The policy is not known, or nothing of the identity.
            FailedPreconditionError: The person has too many identities, or the engine cannot resolve them.
            UnavailableError: The engine broke while it found out who is one person; trying again may help.
            ExhaustedError: The rows of the person take too much memory or time.
        """
        answer = partial(profile_of, explain=asked.explain)
        policy, found = await self._looked_up(asked, plan_profile, answer)
        return found, policy

    async def events(self, asked: Asked, listing: EventListing, page: PageRequest) -> Page[FoundEvent]:
        """List a page of the events of one profile.

        Raises:
            InvalidArgumentError: A field is unknown, or the page token was made up.
            DomainError: As `profile`.
        """
        _, found = await self._looked_up(
            asked, plan_events, lambda plan, rows, identity: events_of(plan, rows, identity, listing, page)
        )
        return found

    async def _looked_up(
        self,
        asked: Asked,
        make_plan: Callable[[MergePolicy, Snapshot, Sequence[str]], ExportPlan],
        answer: Callable[[ExportPlan, Sequence[SourceRow], Identity], _Result],
    ) -> tuple[MergePolicy, _Result]:
        """Return the policy that a call asks for, and what `answer` makes of the person's rows."""
        tenant = asked.tenant
        policy = await self._policies.find_policy(tenant, asked.policy_id, asked.policy_version)
        snapshot = await self._snapshots.take(tenant)
        wide = takes_long(snapshot, asked.fields)
        plan = await compute_if(wide, suggesting(make_plan), policy, snapshot, asked.fields)
        key = identity_key(asked.identity)
        keys: Collection[IdentityKey] = {key}
        if plan.graph is IdentityGraph.PDG:
            with telling_engine_errors("RESOLUTION_FAILED"):
                keys = await self._graphs.together(tenant, plan, key)
        async with self._turns.taken(tenant), self._lake.readable(plan.paths):
            rows = await compute(source_rows, self._lake.root, plan, keys)
            return policy, await compute(answer, plan, rows, asked.identity)
