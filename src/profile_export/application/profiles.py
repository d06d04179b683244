"""Looking one person up as exports would merge it, and the merge policies that say how."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

from profile_export.application.ports import Engine, EngineAttempt, Lake
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
    MAPPINGS,
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    Snapshot,
    takes_long,
)
from profile_export.domain.export.selection import UnknownFieldError, UnknownPath
from profile_export.domain.lists import Page, PageRequest
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key
from profile_export.domain.merging.merge import SourceRow
from profile_export.domain.merging.policy import IdentityGraph, MergePolicy, PolicyChange
from profile_export.domain.schemas.types import EMPTY
from profile_export.engines.identity.graph import OpenGraph
from profile_export.lake.rows import source_rows
from profile_export.processes.turns import FairTurns, Whose, compute, compute_if
from profile_export.store.catalog.policies import Policies
from profile_export.store.files.snapshots import Snapshots

MOST_SUGGESTIONS = 5
"""How many unknown paths of one request get a suggestion: whoever sends more of them has not mistyped them all."""
# Comparing takes time by both lengths, and what differs later than this is no slip of the pen.
_MOST_COMPARED = 200
# Nothing else runs in the process while one call compares.
_COMPARED_AT_ONCE = 500
_MOST_KEPT = 16
_MOST_MADE_AT_ONCE = 2
"""How many identity graphs are made at once. Each takes all cores; of two places, one stays free for another tenant."""
_MOST_LOOKED_UP_AT_ONCE = 4
"""How many people's rows are held at a time, over all tenants; see `MOST_HELD`."""
_MadeOf: TypeAlias = tuple[Whose, frozenset[tuple[str, int]]]
"""Whose identity graph it is, and of which batches it is made: their ids are a tenant's own."""
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class PolicyUseCases:
    """What callers do with merge policies. Raises what the store's methods of the same names raise."""

    def __init__(self, policies: Policies, new_id: Callable[[], str]) -> None:
        self._policies, self._new_id = policies, new_id

    async def create(self, tenant: Tenant, make: Callable[[str], MergePolicy]) -> MergePolicy:
        """Keep the policy that is made for a new id."""
        return await self._policies.create_policy(tenant, make(self._new_id()))

    async def get(self, tenant: Tenant, policy_id: str, version: int | None) -> MergePolicy:
        """Return a version of a policy; None: the newest."""
        return await self._policies.find_policy(tenant, policy_id, version)

    async def list(self, tenant: Tenant, request: PageRequest) -> Page[MergePolicy]:
        """Return a page of the newest versions of the tenant's policies."""
        return await self._policies.list_policies(tenant, request)

    async def update(self, tenant: Tenant, policy_id: str, change: PolicyChange) -> MergePolicy:
        """Add a version to a policy."""
        return await self._policies.update_policy(tenant, policy_id, change)

    async def delete(self, tenant: Tenant, policy_id: str) -> None:
        """Delete a policy; jobs keep the version that they were made with."""
        await self._policies.delete_policy(tenant, policy_id)


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


@contextmanager
def telling_engine_errors(died: str) -> Iterator[None]:
    """Tell a caller what an engine raises; `died` is the reason that is told where trying again may help."""
    try:
        yield
    except EngineDiedError as error:
        raise UnavailableError(died, str(error), retry_after=timedelta(seconds=1)) from error
    except EngineFailedError as error:
        raise FailedPreconditionError(error.code, str(error)) from error


@asynccontextmanager
async def passing_attempt(
    engine: Engine, lake: Lake, plan: ExportPlan, folder: str, segment_folders: Sequence[Path] = ()
) -> AsyncIterator[EngineAttempt]:
    """Begin an attempt that nobody follows. Its folder is removed when the block ends."""
    try:
        async with (
            lake.readable(plan.paths),
            engine.attempt(plan, lake.root, lake.staging(folder), _ignore, segment_folders) as attempt,
        ):
            yield attempt
    finally:
        await asyncio.to_thread(lake.remove, folder)


def _ignore(_progress: EngineProgress) -> None:
    pass


class IdentityGraphs:
    """Identity graphs, each kept while it is among those asked for last.

    They are made for the tenants by turns, one at a time of each. Who keeps the most loses one first.
    """

    def __init__(self, engine: Engine, lake: Lake, new_id: Callable[[], str]) -> None:
        self._engine, self._lake, self._new_id = engine, lake, new_id
        self._kept: OrderedDict[_MadeOf, OpenGraph | None] = OrderedDict()
        # Each is there for as long as somebody makes its graph, or waits for it.
        self._making: WeakValueDictionary[_MadeOf, asyncio.Lock] = WeakValueDictionary()
        self._turns = FairTurns(_MOST_MADE_AT_ONCE)

    async def together(self, whose: Whose, plan: ExportPlan, key: IdentityKey) -> frozenset[IdentityKey]:
        """Return the keys of all identities of the person that has the identity `key`, this key among them.

        Raises:
            EngineDiedError: The engine's process ended; another try may succeed.
            EngineFailedError: A query failed.
        """
        graph = await self._graph(whose, plan)
        return frozenset({key}) if graph is None else await asyncio.to_thread(graph.together, key)

    async def _graph(self, whose: Whose, plan: ExportPlan) -> OpenGraph | None:
        """Return the identity graph; None if nobody has two identities."""
        made_of = whose, frozenset((batch.id, batch.number) for batch in plan.batches)
        # Who wants the same needs no turn: it waits for the one that is made, and not for those of others.
        async with self._making.setdefault(made_of, asyncio.Lock()):
            if made_of not in self._kept:
                async with self._turns.taken(whose):
                    graph = await self._made(plan)
                self._keep(made_of, graph)
            self._kept.move_to_end(made_of)
            return self._kept[made_of]

    def _keep(self, made_of: _MadeOf, graph: OpenGraph | None) -> None:
        self._kept[made_of] = graph
        if len(self._kept) > _MOST_KEPT:
            shares = Counter(whose for whose, _ in self._kept)
            largest = max(shares.values())
            del self._kept[next(one for one in self._kept if shares[one[0]] == largest)]

    async def _made(self, plan: ExportPlan) -> OpenGraph | None:
        folder = f"{MAPPINGS}/{self._new_id()}"
        # No value of the rows is needed, only whose they are.
        bare = replace(plan, fields=EMPTY, events=None)
        async with passing_attempt(self._engine, self._lake, bare, folder) as attempt:
            graph = await attempt.identity_graph()
            return await asyncio.to_thread(OpenGraph, graph) if graph else None


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
        policy, found = await self._looked_up(asked, plan_profile, profile_of)
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
