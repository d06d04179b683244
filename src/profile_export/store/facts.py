"""What ingestion made of an uploaded file, as the store keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from profile_export.domain.batch import DataFile, RowError, UploadState
from profile_export.domain.identity import fold_namespace
from profile_export.domain.schema import FieldPath, ObjectType


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """How a file spells its namespaces: of each one the spelling of its first place, and all spellings."""

    first_spellings: tuple[str, ...] = ()
    all_spellings: frozenset[str] = frozenset()


def used_together(uses: Iterable[NamespaceUse]) -> NamespaceUse:
    """Return how several files, in their order, spell their namespaces together."""
    first: dict[str, str] = {}
    spellings: set[str] = set()
    for use in uses:
        for spelling in use.first_spellings:
            first.setdefault(fold_namespace(spelling), spelling)
        spellings |= use.all_spellings
    return NamespaceUse(tuple(first.values()), frozenset(spellings))


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """What an uploaded file turned out to hold.

    `folder` is where its data files and rejected rows are, `first_row` the number of its first row within the batch.
    `fields` are those its files were written with. `untyped` are the paths of arrays that were left out because
    nobody knew the type of their items (S13). `sha256` and `byte_count` are those of the bytes as sent. `errors` are
    the first of the rejected rows.
    """

    folder: str
    files: tuple[DataFile, ...]
    first_row: int
    rows: int
    fields: ObjectType
    identity_namespaces: NamespaceUse
    segment_namespaces: NamespaceUse
    untyped: tuple[FieldPath, ...]
    sha256: str
    byte_count: int
    rejected_rows: int = 0
    errors: tuple[RowError, ...] = ()


def accepted(facts: UploadFacts) -> dict[str, Any]:
    """Return what the row of a complete file says."""
    return {
        "state": UploadState.COMPLETE.value,
        "byte_count": facts.byte_count,
        "staged_bytes": facts.byte_count,
        "sha256": facts.sha256,
        "folder": facts.folder,
        "rejected_rows": facts.rejected_rows,
        "errors": facts.errors,
    }
