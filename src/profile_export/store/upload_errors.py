"""What is shown of the errors of a batch's files: the first of them, however many files have some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Text, func, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.batch import MOST_ERRORS, RowError
from profile_export.store.tables import uploads

_TEXT = type_coerce(uploads.c.errors, Text)
_PLACE = func.row_number().over(partition_by=uploads.c.batch_key, order_by=uploads.c.file_name)


async def first_errors(
    connection: AsyncConnection, batch_keys: Sequence[int]
) -> Mapping[tuple[int, str], tuple[RowError, ...]]:
    """Return errors of the first files that have some, by batch and file name; of each batch `MOST_ERRORS` at most."""
    if not batch_keys:
        return {}
    having = (
        select(uploads.c.batch_key, uploads.c.file_name, _TEXT.label("text"), _PLACE.label("place"))
        .where(uploads.c.batch_key.in_(batch_keys), _TEXT != "[]")
        .subquery()
    )
    # Each of these has one at least.
    query = select(having).where(having.c.place <= MOST_ERRORS).order_by(having.c.batch_key, having.c.place)
    kind: Any = uploads.c.errors.type
    shown: dict[tuple[int, str], tuple[RowError, ...]] = {}
    room: Counter[int] = Counter(dict.fromkeys(batch_keys, MOST_ERRORS))
    for row in await connection.execute(query):
        if room[row.batch_key]:
            errors = kind.adapter.validate_json(row.text)[: room[row.batch_key]]
            shown[row.batch_key, row.file_name] = errors
            room[row.batch_key] -= len(errors)
    return shown
