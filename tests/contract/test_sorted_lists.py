"""Lists sorted and filtered by text and time: the same on both databases, whatever these were made for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from profile_export.domain.catalog.datasets import NewDataset, SchemaRef, Tenant
from profile_export.domain.lists import Condition, Order
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database
from tests.databases import Place
from tests.pages import page_of

TENANT = Tenant()
RECORD = SchemaRef("https://ns.adobe.com/xdm/context/profile")
NAMES = ("b", "B", "_", "a b", "ab", "é", "e", "\U0001f600", "\uffee", "a-c", "a", "a")


@pytest_asyncio.fixture
async def catalog(place: Place) -> AsyncIterator[Catalog]:
    database = Database(place)
    await database.open()
    made = Catalog(database)
    for number, name in enumerate(NAMES):
        await made.create_dataset(TENANT, NewDataset(name, "", RECORD, {}, ()), f"{number:024x}", "")
    yield made
    await database.close()


async def listed(catalog: Catalog, order: Order, *conditions: Condition) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        request = replace(page_of(2, token), order=order, filter=conditions)
        page = await catalog.list_datasets(TENANT, request)
        found += [dataset.name for dataset in page.items]
        token = page.next_token
        if not token:
            return found


@pytest.mark.parametrize("descending", [False, True])
async def test_names_are_sorted_and_compared_as_their_bytes(catalog: Catalog, *, descending: bool) -> None:
    order = Order("name", descending)
    in_order = sorted(NAMES, key=str.encode, reverse=descending)

    assert await listed(catalog, order) == in_order
    above = [name for name in in_order if name.encode() > b"a b"]
    assert await listed(catalog, order, Condition("name", ">", "a b")) == above
    assert await listed(catalog, order, Condition("name", "=", "b")) == ["b"]


async def test_times_are_compared_to_the_microsecond(catalog: Catalog) -> None:
    third = await catalog.get_dataset(TENANT, f"{2:024x}")

    newer = await listed(
        catalog, Order("create_time", descending=True), Condition("create_time", ">", third.create_time)
    )

    assert newer == list(reversed(NAMES[3:]))
