"""What a transaction changes wakes those who wait for it: after the commit, and only then."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from profile_export.store.db.database import Database
from tests.databases import Place


class GivenUpError(Exception):
    pass


@pytest_asyncio.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    opened = Database(place)
    await opened.open()
    yield opened
    await opened.close()


async def test_a_transaction_wakes_nobody_before_it_has_committed(database: Database) -> None:
    wakeups = database.wakeups
    with wakeups.of_job(7) as job, wakeups.of_due_jobs() as due, wakeups.of_batches() as batches:
        async with database.write() as transaction:
            transaction.job_changed(7, 1)
            transaction.batches_changed()
            before = (job.is_set(), due.is_set(), batches.is_set())
        after = (job.is_set(), due.is_set(), batches.is_set())

    assert before == (False, False, False)
    assert after == (True, False, True)


async def test_a_transaction_that_rolls_back_wakes_nobody(database: Database) -> None:
    async def change_and_give_up() -> None:
        async with database.write_beside() as transaction:
            transaction.job_changed(7, 1, one_may_be_due=True)
            transaction.batches_changed()
            raise GivenUpError

    with database.wakeups.of_any_job() as job, database.wakeups.of_batches() as batches:
        with pytest.raises(GivenUpError):
            await change_and_give_up()
        woken = (job.is_set(), batches.is_set())

    assert woken == (False, False)
