"""Checking a receipt against the files beside it, without a server: in the lake, or wherever they were copied to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from profile_export.domain.export.receipt import FORM, FoundFile, ReceiptFile, Verification, differences
from profile_export.lake.data_files import footer_of


def verify(receipt: Path) -> Verification:
    """Check every file that a receipt lists, and that no other Parquet file lies beside it. Blocks.

    A file may lie at its path, as in the lake, or under its name, as after a download.

    Raises:
        OSError: The receipt, or a file, cannot be read.
    """
    try:
        document = json.loads(receipt.read_bytes())
        batch_id, form = str(document["batch_id"]), document["form"]
        listed = [
            ReceiptFile(one["path"], one["name"], one["rows"], one["bytes"], one["sha256"])
            for one in document["files"]
        ]
    except (ValueError, KeyError, TypeError):
        return Verification("", 0, 0, 0, (f"{receipt.name}: is no receipt.",))
    if form != FORM:
        finding = f"{receipt.name}: is a receipt of form {form}; this version knows form {FORM}."
        return Verification(batch_id, 0, 0, 0, (finding,))
    findings: list[str] = []
    checked: dict[Path, FoundFile] = {}
    for file in listed:
        place = _place(receipt.parent, file)
        if place:
            checked[place] = _found(place)
        findings += differences(file, checked[place] if place else None)
    others = sorted(path for path in receipt.parent.rglob("*.parquet") if path not in checked)
    findings += [f"{path.relative_to(receipt.parent)}: is not in the receipt." for path in others]
    return Verification(
        batch_id,
        files=len(checked),
        rows=sum(found.rows or 0 for found in checked.values()),
        bytes=sum(found.bytes for found in checked.values()),
        findings=tuple(findings),
    )


def _place(folder: Path, file: ReceiptFile) -> Path | None:
    return next((place for name in (file.path, file.name) if (place := folder / name).is_file()), None)


def _found(path: Path) -> FoundFile:
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    try:
        rows = footer_of(path).num_rows
    except (pa.ArrowException, OSError):
        rows = None
    return FoundFile(path.stat().st_size, sha256, rows)
