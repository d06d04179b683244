"""Looking one person up: the snapshot of now, only the rows of that person, and the merge that exports are held to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from profile_export.api.suggestions import suggesting
from profile_export.domain.catalog import Tenant
from profile_export.domain.errors import FailedPreconditionError, UnavailableError
from profile_export.domain.event_listing import EventListing, FoundEvent, events_of
from profile_export.domain.identity import Identity, IdentityKey, identity_key
from profile_export.domain.lookup import FoundProfile, plan_events, plan_profile, profile_of
from profile_export.domain.paging import Page, PageRequest
from profile_export.domain.plan import ExportPlan
from profile_export.domain.planning import takes_long
from profile_export.domain.policy import IdentityGraph, MergePolicy
from profile_export.engines.mappings import Mappings
from profile_export.engines.results import EngineDiedError, EngineFailedError
from profile_export.lake.source_rows import source_rows
from profile_export.processes.computing import compute, compute_if
from profile_export.processes.turns import FairTurns
from profile_export.store.snapshots import Snapshots


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a call asks for, and of what fields; no field means all."""

    tenant: Tenant
    identity: Identity
    policy: MergePolicy
    fields: Sequence[str]


_MOST_AT_ONCE = 4
"""How many people's rows are held at a time, over all tenants; see `MOST_HELD`."""


class Lookups:
    """Looks people up in what the store and the lake hold now."""

    def __init__(self, snapshots: Snapshots, mappings: Mappings, lake_root: Path) -> None:
        self._snapshots, self._mappings, self._lake_root = snapshots, mappings, lake_root
        self._turns = FairTurns(_MOST_AT_ONCE)

    async def profile(self, asked: Asked) -> FoundProfile:
        """Merge one profile.

        Raises:
            InvalidArgumentError: A field is unknown.
            NotFoundError: Nothing is known of the identity.
            FailedPreconditionError: The person has too many identities, or the engine cannot resolve them.
            UnavailableError: The engine broke while it found out who is one person; trying again may help.
            ExhaustedError: The rows of the person take too much memory or time.
        """
        snapshot = await self._snapshots.take(asked.tenant)
        plan = await compute_if(
            takes_long(snapshot, asked.fields), suggesting(plan_profile), asked.policy, snapshot, asked.fields
        )
        keys = await self._keys(plan, asked)
        async with self._turns.taken(asked.tenant):
            rows = await compute(source_rows, self._lake_root, plan, keys)
            return await compute(profile_of, plan, rows, asked.identity)

    async def events(self, asked: Asked, listing: EventListing, page: PageRequest) -> Page[FoundEvent]:
        """List a page of the events of one profile.

        Raises:
            InvalidArgumentError: A field is unknown, or the page token was made up.
            NotFoundError: As `profile`.
            FailedPreconditionError: As `profile`.
            UnavailableError: As `profile`.
            ExhaustedError: As `profile`.
        """
        snapshot = await self._snapshots.take(asked.tenant)
        plan = await compute_if(
            takes_long(snapshot, asked.fields), suggesting(plan_events), asked.policy, snapshot, asked.fields
        )
        keys = await self._keys(plan, asked)
        async with self._turns.taken(asked.tenant):
            rows = await compute(source_rows, self._lake_root, plan, keys)
            return await compute(events_of, plan, rows, asked.identity, listing, page)

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
