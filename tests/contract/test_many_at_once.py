"""More at once than one statement takes as parameters: PostgreSQL stops at 32,767."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import func, select, text

from profile_export.domain.schemas.types import TEXT, ObjectType
from profile_export.store.db.tables import dropped_folders
from profile_export.store.files.batches import Receipts
from profile_export.store.files.folders import DroppedFolders, drop
from tests.contract.test_store import TENANT, Store, facts
from tests.databases import Place

MANY = 33_000


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = Store(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


async def test_any_number_of_receipts_is_noted(store: Store) -> None:
    await Receipts(store.database).note_written(range(MANY))


async def test_any_number_of_folders_is_forgotten(store: Store) -> None:
    folders = [f"d/{number}" for number in range(MANY)]
    async with store.database.write() as connection:
        await drop(connection, folders)

    await DroppedFolders(store.database).forget(folders)

    async with store.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(dropped_folders))).scalar_one() == 0


@pytest.mark.slow
async def test_any_number_of_compacted_files_is_pinned(store: Store) -> None:
    # given a dataset with one batch, and more compacted files than that
    source = await store.dataset()
    await store.upload(source, "b", facts(ObjectType({"id": TEXT})))
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})"
    values = "id, 'c/' || i, 'c/' || i || '/0.parquet', 1, 1"
    columns = "dataset_id, field_set_id, folder, path, rows, bytes"
    async with store.database.write() as connection:
        await connection.execute(
            text(
                f"INSERT INTO compactions ({columns}) {numbers} "
                f"SELECT dataset_id, {values} FROM field_sets CROSS JOIN n"
            )
        )

    # when a snapshot is taken, then it has all of them, and the batch that lies in none
    [taken] = (await store.snapshots.take(TENANT)).sources
    assert sum(len(part.files) for part in taken.parts) == MANY + 1
