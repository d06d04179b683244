"""Who is one person, for looking people up: the mapping that resolution makes, and the identities it holds together."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakValueDictionary

from profile_export.application.ports import Engine, Lake
from profile_export.domain.export.plan import MAPPINGS, EngineProgress, ExportPlan
from profile_export.domain.merging.identity import IdentityKey
from profile_export.domain.schemas.types import EMPTY
from profile_export.engines.identity.graph import OpenMapping
from profile_export.processes.turns import FairTurns, Whose

_MOST_KEPT = 16
_MOST_AT_ONCE = 2
"""As few as can be, for each takes all cores: of two places, one stays free for another tenant."""
_MadeOf: TypeAlias = tuple[Whose, frozenset[tuple[str, int]]]
"""Whose mapping it is, and of which batches it is made: their ids are a tenant's own."""


class Mappings:
    """Mappings of identities to profiles, each kept while it is among those asked for last.

    They are made for the tenants by turns, one at a time of each. Who keeps the most loses one first.

    Args:
        engine: Resolves identities, in a process of its own.
        lake: Where the rows are, and where files lie while they are made.
        new_id: Makes names of folders.
    """

    def __init__(self, engine: Engine, lake: Lake, new_id: Callable[[], str]) -> None:
        self._engine, self._lake, self._new_id = engine, lake, new_id
        self._kept: OrderedDict[_MadeOf, OpenMapping | None] = OrderedDict()
        # Each is there for as long as somebody makes its mapping, or waits for it.
        self._making: WeakValueDictionary[_MadeOf, asyncio.Lock] = WeakValueDictionary()
        self._turns = FairTurns(_MOST_AT_ONCE)

    async def together(self, whose: Whose, plan: ExportPlan, key: IdentityKey) -> frozenset[IdentityKey]:
        """Return the keys of all identities of the person of a tenant that has one, itself among them.

        Raises:
            EngineDiedError: The engine's process ended; another try may succeed.
            EngineFailedError: A query failed.
        """
        mapping = await self._mapping(whose, plan)
        return frozenset({key}) if mapping is None else await asyncio.to_thread(mapping.together, key)

    async def _mapping(self, whose: Whose, plan: ExportPlan) -> OpenMapping | None:
        """Return the mapping; None if nobody has two identities."""
        made_of = whose, frozenset((batch.id, batch.number) for batch in plan.batches)
        # Who wants the same needs no turn: it waits for the one that is made, and not for those of others.
        async with self._making.setdefault(made_of, asyncio.Lock()):
            if made_of not in self._kept:
                async with self._turns.taken(whose):
                    mapping = await self._made(plan)
                self._keep(made_of, mapping)
            self._kept.move_to_end(made_of)
            return self._kept[made_of]

    def _keep(self, made_of: _MadeOf, mapping: OpenMapping | None) -> None:
        self._kept[made_of] = mapping
        if len(self._kept) > _MOST_KEPT:
            shares = Counter(whose for whose, _ in self._kept)
            largest = max(shares.values())
            del self._kept[next(one for one in self._kept if shares[one[0]] == largest)]

    async def _made(self, plan: ExportPlan) -> OpenMapping | None:
        folder = f"{MAPPINGS}/{self._new_id()}"
        # No value of the rows is needed, only whose they are.
        bare = replace(plan, fields=EMPTY, events=None)
        try:
            async with (
                self._lake.readable(plan.paths),
                self._engine.attempt(bare, self._lake.root, self._lake.staging(folder), _ignore) as attempt,
            ):
                mapping = await attempt.mapping()
                return await asyncio.to_thread(OpenMapping, mapping) if mapping else None
        finally:
            await asyncio.to_thread(self._lake.remove, folder)


def _ignore(_progress: EngineProgress) -> None:
    pass
