"""A database says which installation it is of: from the first start on, and the same to everybody."""

from __future__ import annotations

import asyncio

from profile_export.store.db.database import Database, Instance, Instances
from tests.databases import Place


async def test_before_the_first_start_a_database_is_of_no_instance(place: Place) -> None:
    database = Database(place)
    await database.open()

    assert await Instances(database).get() is None
    await database.close()


async def test_what_was_settled_first_stays_over_restarts(place: Place) -> None:
    for proposed in (Instance("first", b"k" * 32), Instance("second", b"l" * 32)):
        database = Database(place)
        await database.open()

        settled = await Instances(database).settle(proposed)

        assert settled == Instance("first", b"k" * 32)
        assert await Instances(database).get() == settled
        await database.close()


async def test_all_who_propose_at_once_get_the_same(place: Place) -> None:
    database = Database(place)
    await database.open()
    instances = Instances(database)

    settled = await asyncio.gather(*(instances.settle(Instance(f"{n}", b"%d" % n)) for n in range(8)))

    assert len({one.id for one in settled}) == len({one.token_key for one in settled}) == 1
    await database.close()


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Instance("id", b"secret"))
