"""Whether a store and a lake belong together: asked at every start, before anything is changed in either."""

from __future__ import annotations

import asyncio
from dataclasses import KW_ONLY, dataclass

import structlog

from profile_export.application.ports import Lake
from profile_export.domain.export.plan import GRAPHS
from profile_export.store.db.database import Instance, Instances
from profile_export.store.files.folders import Named

_log = structlog.get_logger(__name__)


class ForeignLakeError(Exception):
    """The lake holds data that the store knows nothing of. Nothing has been changed."""


class LakeMissingError(Exception):
    """The store names data, of which the lake has none. Nothing has been changed."""


class LakeInUseError(Exception):
    """A process of another database uses the lake. Nothing has been changed in it."""


@dataclass(frozen=True, slots=True)
class Belonging:
    """Brings a store and a lake together that have one id, or of which one has nothing in it yet."""

    instances: Instances
    named: Named
    lake: Lake
    _: KW_ONLY
    adopt: bool
    """Whether the lake becomes the store's, whatever it says, holds and lacks."""

    async def may_make_store(self) -> bool:
        """Say whether a store may be made for the lake: one that holds data had a store before."""
        return self.adopt or not await asyncio.to_thread(self._holds_data)

    async def settle(self, proposed: Instance) -> Instance:
        """Return the one instance that store and lake are of, which both say from here on.

        The store says so first: a start that breaks off between the two is gone on with by the next.

        Args:
            proposed: What a store becomes that is of no instance yet.

        Raises:
            ForeignLakeError: They are not of the same, and nobody has said that the store may have the lake.
            LakeMissingError: The lake has nothing of what the store names, and nobody has said that it need not.
            LakeInUseError: Somebody has said so, but another's process uses it.
        """
        await asyncio.to_thread(self.lake.take)
        there = await self.instances.get()
        former = await asyncio.to_thread(self.lake.instance)
        same = there is not None and there.id == former
        if not same and not self.adopt and await asyncio.to_thread(self._holds_data):
            # A store that has no id, or a lake that has none, is of an older version, or of a backup that one made.
            if (there is not None and former is not None) or not await self._knows_lake():
                raise ForeignLakeError
            if there is None and former is not None:
                proposed = Instance(former, proposed.token_key)
        if not same and not self.adopt and await self._lacks_all():
            raise LakeMissingError
        instance = await self.instances.settle(proposed)
        if instance.id != former:
            if self.adopt:
                # Others of the same store hold a lake that says so already.
                if former is not None and not await asyncio.to_thread(self.lake.take_alone):
                    raise LakeInUseError
                _log.warning("lake_adopted", instance=instance.id, former=former)
                # Graphs are told by the keys of tenants, which are others in another store.
                await asyncio.to_thread(self.lake.set_aside, [GRAPHS])
            await asyncio.to_thread(self.lake.become, instance.id)
            await asyncio.to_thread(self.lake.take)
        return instance

    def _holds_data(self) -> bool:
        return bool(self.lake.datasets() or self.lake.staged())

    async def _lacks_all(self) -> bool:
        """Say whether the lake is not the one that holds what the store names, such as a folder that is not mounted."""
        if not await self.named.names_files():
            return False
        return not await self.named.knows_any(await asyncio.to_thread(self.lake.datasets), ())

    async def _knows_lake(self) -> bool:
        datasets = await asyncio.to_thread(self.lake.datasets)
        return await self.named.knows_any(datasets, await asyncio.to_thread(self.lake.staged))
