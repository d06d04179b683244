"""Which identities are one person, as look-ups ask it: identity graphs, made and kept in memory."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakValueDictionary

from profile_export.application.ports import Engine, Lake, passing_attempt
from profile_export.domain.export.plan import MAPPINGS, ExportPlan
from profile_export.domain.merging.identity import IdentityKey
from profile_export.domain.schemas.types import EMPTY
from profile_export.engines.identity.graph import OpenGraph
from profile_export.processes.turns import FairTurns, Whose

_MOST_KEPT = 16
_MOST_MADE_AT_ONCE = 2
"""How many identity graphs are made at once. Each takes all cores; of two places, one stays free for another tenant."""
_MadeOf: TypeAlias = tuple[Whose, frozenset[tuple[str, int]], tuple[IdentityKey, ...]]
"""Whose identity graph it is, of which batches it is made, whose ids are a tenant's own, and without which identities.
"""


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
        batches = frozenset((batch.id, batch.number) for batch in plan.batches)
        made_of = whose, batches, plan.excluded
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
            shares = Counter(whose for whose, *_ in self._kept)
            largest = max(shares.values())
            del self._kept[next(one for one in self._kept if shares[one[0]] == largest)]

    async def _made(self, plan: ExportPlan) -> OpenGraph | None:
        folder = f"{MAPPINGS}/{self._new_id()}"
        # No value of the rows is needed, only whose they are.
        bare = replace(plan, fields=EMPTY, events=None)
        async with passing_attempt(self._engine, self._lake, bare, folder) as attempt:
            graph = await attempt.identity_graph()
            return await asyncio.to_thread(OpenGraph, graph) if graph else None
