"""What use cases and the runner need of the rooms below them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from profile_export.domain.catalog.files import MirroredBatch, TableState
from profile_export.domain.export.execution import EngineProgress, RangeResult, ResolutionFacts
from profile_export.domain.export.plan import ExportPlan, KeyRange

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class EngineAttempt(Protocol):
    """One attempt at a plan."""

    async def resolve(self) -> ResolutionFacts:
        """Find out which identities belong to one person, before the first range."""
        ...

    async def run(self, key_range: KeyRange) -> RangeResult:
        """Write the files of one range of profiles."""
        ...

    async def mapping(self) -> Path | None:
        """Return the file that says which identities have a profile of another key than theirs.

        It lies in the attempt's folder. None where every identity is a profile of its own. Asked instead of `resolve`.
        """
        ...


class Engine(Protocol):
    """What runs a plan.

    Its calls raise `EngineDiedError` where the attempt is lost but a next one may do, and `EngineFailedError` where
    the engine says no.
    """

    @property
    def values_per_range(self) -> int:
        """How a plan is to be cut so that this engine's memory holds one range, as `ExportPlan` has it."""
        ...

    def attempt(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        on_progress: Callable[[EngineProgress], None],
        segment_folders: Sequence[Path] = (),
    ) -> AbstractAsyncContextManager[EngineAttempt]:
        """Begin an attempt that writes into `folder`; leaving it stops whatever still runs.

        What goes into the plan's `segment_batches` is written into `segment_folders`, one for each.
        """
        ...


class Lake(Protocol):
    """Where files live."""

    @property
    def root(self) -> Path:
        """What the paths of data files are relative to."""
        ...

    def folder(self, folder: str) -> Path:
        """Return the place of a batch's files."""
        ...

    def remove(self, folder: str) -> None:
        """Remove a batch's folder with all that is in it."""
        ...

    def sync(self, folder: str) -> None:
        """Make the names of a folder's files survive a power cut."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Put a small file into a batch's folder, which need not exist: whole, and safe on the disk, or not at all."""
        ...

    def keep_only(self, folder: str, paths: Collection[str]) -> None:
        """Remove from a batch's folder, or an attempt's in it, every file but these."""
        ...


class Elsewhere(Protocol):
    """Another process, or thread, that does blocking work."""

    async def run(self, work: Callable[[_Task], _Result], task: _Task) -> _Result:
        """Do `work(task)` there. Raises what it raises, and `ChildDiedError` where the process is gone."""
        ...


class MirrorTables(Protocol):
    """The tables of the Iceberg mirror. Its calls block; `lake.iceberg` says what they raise."""

    def look(self, dataset_id: str) -> TableState | None:
        """Return where a table stands; None if there is none."""
        ...

    def sync(
        self, dataset_id: str, base: TableState, add: Sequence[MirroredBatch], remove: Collection[str]
    ) -> TableState:
        """Add batches that the table does not hold and take others out, if it still stands at `base`."""
        ...

    def rebuild(
        self, dataset_id: str, base: TableState | None, batches: Sequence[MirroredBatch]
    ) -> TableState | None:
        """Make the table hold exactly these batches, if it still stands at `base`."""
        ...

    def clean(self, dataset_id: str) -> TableState | None:
        """Expire snapshots and remove what nothing names any more."""
        ...

    def drop(self, dataset_id: str) -> None:
        """Drop the table, whether or not there is one."""
        ...
