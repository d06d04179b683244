"""The DuckDB engine as the server sees it: attempts, each in a child process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from profile_export.domain.export.plan import (
    VALUES_PER_RANGE,
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
)
from profile_export.processes.messages import (
    NO_LIMITS,
    Ask,
    ChildDiedError,
    Guest,
    Hold,
    Limits,
    Say,
    TooExpensiveError,
)
from profile_export.processes.supervisor import Child, Supervisor, WarmChildren

OnProgress = Callable[[EngineProgress], None]
_RESERVE_AFTER_SECONDS = 1.0
"""If no child is idle so long after an attempt has begun, one is started, so that the next attempt need not wait."""
_CLOSE_SECONDS = 1.0
"""A child that takes longer to end an attempt is killed: it hangs, or frees what a kill frees at once."""
_MEGABYTE = 1_000_000
_OVER_LIMIT = 1.25
"""A process that holds this many times its limit is killed. DuckDB keeps a process within a tenth of its limit."""
_BESIDE_DUCKDB = 300 * _MEGABYTE
"""DuckDB's own limit covers its buffers, hash tables and sorts, beyond which it spills to the disk.

Beside those the process holds the interpreter and its libraries (170 MB once the sources are bound), the compiled
query, pages that the Parquet writer compresses and what the allocator has not given back: 225 to 290 MB in all, with 9
and 31 fields and with texts of 10 KB, with and without a graph, whatever the limit.
"""
_LEAST_FOR_DUCKDB = 16 * _MEGABYTE
_PER_THREAD = 100 * _MEGABYTE
"""Less than this for each thread, and a merge fails for the buffers of its operators alone."""
_PER_VALUE = 128
"""Bytes: a value takes 60 to 90 where profiles are not linked and 210 where they are, half of which may be spilled."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Open:
    """Asks a child to begin an attempt."""

    plan: ExportPlan
    lake_root: Path
    folder: Path
    settings: Mapping[str, str | int]
    """Of the database."""
    segment_folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Resolve:
    """Asks to resolve identities; answered by `ResolutionFacts`."""


@dataclass(frozen=True, slots=True)
class FindGraph:
    """Asks which identities have a profile of another key than theirs; answered by a path, or None."""


@dataclass(frozen=True, slots=True)
class Run:
    """Asks to export a range; answered by `RangeResult`."""

    key_range: KeyRange


@dataclass(frozen=True, slots=True)
class Close:
    """Asks to end the attempt."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Answers any request that failed. `died`: memory ran out or the engine broke, and the child is of no more use."""

    code: str
    message: str
    retryable: bool
    died: bool = False


class EngineAttempt:
    """One try at a plan. One call at a time; leave the context to stop one that runs.

    Raises:
        EngineDiedError: Any call: the process ended or ran out of memory; another attempt may succeed.
        EngineFailedError: Any call: a query failed.
    """

    def __init__(self, process_id: int, ask: Callable[[object], Awaitable[Any]]) -> None:
        self.process_id = process_id
        """Of the child that works on it."""
        self._ask = ask

    async def identity_graph(self) -> Path | None:
        """Return the file of the identity graph (`engines.identity.graph`), which lies in the attempt's folder.

        None where every identity is a profile of its own.
        """
        path: Path | None = await self._ask(FindGraph())
        return path

    async def resolve(self) -> ResolutionFacts:
        """Find out which identities are one person, and bring together what is theirs; once, before `run`.

        Leaves its files below `resolution/` in the attempt's folder.
        """
        facts: ResolutionFacts = await self._ask(Resolve())
        return facts

    async def run(self, key_range: KeyRange) -> RangeResult:
        """Write the files of one range into the attempt's folder, safe on the disk when this returns."""
        result: RangeResult = await self._ask(Run(key_range))
        return result


