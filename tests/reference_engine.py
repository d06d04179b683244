"""An engine that carries plans out in plain Python, by the rules that every engine is held to. For small data."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from profile_export.domain.catalog.batches import BATCH_ID, KEY_HIGH, KEY_LOW, PROFILE_ID
from profile_export.domain.export.plan import (
    EngineProgress,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
    WrittenFile,
)
from profile_export.domain.merging.merge import merge_profiles
from profile_export.lake.rows import source_rows


class ReferenceEngine:
    """See `profile_export.application.ports.Engine`."""

    name = "reference"
    values_per_range = 1_000_000_000  # one range

    @asynccontextmanager
    async def attempt(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        on_progress: Callable[[EngineProgress], None],  # noqa: ARG002 - the port's signature
        segment_folders: Sequence[Path] = (),  # noqa: ARG002 - the port's signature
    ) -> AsyncIterator[_Attempt]:
        yield _Attempt(plan, lake_root, folder)


@dataclass
class _Attempt:
    plan: ExportPlan
    lake_root: Path
    folder: Path

    async def resolve(self) -> ResolutionFacts:
        return ResolutionFacts()  # merging resolves

    async def identity_graph(self) -> Path | None:
        return None

    async def run(self, key_range: KeyRange) -> RangeResult:
        return await asyncio.to_thread(self._run, key_range.index)

    def _run(self, index: int) -> RangeResult:
        keys = set()
        for path in self.plan.paths:
            held = pq.read_table(self.lake_root / path, columns=[KEY_HIGH, KEY_LOW])
            keys |= set(zip(held[KEY_HIGH].to_pylist(), held[KEY_LOW].to_pylist(), strict=True))
        merged = merge_profiles(self.plan, source_rows(self.lake_root, self.plan, keys))
        rows = [
            {**profile, PROFILE_ID: own, BATCH_ID: self.plan.batch_id}
            for profile, own in zip(merged.profiles, merged.ids, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{index}-0.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        written = WrittenFile(file.name, len(rows), file.stat().st_size, digest, self.plan.batch_id)
        return RangeResult((written,), merged.counts)
