"""What use cases and the runner need of the rooms below them, and how use cases begin an attempt of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from profile_export.domain.catalog.batches import MirroredBatch, MirroredDataset, TableState
from profile_export.domain.errors import FailedPreconditionError, UnavailableError
from profile_export.domain.export.plan import (
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
    WrittenFile,
)

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class EngineAttempt(Protocol):
    """One attempt at a plan."""

    async def resolve(self) -> ResolutionFacts:
        """Find out which identities belong to one person, before the first range."""

    async def run(self, key_range: KeyRange) -> RangeResult:
        """Write the files of one range of profiles."""

    async def identity_graph(self) -> Path | None:
        """Return the file that says which identities have a profile of another key than theirs.

        It lies in the attempt's folder. None where every identity is a profile of its own. Asked instead of `resolve`.
        """


class Engine(Protocol):
    """What runs a plan.

    Its calls raise `EngineDiedError` where the attempt is lost but a next one may do, and `EngineFailedError` where
    the engine says no.
    """

    @property
    def name(self) -> str:
        """What requests name it by."""

    @property
    def values_per_range(self) -> int:
        """How a plan is to be cut so that this engine's memory holds one range, as `ExportPlan` has it."""

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


class Lake(Protocol):
    """Where data files live, under keys such as `<dataset>/<batch>/<attempt>/<file>`, whose beginnings are folders.

    Work is done on files of this machine: what is to be read is brought below `root`, and what is written there, in the
    place that `staging` gives a folder, counts once it is published. Bytes of uploads lie beside the files, under names
    of one step. Calls block, but for `readable`.
    """

    @property
    def root(self) -> Path:
        """The folder of this machine below which files are read, each at its key, while they are `readable`."""

    def open(self) -> None:
        """Make ready for use. Raises OSError where that cannot be."""

    def take(self) -> None:
        """Use the lake beside other processes. Waits for who takes it over at the moment."""

    def take_alone(self) -> bool:
        """Keep other processes from using the lake, until it is taken again or let go; False if one uses it."""

    def let_go(self) -> None:
        """Use the lake no longer."""

    def instance(self) -> str | None:
        """Return the id of the instance that the lake is of; None if it says nothing."""

    def become(self, instance_id: str) -> None:
        """Say of which instance the lake is from now on."""

    # --- Files ---

    def readable(self, keys: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """Bring files below `root`, for as long as the block runs."""

    def read(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        """Yield a stretch of a file in chunks."""

    def size(self, key: str) -> int:
        """Return how many bytes a file has. Raises FileNotFoundError."""

    def location(self, key: str) -> str:
        """Return the URI of a file for other readers."""

    def staging(self, folder: str) -> Path:
        """Return where on this machine the files of a folder are written; it need not exist yet."""

    def publish(self, keys: Collection[str]) -> None:
        """Make files, written in the staging of their folders, readable for everybody and safe from a power cut.

        Raises FileNotFoundError where a folder is not there.
        """

    def write(self, key: str, content: bytes) -> None:
        """Put a small file into a folder, which need not exist: whole and safe, or not at all."""

    def exists(self, folder: str) -> bool:
        """Say whether a folder has something in it, published or not."""

    def remove(self, folder: str) -> None:
        """Remove a folder with all that is in it, published or not, whether or not it exists."""

    def keep_only(self, folder: str, keys: Collection[str]) -> None:
        """Remove every file but these from a batch's folder, or an attempt's in it. Strangers' go to the trash."""

    # --- Bytes of uploads ---

    def upload(self, name: str) -> Path:
        """Return the place of an upload's bytes as sent; it need not exist yet."""

    def received(self, name: str) -> int:
        """Return how many bytes of an upload have arrived."""

    def forget_upload(self, name: str) -> None:
        """Remove an upload's bytes, whether or not there are any."""

    def staged(self) -> Sequence[str]:
        """Return under which names there are bytes of uploads."""

    # --- What nobody has named ---

    def datasets(self) -> Collection[str]:
        """Return the first steps of all keys that are of a dataset."""

    def untouched(self, least: timedelta) -> Sequence[str]:
        """Return the folders of batches in which nothing has been written for so long."""

    def untouched_within(self, folder: str, least: timedelta) -> Sequence[str]:
        """Return what lies in a folder, or in its folders where it ends with `/*`, and was not written so long."""

    def set_aside(self, keys: Iterable[str], uploads: Iterable[str] = ()) -> None:
        """Move files and folders, and bytes of uploads, to the trash."""

    def empty_trash(self, now: datetime, keep: timedelta) -> Sequence[str]:
        """Remove for good what the trash has kept for so long; return the names that it had there."""

    def trash(self) -> Sequence[str]:
        """Return what the trash holds."""


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


class MergeFiles(Protocol):
    """Merges data files of this machine into one there."""

    def __call__(self, sources: Sequence[Path], target: Path) -> Awaitable[WrittenFile]:
        """Write the rows of `sources` into `target`. Raises `TooExpensiveError` where that takes too much."""


class Elsewhere(Protocol):
    """Another process, or thread, that does blocking work."""

    async def run(self, work: Callable[[_Task], _Result], task: _Task) -> _Result:
        """Do `work(task)` there. Raises what it raises, and `ChildDiedError` where the process is gone."""


class MirrorTables(Protocol):
    """The tables of the Iceberg mirror. Its calls block; `lake.iceberg` says what they raise."""

    def look(self, dataset: MirroredDataset) -> TableState | None:
        """Return where a table stands; None if there is none."""

    def sync(
        self,
        dataset: MirroredDataset,
        base: TableState,
        add: Sequence[MirroredBatch],
        remove: Collection[str],
    ) -> TableState:
        """Add batches that the table does not hold and take others out, if it still stands at `base`."""

    def rebuild(
        self, dataset: MirroredDataset, base: TableState | None, batches: Sequence[MirroredBatch]
    ) -> TableState | None:
        """Make the table hold exactly these batches, if it still stands at `base`."""

    def clean(self, dataset: MirroredDataset) -> TableState | None:
        """Expire snapshots and remove what nothing names any more."""

    def drop(self, dataset: MirroredDataset) -> None:
        """Drop the table, whether or not there is one."""
