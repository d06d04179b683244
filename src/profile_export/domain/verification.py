"""Whether files are what their receipt says: what was found, beside what is listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from profile_export.domain.receipt import ReceiptFile


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A data file as it lies there; `rows` is None if it cannot be read as Parquet."""

    bytes: int
    sha256: str
    rows: int | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked of a batch, and each finding as one line; none means that all is as the receipt says."""

    batch_id: str
    files: int
    rows: int
    bytes: int
    findings: tuple[str, ...]


def differences(listed: ReceiptFile, found: FoundFile | None) -> Iterator[str]:
    """Yield what is not as listed, a line each. The rows of a file with another hash prove nothing and are not told."""
    if found is None:
        yield f"{listed.path}: is missing."
        return
    if found.bytes != listed.bytes:
        yield f"{listed.path}: has {found.bytes} bytes, the receipt says {listed.bytes}."
    if found.sha256 != listed.sha256:
        yield f"{listed.path}: has the SHA-256 {found.sha256}, the receipt says {listed.sha256}."
    elif found.rows is None:
        yield f"{listed.path}: cannot be read as Parquet."
    elif found.rows != listed.rows:
        yield f"{listed.path}: has {found.rows} rows, the receipt says {listed.rows}."
