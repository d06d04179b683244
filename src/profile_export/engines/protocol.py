"""What parent and child say to each other: pickled messages, each behind its length.

The parent sends one request at a time; the child answers with any number of `EngineProgress` and one of the others.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from profile_export.domain.plan import ExportPlan, KeyRange

LENGTH = Struct(">Q")


@dataclass(frozen=True, slots=True)
class Open:
    """Begin an attempt."""

    plan: ExportPlan
    lake_root: Path
    folder: Path
    memory_limit_mb: int | None
    threads: int | None
    segment_folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolve:
    """Resolve identities; answered by `ResolutionFacts`."""


@dataclass(frozen=True, slots=True)
class FindMapping:
    """Find out which identities have a profile of another key than theirs; answered by `MappingFound`."""


@dataclass(frozen=True, slots=True)
class MappingFound:
    """The file of the mapping; None where every identity is a profile of its own."""

    path: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """Export a range; answered by `RangeResult`."""

    key_range: KeyRange


@dataclass(frozen=True, slots=True)
class Close:
    """End the attempt."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The child waits for the next request."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed. `died` says that memory ran out or the engine broke, and the child ends."""

    code: str
    message: str
    retryable: bool
    died: bool = False


def encode(message: object) -> bytes:
    """Write a message with its length in front."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Any:
    """Read a message; both ends are this program, so what is read can be trusted."""
    return pickle.loads(body)  # noqa: S301 - only our own process writes to this pipe
