"""What data files hold, in a form that can be compared with what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from profile_export.domain.columns import SYSTEM_COLUMNS
from tests.service.harness import Caller

_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")


async def stored_rows(caller: Caller, batch_id: str) -> list[Any]:
    """Read the rows of a batch from its files, in the order of the upload, comparable by `as_sent`.

    System columns are checked for gaps in the numbering and left out.
    """
    rows: list[dict[str, Any]] = []
    for file in await caller.files(batch_id):
        table = pq.read_table(unquote(urlsplit(file.location).path))
        assert table.num_rows == file.rows
        rows += table.to_pylist(maps_as_pydicts="strict")
    rows.sort(key=lambda row: row["_row"])
    assert [row["_row"] for row in rows] == list(range(len(rows)))
    return [as_sent(without_system_columns(row)) for row in rows]


def without_system_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SYSTEM_COLUMNS}


def as_sent(value: Any) -> Any:
    """Write a value so that what was sent and what is stored are equal if they mean the same.

    Instants are in UTC, whether as text or typed; numbers are decimal; what is absent (null, an object without a
    value) is left out, but for nulls inside an array.
    """
    match value:
        case dict():
            return _present(value.items())
        case list():
            return [as_sent(item) for item in value]
        case str() if _INSTANT.fullmatch(value):
            return as_sent(datetime.fromisoformat(value))
        case date():  # or an instant
            return (value.astimezone(UTC) if isinstance(value, datetime) else value).isoformat()
        case float():
            return Decimal(repr(value))
    return value


def _present(members: Iterable[tuple[str, Any]]) -> dict[str, Any] | None:
    told = {name: as_sent(member) for name, member in members}
    return {name: member for name, member in told.items() if member is not None} or None
