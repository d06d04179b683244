"""A look into data files: some rows as plain values, without the system columns. Blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from profile_export.domain.columns import SYSTEM_COLUMNS
from profile_export.lake.data_file import open_data_file

_ROWS_READ_AT_ONCE = 100
# No other thread, such as that of the loop, gets a turn while Arrow makes values of what it is given.
_VALUES_MADE_AT_ONCE = 5_000


def first_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield rows of one file after the other, maps as dicts; as many as somebody asks for are read."""
    for path in paths:
        with open_data_file(path) as file:
            columns = [name for name in file.schema_arrow.names if name not in SYSTEM_COLUMNS]
            rows_made_at_once = max(1, _VALUES_MADE_AT_ONCE // file.metadata.num_columns)
            for batch in file.iter_batches(_ROWS_READ_AT_ONCE, columns=columns):
                for start in range(0, batch.num_rows, rows_made_at_once):
                    made = batch.slice(start, rows_made_at_once)
                    yield from made.to_pylist(maps_as_pydicts="strict")
