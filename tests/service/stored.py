"""What data files hold, in a form that can be compared with what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from profile_export.domain.catalog.batches import PROFILE_ID, SYSTEM_COLUMNS
from profile_export.domain.schemas.types import IDENTITY_MAP
from tests.service.harness import Caller

_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")


async def stored_rows(caller: Caller, batch_id: str) -> list[Any]:
    """Read the rows of an uploaded batch in their order, as `as_sent` writes them, without system columns."""
    rows = sorted(await _all_columns(caller, batch_id), key=lambda row: row["_row"])
    assert [row["_row"] for row in rows] == list(range(len(rows)))
    return [as_sent(_without_system_columns(row)) for row in rows]


async def exported_rows(caller: Caller, batch_id: str) -> list[Any]:
    """Read the rows of an exported batch, as `as_sent` writes them, without identities."""
    rows = await _all_columns(caller, batch_id)
    ours = dict.fromkeys((IDENTITY_MAP, PROFILE_ID))
    return [as_sent(_without_system_columns(row) | ours) for row in rows]


async def _all_columns(caller: Caller, batch_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in await caller.files(batch_id):
        table = pq.read_table(unquote(urlsplit(file.location).path))
        assert table.num_rows == file.rows
        rows += table.to_pylist(maps_as_pydicts="strict")
    return rows


def _without_system_columns(row: Mapping[str, Any]) -> dict[str, Any]:
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
