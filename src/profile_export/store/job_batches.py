"""The batches that a job fills, one or one for each of its segments: all of them in as many statements as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.batch import BatchState, DataFile
from profile_export.store.batches import file_from
from profile_export.store.drops import drop_written
from profile_export.store.tables import batches, files


async def batches_of_job(connection: AsyncConnection, job_id: int) -> Sequence[Row[Any]]:
    """Return the batches that a job fills, in the order of its segments if each has one."""
    query = select(batches).where(batches.c.job_id == job_id).order_by(batches.c.key)
    return (await connection.execute(query)).all()


async def files_of_job(connection: AsyncConnection, job_id: int) -> Mapping[int, Sequence[DataFile]]:
    """Return the recorded files of the batches that a job fills, by the batches' keys."""
    query = select(files).join(batches, batches.c.key == files.c.batch_key).where(batches.c.job_id == job_id)
    found: dict[int, list[DataFile]] = defaultdict(list)
    for row in await connection.execute(query.order_by(files.c.batch_key, files.c.name)):
        found[row.batch_key].append(file_from(row))
    return found


async def drop_batches_of_job(
    connection: AsyncConnection, job_id: int, state: BatchState, now: datetime
) -> None:
    """End the batches that a job fills without effect, and give their files up."""
    rows = await batches_of_job(connection, job_id)
    keys = select(batches.c.key).where(batches.c.job_id == job_id)
    await connection.execute(delete(files).where(files.c.batch_key.in_(keys)))
    await drop_written(connection, {row.folder: row.key for row in rows})
    values = {"state": state.value, "end_time": now}
    await connection.execute(update(batches).where(batches.c.job_id == job_id).values(values))