class DuckDbEngine:
    """Runs plans with DuckDB, in child processes of which some are kept warm.

    Args:
        memory_limit_mb: How much memory a child's process may hold at most (peak RSS), as `ExportJob.metrics` reports
            it; None leaves it to DuckDB, whose database then takes up to 80 % of the machine's.
        threads: How many threads it uses, fewer where the limit feeds no more; None means one per core.
        warm: How many children wait for work when nothing is to be done, at most.
        supervisor: Where children come from; None: one of the engine's own.
    """

    name = "duckdb"

    def __init__(
        self,
        memory_limit_mb: int | None,
        threads: int | None,
        warm: int = 1,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._limits = (
            NO_LIMITS
            if memory_limit_mb is None
            else Limits(memory_bytes=int(memory_limit_mb * _MEGABYTE * _OVER_LIMIT))
        )
        self._settings = _settings(memory_limit_mb, threads)
        self._memory_limit_mb = memory_limit_mb
        self._children = WarmChildren(
            supervisor or Supervisor(),
            most=warm,
            ready=Hold(_hosted, None),
            reserve_after=_RESERVE_AFTER_SECONDS,
        )

    @property
    def values_per_range(self) -> int:
        """How plans are to be cut so that a range fits into the memory limit."""
        if self._memory_limit_mb is None:
            return VALUES_PER_RANGE
        return min(VALUES_PER_RANGE, _duckdb_bytes(self._memory_limit_mb) // _PER_VALUE)

    @property
    def children(self) -> tuple[int, ...]:
        """The process ids of all children, at work or not."""
        return tuple(child.process_id for child in self._children.all)

    async def start(self) -> None:
        """Warm a child, so that the first attempt need not wait for its libraries to load."""
        try:
            await self._children.start()
        except ChildDiedError as died:
            raise _crashed(died) from None

    async def close(self) -> None:
        """End every child, also those in an attempt."""
        await self._children.close()

    @asynccontextmanager
    async def attempt(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        on_progress: OnProgress,
        segment_folders: Sequence[Path] = (),
    ) -> AsyncIterator[EngineAttempt]:
        """Begin an attempt. Leaving the context ends it: a child that still works is killed.

        Args:
            plan: What to export; the files it names stay where they are.
            lake_root: What the paths of the plan are relative to.
            folder: Where to write, exclusively this attempt's; made if it is missing.
            on_progress: Called in the loop, a few times a second.
            segment_folders: Where to write instead what goes into the plan's `segment_batches`, one for each.

        Raises:
            EngineDiedError: No child can be started.
        """
        async with AsyncExitStack() as taken:
            try:
                child = await taken.enter_async_context(self._children.one(self._cleared))
            except ChildDiedError as died:
                raise _crashed(died) from None
            ask = partial(self._ask, child, on_progress)
            await ask(Open(plan, lake_root, folder, self._settings, tuple(segment_folders)))
            yield EngineAttempt(child.process_id, ask)

    async def _cleared(self, child: Child) -> bool:
        """Have a child close its attempt; say whether it has done so in time."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._ask(child, lambda _progress: None, Close())
        except (EngineDiedError, EngineFailedError, TimeoutError):
            return False
        return True

    async def _ask(self, child: Child, on_progress: OnProgress, request: object) -> Any:
        """Send a request and wait for its answer.

        Raises:
            EngineDiedError: The child is gone or of no more use.
            EngineFailedError: The request failed.
        """
        try:
            answer = await child.ask(Ask(request), on_progress, self._limits)
        except ChildDiedError as died:
            raise _crashed(died) from None
        except TooExpensiveError as over:
            message = f"The engine took more than {over}. Give it more, or let fewer jobs run at once."
            raise EngineDiedError("OUT_OF_MEMORY", message) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, an attempt may be made again
            _log.exception("engine_broke")
            child.end_for(ChildDiedError())
            message = f"The engine broke: {type(error).__name__}; the log has more."
            raise EngineDiedError("ENGINE_CRASHED", message) from None
        if not isinstance(answer, Failed):
            return answer
        if answer.died:
            child.end_for(ChildDiedError())
            raise EngineDiedError(answer.code, answer.message)
        raise EngineFailedError(answer.code, answer.message, retryable=answer.retryable)


def _crashed(died: ChildDiedError) -> EngineDiedError:
    code = died.exit_code
    if code is None:
        how = "was told to end"
    elif code < 0:
        how = f"was killed by signal {-code}"
    else:
        how = f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        how += ", which is what a system does that runs out of memory"
    return EngineDiedError("ENGINE_CRASHED", f"The engine's process {how}.")


def _settings(memory_limit_mb: int | None, threads: int | None) -> dict[str, str | int]:
    """Return the settings of a database so that its process stays within a limit."""
    if memory_limit_mb is None:
        return {} if threads is None else {"threads": threads}
    memory = _duckdb_bytes(memory_limit_mb)
    wanted = threads or os.cpu_count() or 1
    return {"memory_limit": f"{memory}B", "threads": max(1, min(wanted, memory // _PER_THREAD))}


def _duckdb_bytes(limit_mb: int) -> int:
    return max(_LEAST_FOR_DUCKDB, limit_mb * _MEGABYTE - _BESIDE_DUCKDB)


def _hosted(task: object, say: Say) -> Guest:
    """Make the engine within a child.

    It is loaded there alone: its libraries take as long to load as all the rest of a server, which never calls them.
    """
    from profile_export.engines.duckdb.session import HostedEngine  # noqa: PLC0415 - as said

    return HostedEngine(task, say)
