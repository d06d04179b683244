"""The engine within a child process: what it is asked, one attempt after the other, and how its errors are told.

A process of its own, so that running out of memory or crashing ends an attempt and not the server.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import scipy.sparse.csgraph  # noqa: F401 - of `components`: so that a warm child has it, and no attempt waits for it

from profile_export.domain.export.plan import EngineProgress, ExportPlan
from profile_export.engines.duckdb import memory
from profile_export.engines.duckdb.session import DuckDbSession
from profile_export.engines.protocol import Close, Failed, FindMapping, MappingFound, Open, Resolve, Run

EngineError = duckdb.Error | OSError | MemoryError
_NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_WRAPPED = '{"exception_type"'
"""What a thread of DuckDB's hands to another is an error in JSON, within the text of an error."""
_SPILL_LIMIT = "max_temp_directory_size"
"""DuckDB takes no more of the disk than was free at the start, and calls it memory when that is used up."""


def source_paths(plan: ExportPlan) -> frozenset[str]:
    """Return the files that a plan reads."""
    return frozenset(file.path for source in plan.sources for part in source.parts for file in part.files)


def failed(error: EngineError, sources: Collection[str]) -> Failed:
    """Say what an error is.

    Args:
        error: Of DuckDB, of the system, or of Python's memory.
        sources: The files that the plan reads, as it names them.
    """
    first, _, more = str(error).partition("\n")
    sentence = _unwrapped(first).rstrip(".") + "."
    died = isinstance(error, MemoryError | duckdb.OutOfMemoryException)
    if any(said in sentence for said in _NO_SPACE) or _SPILL_LIMIT in more:
        return Failed(
            "DISK_FULL",
            f"The disk is full: {sentence} Free some of it, then export again.",
            retryable=True,
            died=died,
        )
    if died:
        return Failed(
            "OUT_OF_MEMORY",
            f"The engine ran out of memory: {sentence} Give it more, or let fewer jobs run at once.",
            retryable=True,
            died=True,
        )
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return Failed("ENGINE_CRASHED", f"The engine broke: {sentence}", retryable=True, died=True)
    of_files = isinstance(error, duckdb.IOException | OSError)
    if any(path in sentence for path in sources):
        return Failed(
            "SOURCE_UNREADABLE",
            f"A source file cannot be read: {sentence} Restore it, or revert its batch and upload that again.",
            retryable=of_files,
        )
    if of_files:
        return Failed(
            "ENGINE_IO",
            f"A file could not be read or written: {sentence} See to the disk, and to who may write there; then export "
            "again.",
            retryable=True,
        )
    return Failed("ENGINE_QUERY", f"A query failed: {sentence}", retryable=False)


def _unwrapped(sentence: str) -> str:
    kind, wrapped, inner = sentence.partition(_WRAPPED)
    if not wrapped:
        return sentence
    kind, _, _ = kind.partition(": ")
    return f"{kind}: {json.loads(wrapped + inner)['exception_message']}"


_RESET_PEAK = "5"


class HostedEngine:
    """The guest of a child (`processes.messages.Guest`) that carries attempts out."""

    def __init__(self, _task: object, say: Callable[[object], None]) -> None:
        """Begin; `say` takes an `EngineProgress` now and then."""
        self._say = say
        self._session: DuckDbSession | None = None
        self._sources: frozenset[str] = frozenset()

    def answer(self, request: Any) -> Any:
        """Answer one of `protocol`, by `Failed` too."""
        try:
            return self._answer(request)
        except (duckdb.Error, OSError, MemoryError) as error:
            return failed(error, self._sources)

    def close(self) -> None:
        """End the attempt, if there is one."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def _answer(self, request: Any) -> Any:
        session = self._session
        match request:
            case Open():
                _reset_peak_memory()
                self._sources = source_paths(request.plan)
                self._session = self._opened(request)
                return None
            case Resolve() if session is not None:
                return replace(session.resolve(), peak_memory_bytes=_peak_memory())
            case FindMapping() if session is not None:
                return MappingFound(session.mapping())
            case Run(key_range) if session is not None:
                return replace(session.run(key_range), peak_memory_bytes=_peak_memory())
            case Close():
                return self.close()
        message = f"unexpected request: {request!r}"
        raise RuntimeError(message)

    def _opened(self, request: Open) -> DuckDbSession:
        settings: dict[str, str | int] = {}
        limit, wanted = request.memory_limit_mb, request.threads
        if limit is not None:
            settings["memory_limit"] = f"{memory.duckdb_bytes(limit)}B"
            settings["threads"] = memory.threads(wanted, limit)
        elif wanted is not None:
            settings["threads"] = wanted
        return DuckDbSession(
            request.plan,
            request.lake_root,
            request.folder,
            settings,
            lambda done, estimated: self._say(EngineProgress(done, estimated)),
            request.segment_folders,
        )


def _peak_memory() -> int:
    """Return the most memory this process has held since the attempt began, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak_memory() -> None:
    """Forget the peak of earlier attempts, where the system can."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists() and os.access(reset, os.W_OK):
        reset.write_text(_RESET_PEAK)
