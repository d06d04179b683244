"""What an engine is asked and what it reports, one thing at a time, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profile_export.domain.export.plan import ExportPlan, KeyRange


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
class Failed:
    """The request failed. `died` says that memory ran out or the engine broke, and the child is of no more use."""

    code: str
    message: str
    retryable: bool
    died: bool = False
