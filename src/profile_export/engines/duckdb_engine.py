"""The DuckDB engine as the server sees it: attempts, each in a child process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from profile_export.domain.plan import ExportPlan, KeyRange
from profile_export.engines import memory
from profile_export.engines.protocol import (
    LENGTH,
    Close,
    Failed,
    FindMapping,
    MappingFound,
    Open,
    Resolve,
    Run,
    decode,
    encode,
)
from profile_export.engines.results import (
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    RangeResult,
    ResolutionFacts,
)

OnProgress = Callable[[EngineProgress], None]
_PACKAGE_ROOT = Path(__file__).parents[2]
_CLOSE_SECONDS = 1.0
"""A child that takes longer to end an attempt hangs, or is busy with what a kill does at once."""


class _Child:
    """A child process. `busy` while it works on a request: then only killing it stops it."""

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            message = "the process has no pipes"
            raise ValueError(message)
        self._process, self._stream_in, self._stream_out = process, process.stdin, process.stdout
        self.busy = False

    @classmethod
    async def spawned(cls) -> _Child:
        # A fresh interpreter, since a process forked after gRPC has started hangs; and a module of its own, since the
        # parent's main module would bring half the server along.
        paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "profile_export.engines.child",
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        child = cls(process)
        try:
            await child._answer(_ignore)
        except BaseException:
            await child.kill()
            raise
        return child

    async def ask(self, request: object, on_progress: OnProgress) -> Any:
        """Send a request and wait for its answer.

        Raises:
            EngineDiedError: The child is gone or ran out of memory.
            EngineFailedError: The request failed.
        """
        self.busy = True
        with suppress(ConnectionError):  # its end is noticed where the answer is read
            self._stream_in.write(encode(request))
            await self._stream_in.drain()
        answer = await self._answer(on_progress)
        self.busy = False
        if isinstance(answer, Failed):
            if answer.died:
                raise EngineDiedError(answer.code, answer.message)
            raise EngineFailedError(answer.code, answer.message, retryable=answer.retryable)
        return answer

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process.returncode is None

    async def kill(self) -> None:
        """End it at once, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _answer(self, on_progress: OnProgress) -> Any:
        stream = self._stream_out
        while True:
            try:
                (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
                message = decode(await stream.readexactly(length))
            except asyncio.IncompleteReadError:
                code = await self._process.wait()
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                if -code == signal.SIGKILL:
                    how += ", which is what a system does that runs out of memory"
                raise EngineDiedError("ENGINE_CRASHED", f"The engine's process {how}.") from None
            if not isinstance(message, EngineProgress):
                return message
            on_progress(message)


def _ignore(_progress: EngineProgress) -> None:
    pass


class EngineAttempt:
    """One try at a plan. One call at a time; leave the context to stop one that runs."""

    def __init__(self, child: _Child, on_progress: OnProgress) -> None:
        self._child, self._on_progress = child, on_progress

    async def mapping(self) -> Path | None:
        """Return the file that says which identities have a profile of another key than theirs, see `engines.mapping`.

        It lies in the attempt's folder. None where every identity is a profile of its own.

        Raises:
            EngineDiedError: As `resolve`.
            EngineFailedError: As `resolve`.
        """
        found: MappingFound = await self._child.ask(FindMapping(), self._on_progress)
        return found.path

    async def resolve(self) -> ResolutionFacts:
        """Find out which identities are one person, and bring together what is theirs; once, before `run`.

        Leaves its files below `resolution/` in the attempt's folder.

        Raises:
            EngineDiedError: The process ended or ran out of memory; another attempt may succeed.
            EngineFailedError: A query failed.
        """
        facts: ResolutionFacts = await self._child.ask(Resolve(), self._on_progress)
        return facts

    async def run(self, key_range: KeyRange) -> RangeResult:
        """Write the files of one range into the attempt's folder, safe on the disk when this returns.

        Raises:
            EngineDiedError: As `resolve`.
            EngineFailedError: As `resolve`.
        """
        result: RangeResult = await self._child.ask(Run(key_range), self._on_progress)
        return result


class DuckDbEngine:
    """Runs plans with DuckDB, in child processes of which some are kept warm.

    Args:
        memory_limit_mb: How much memory a child's process may hold, see `memory`; None leaves it to DuckDB, whose
            database then takes up to 80 % of the machine's.
        threads: How many threads it uses, fewer where the limit feeds no more; None means one per core.
        warm: How many children wait for work when nothing is to be done, at most.
    """

    name = "duckdb"

    def __init__(self, memory_limit_mb: int | None, threads: int | None, warm: int = 1) -> None:
        self._memory_limit_mb, self._threads, self._warm_children = memory_limit_mb, threads, warm
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def values_per_range(self) -> int:
        """How plans are to be cut so that a range fits into the memory limit."""
        return memory.values_per_range(self._memory_limit_mb)

    @property
    def children(self) -> tuple[int, ...]:
        """The process ids of all children, at work or not."""
        return tuple(child.process_id for child in self._children)

    async def start(self) -> None:
        """Warm a child, so that the first attempt need not wait for its libraries to load."""
        self._idle.append(await self._spawned())

    async def close(self) -> None:
        """End every child, also those in an attempt."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            with suppress(asyncio.CancelledError):
                await self._warming
        self._idle.clear()
        await asyncio.gather(*(child.kill() for child in self._children))
        self._children.clear()

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
        child = await self._taken()
        try:
            limits = (self._memory_limit_mb, self._threads)
            request = Open(plan, lake_root, folder, *limits, segment_folders=tuple(segment_folders))
            await child.ask(request, on_progress)
            yield EngineAttempt(child, on_progress)
        finally:
            await asyncio.shield(self._given_back(child))

    async def _taken(self) -> _Child:
        if self._warming is not None and not self._idle:
            await asyncio.shield(self._warming)
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            # It died while it was idle, for whatever reason: that must not cost an attempt.
            self._children.discard(child)
        return await self._spawned()

    async def _given_back(self, child: _Child) -> None:
        if not child.busy:
            with suppress(EngineDiedError, EngineFailedError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await child.ask(Close(), _ignore)
                if len(self._idle) < self._warm_children and not self._closed:
                    self._idle.append(child)
                    return
        await child.kill()
        self._children.discard(child)
        if not self._idle and not self._closed and (self._warming is None or self._warming.done()):
            self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        # Nobody waits for this one: who needs a child and finds none sees the error for himself.
        with suppress(EngineDiedError):
            self._idle.append(await self._spawned())

    async def _spawned(self) -> _Child:
        child = await _Child.spawned()
        self._children.add(child)
        return child
