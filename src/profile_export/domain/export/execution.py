"""What an engine reports of carrying out a plan, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass, field

from profile_export.domain.export.plan import ExportCounts, WrittenFile


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """Source rows worked through so far and in all, as estimated by the engine; never falls within an attempt."""

    done: int
    estimated: int


@dataclass(frozen=True, slots=True)
class ResolutionFacts:
    """What identity resolution found; all 0 with graph `none`, or if no row has more than one identity.

    `identities` are those that occur together with another, `components` the profiles they make up, `identities_moved`
    those whose profile has another key than they, `rows_moved` the rows that had to be shuffled for it.
    """

    identities: int = 0
    components: int = 0
    identities_moved: int = 0
    rows_moved: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The files of one range (none if no profile of it is exported) and what was read, kept and left out."""

    files: tuple[WrittenFile, ...] = ()
    counts: ExportCounts = field(default_factory=ExportCounts)
    peak_memory_bytes: int = 0


class EngineDiedError(Exception):
    """The engine's process ended or ran out of memory: another attempt may succeed.

    The text is a sentence; `code` is for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineFailedError(Exception):
    """A query failed: a file that cannot be read, a full disk. The text is a sentence; `code` is for programs."""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code, self.retryable = code, retryable
