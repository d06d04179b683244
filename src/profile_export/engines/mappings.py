"""Who is one person, for looking people up: the mapping that resolution makes, and the identities it holds together."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profile_export.domain.identity import IdentityKey
from profile_export.domain.plan import ExportPlan
from profile_export.domain.schema import EMPTY
from profile_export.engines.duckdb_engine import DuckDbEngine
from profile_export.engines.results import EngineProgress

_MOST_KEPT = 16
_IDENTITY = ("key_high", "key_low")
_PROFILE = ("profile_high", "profile_low")


class Mappings:
    """Mappings of identities to profiles, each kept while it is among those asked for last.

    Args:
        engine: Resolves identities, in a process of its own.
        lake_root: What the paths of plans are relative to.
        folder: Where files lie while they are made; nobody else's.
        new_id: Makes names of folders in it.
    """

    def __init__(
        self, engine: DuckDbEngine, lake_root: Path, folder: Path, new_id: Callable[[], str]
    ) -> None:
        self._engine, self._lake_root, self._folder, self._new_id = engine, lake_root, folder, new_id
        self._kept: OrderedDict[frozenset[tuple[str, ...]], pa.NativeFile | None] = OrderedDict()
        self._making = asyncio.Lock()

    async def together(self, plan: ExportPlan, key: IdentityKey) -> frozenset[IdentityKey]:
        """Return the keys of all identities of the person that has one, itself among them.

        Raises:
            EngineDiedError: The engine's process ended; another try may succeed.
            EngineFailedError: A query failed.
        """
        mapping = await self._mapping(plan)
        return frozenset({key}) if mapping is None else await asyncio.to_thread(together, mapping, key)

    async def _mapping(self, plan: ExportPlan) -> pa.NativeFile | None:
        """Return the file of the mapping, open; None if nobody has two identities."""
        made_of = _made_of(plan)
        if made_of not in self._kept:
            # One at a time: resolving takes all cores, and who comes meanwhile most often wants the same.
            async with self._making:
                if made_of not in self._kept:
                    self._kept[made_of] = await self._made(plan)
        self._kept.move_to_end(made_of)
        mapping = self._kept[made_of]
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return mapping

    async def _made(self, plan: ExportPlan) -> pa.NativeFile | None:
        folder = self._folder / self._new_id()
        # No value of the rows is needed, only whose they are.
        bare = replace(plan, fields=EMPTY, events=None)
        try:
            async with self._engine.attempt(bare, self._lake_root, folder, _ignore) as attempt:
                mapping = await attempt.mapping()
                # It stays readable for as long as it is open, and needs nobody to remove it.
                return await asyncio.to_thread(pa.memory_map, str(mapping)) if mapping else None
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def together(mapping: pa.NativeFile, key: IdentityKey) -> frozenset[IdentityKey]:
    """Return the keys of all identities that a mapping gives the same profile as one. Blocks."""
    (profile,) = _pairs(mapping, _PROFILE, _IDENTITY, key) or [key]
    return frozenset({key, profile, *_pairs(mapping, _IDENTITY, _PROFILE, profile)})


def _pairs(
    mapping: pa.NativeFile, wanted: tuple[str, str], by: tuple[str, str], key: IdentityKey
) -> list[IdentityKey]:
    """Return one pair of columns of the rows in which the other is a key.

    One half of the other is read first, and the rest only where it is found: that is a tenth of the time.
    """
    file, (high, low) = pq.ParquetFile(mapping), by
    leaf = file.schema_arrow.names.index(high)
    found: list[IdentityKey] = []
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(leaf).statistics
        if known.min <= key[0] <= known.max:
            halves = file.read_row_group(group, columns=[high])[high]
            places = pc.indices_nonzero(pc.equal(halves, key[0]))
            if len(places):
                rows = file.read_row_group(group, columns=[low, *wanted]).take(places)
                of_key = rows.filter(pc.equal(rows[low], key[1]))
                found += zip(*(of_key[half].to_pylist() for half in wanted), strict=True)
    return found


def _made_of(plan: ExportPlan) -> frozenset[tuple[str, ...]]:
    """Tell apart what mappings are made of: ids of batches are a tenant's own, those of datasets are not."""
    datasets = {(source.dataset_id,) for source in plan.sources}
    return frozenset({*datasets, *((batch.id, str(batch.number)) for batch in plan.batches)})


def _ignore(_progress: EngineProgress) -> None:
    pass
