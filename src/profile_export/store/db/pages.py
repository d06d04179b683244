"""Rows of lists: as many as a page takes, and no more bytes than an answer has room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.lists import MAX_PAGE_BYTES
from profile_export.store.db.database import fetch_all

FEW = 8
"""So many are read without asking first how large they are."""


async def page_rows(
    connection: AsyncConnection,
    query: Select[Any],
    size: int,
    stored: ColumnElement[int],
    room: int = MAX_PAGE_BYTES,
) -> tuple[Sequence[Row[Any]], bool]:
    """Read up to `size` rows of a sorted query, but stop behind those that fill the room; say whether others follow.

    Args:
        connection: Within a transaction.
        query: Sorted, without a limit.
        size: How many rows are wanted.
        stored: What a row holds in characters, about, but for what is always short.
        room: How many of these there may be.
    """
    if size < FEW:
        rows = await fetch_all(connection, query.limit(size + 1))
        return rows[:size], len(rows) > size
    measured = query.with_only_columns(stored, maintain_column_froms=True).limit(size + 1)
    sizes = (await connection.scalars(measured)).all()
    count = min(size, fitting_count(sizes, room))
    rows = await fetch_all(connection, query.limit(count)) if count else ()
    return rows, count < len(sizes)


def characters(*columns: ColumnElement[Any]) -> ColumnElement[int]:
    """Return how many characters some columns of a row have together."""
    lengths = [func.coalesce(func.length(column), 0) for column in columns]
    total: ColumnElement[int] = lengths[0]
    for length in lengths[1:]:
        total = total + length
    return total


def fitting_count(sizes: Iterable[int], room: int) -> int:
    """Return how many of the first rows fit into so much room; at least one, if there is one."""
    count = 0
    for size in sizes:
        room -= size
        if count and room < 0:
            break
        count += 1
    return count
