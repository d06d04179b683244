"""A look into data files: some rows as plain values, without the system columns. Blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from profile_export.domain.columns import SYSTEM_COLUMNS
from profile_export.lake.data_file import open_data_file
from profile_export.lake.plain_rows import plain_rows

_ROWS_READ_AT_ONCE = 100


def first_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield rows of one file after the other, maps as dicts; as many as somebody asks for are read."""
    for path in paths:
        with open_data_file(path) as file:
            columns = [name for name in file.schema_arrow.names if name not in SYSTEM_COLUMNS]
            for batch in file.iter_batches(_ROWS_READ_AT_ONCE, columns=columns):
                yield from plain_rows(batch)
