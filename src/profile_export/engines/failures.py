"""What went wrong in an engine's process, as data: a word for programs, a sentence, and whether a retry can help."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection

import duckdb

from profile_export.domain.plan import ExportPlan
from profile_export.engines.protocol import Failed

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
