"""What has been dropped leaves the disk when nobody can be reading it, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from sqlalchemy import delete, insert, select, update

from profile_export.lake.children import Children
from profile_export.store.database import database_time
from profile_export.store.drops import drop
from profile_export.store.tables import batches, drops, mirrored_batches, mirrors
from tests.contract.house import House, opened
from tests.databases import Place


@pytest_asyncio.fixture
async def house(tmp_path: Path, place: Place) -> AsyncIterator[House]:
    async with opened(House(tmp_path, Children(), place)) as made:
        yield made


async def test_a_dropped_folder_leaves_the_disk_when_its_time_has_passed_and_nothing_else_does(
    house: House,
) -> None:
    crm = await house.dataset()
    await house.people(crm, 1, 2, 3)
    async with house.database.write() as connection:
        await drop(connection, [f"{crm}/p1"])
        await drop(connection, [f"{crm}/p2"])
        await drop(connection, [f"{crm}/p1"])
        mirrored = select(batches.c.key).where(batches.c.id == "p2").scalar_subquery()
        await connection.execute(insert(mirrors).values(dataset_id=crm))
        await connection.execute(insert(mirrored_batches).values(dataset_id=crm, batch_key=mirrored))

    await house.sweep(timedelta(hours=1))
    early = house.on_disk(crm)
    await house.sweep()

    assert early == {f"{crm}/p1", f"{crm}/p2", f"{crm}/p3"}
    assert house.on_disk(crm) == {f"{crm}/p2", f"{crm}/p3"}
    assert await house.drops.folders() == [f"{crm}/p2"]
    async with house.database.write() as connection:
        await connection.execute(delete(mirrored_batches))
    await house.sweep()
    assert house.on_disk(crm) == {f"{crm}/p3"}


async def test_the_grace_counts_from_the_first_drop(house: House) -> None:
    async with house.database.write() as connection:
        await drop(connection, ["d/b"])
        an_hour_ago = await database_time(connection) - timedelta(hours=1)
        await connection.execute(update(drops).values(drop_time=an_hour_ago))
        await drop(connection, ["d/b"])

    assert await house.drops.due(timedelta(hours=2)) == []
    assert await house.drops.due(timedelta(minutes=59)) == ["d/b"]


async def test_a_folder_that_was_removed_before_the_server_died_is_forgotten_by_the_next(
    house: House,
) -> None:
    async with house.database.write() as connection:
        await drop(connection, ["d/gone"])

    await house.sweep()

    assert await house.drops.folders() == []
