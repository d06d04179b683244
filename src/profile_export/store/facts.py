"""What ingestion made of an uploaded file, as the store keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from profile_export.domain.batch import DataFile, RowError
from profile_export.domain.schema import FieldPath, ObjectType


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """How a file spells its namespaces: of each one the spelling of its first place, and all spellings."""

    first_spellings: tuple[str, ...] = ()
    all_spellings: frozenset[str] = frozenset()


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
