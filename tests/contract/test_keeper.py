"""Leases while the loop is held up: a thread renews them, for a time, and nobody takes the job over meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import cast

import pytest
import pytest_asyncio
from sqlalchemy import select, text, update

from profile_export.domain.job import LEASE_TTL
from profile_export.runner.chores import TimeoutChore
from profile_export.runner.keeper import LATE_SECONDS, MOST_SECONDS, Held, LeaseKeeper
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import leases
from profile_export.store.jobs.attempts import LeaseLostError, Renewals
from profile_export.store.jobs.expiries import Timeouts
from tests.contract.test_store import RUNNING, TENANT, Store
from tests.databases import Place

LATE, TOO_LATE = LATE_SECONDS + 1, MOST_SECONDS + 1


class Leased(Store):
    """A store whose leases a keeper watches over."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.renewals = Renewals(self.database)
        self.keeper = LeaseKeeper(self.renewals)
        self.chore = TimeoutChore(Timeouts(self.database), self.keeper)

    async def rest(self) -> timedelta:
        """For how long the lease is still good."""
        async with self.database.read() as connection:
            expiry = cast("datetime", (await connection.execute(select(leases.c.expire_time))).scalar_one())
            return expiry - await database_time(connection)

    async def leave(self, rest: timedelta) -> None:
        """Let the lease be good for so long."""
        async with self.database.write() as connection:
            await connection.execute(
                update(leases).values(expire_time=await database_time(connection) + rest)
            )


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Leased]:
    opened = Leased(place)
    await opened.database.open()
    yield opened
    await asyncio.to_thread(opened.keeper.close)
    await opened.database.close()


def silent_for(seconds: float, held: Held) -> None:
    """Make the last heartbeat one of so long ago, and the trust that it gave one that is nearly over."""
    held.beaten = time.monotonic() - seconds


def hold_up_the_loop(until: Callable[[], bool]) -> None:
    """Compute, as one who holds up the loop does, until something has come about without it."""
    given_up = time.monotonic() + 60
    while not until():
        assert time.monotonic() < given_up


async def test_a_lease_whose_heartbeat_is_late_is_renewed_while_the_loop_is_held_up(store: Leased) -> None:
    claim = await store.claimed()
    async with store.keeper.holding(claim.fence, time.monotonic() + 60) as held:
        # given a lease of which little is left
        await store.leave(timedelta(seconds=5))
        before = held.trusted_until = time.monotonic()
        silent_for(LATE, held)

        # when the loop does nothing but compute
        hold_up_the_loop(lambda: held.trusted_until > before)

        # then it is good for as long as after a heartbeat, and what the attempt had reached is still told
        assert await store.rest() > LEASE_TTL - timedelta(seconds=3)
        assert store.keeper.keeps(claim.fence)
        await store.attempts.heartbeat(claim.fence, RUNNING)


async def test_the_attempt_goes_on_after_a_loop_that_was_held_up_for_longer_than_its_trust(
    store: Leased,
) -> None:
    claim = await store.claimed()

    async with store.keeper.holding(claim.fence, time.monotonic() + 0.05) as held:
        silent_for(LATE, held)
        first = held.trusted_until
        hold_up_the_loop(lambda: held.trusted_until > first and time.monotonic() > first)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert not store.keeper.keeps(claim.fence)


async def test_what_nobody_renews_is_trusted_no_longer(store: Leased) -> None:
    claim = await store.claimed()

    with pytest.raises(TimeoutError):
        async with store.keeper.holding(claim.fence, time.monotonic() + 0.05):
            await asyncio.Event().wait()


@pytest.mark.parametrize("silence", [0.0, TOO_LATE], ids=["in time", "hung"])
async def test_nothing_is_renewed_for_a_loop_that_is_in_time_or_hangs(store: Leased, silence: float) -> None:
    claim, other = await store.claimed(), await store.claimed()
    async with (
        store.keeper.holding(claim.fence, time.monotonic() + 60) as held,
        store.keeper.holding(other.fence, time.monotonic() + 60) as late,
    ):
        before = held.trusted_until
        silent_for(silence, held)
        silent_for(LATE, late)
        late.trusted_until = time.monotonic()
        seen = late.trusted_until

        hold_up_the_loop(lambda: late.trusted_until > seen)

        assert held.trusted_until == before


@pytest.mark.parametrize("whose", ["another's", "given up"])
async def test_a_lease_that_is_lost_is_not_renewed(store: Leased, whose: str) -> None:
    claim = await store.claimed()
    if whose == "another's":
        async with store.database.write() as connection:
            await connection.execute(update(leases).values(attempt=2))
    else:
        await store.attempts.release(claim.fence)

    assert not await asyncio.to_thread(store.renewals.renew, claim.fence)


async def test_a_heartbeat_that_waited_for_long_does_not_shorten_the_trust_of_renewals_since(
    store: Leased,
) -> None:
    claim = await store.claimed()

    async with store.keeper.holding(claim.fence, time.monotonic() + 60) as held:
        # when one comes through that was asked for a lease ago
        held.beat(time.monotonic() - LEASE_TTL.total_seconds())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        # then the attempt goes on
        assert store.keeper.keeps(claim.fence)


async def test_a_claim_that_waited_for_long_is_trusted_from_when_its_lease_began(store: Leased) -> None:
    await store.attempts.release((first := await store.claimed()).fence)
    async with store.database.write() as connection:
        await database_time(connection)
        claiming = asyncio.create_task(store.attempts.claim("worker"))
        for _ in range(3):  # the claim looks first whether there is a job
            await store.jobs.get(TENANT, first.job.id)
        at_the_end = time.monotonic()
    claim = await claiming

    assert claim is not None
    assert at_the_end <= claim.begun <= time.monotonic()


async def test_a_process_takes_no_job_from_itself_while_it_keeps_its_lease(store: Leased) -> None:
    claim = await store.claimed()
    await store.leave(timedelta(seconds=-1))

    async with store.keeper.holding(claim.fence, time.monotonic() + 60):
        assert not await store.chore.step()
        await store.attempts.heartbeat(claim.fence, RUNNING)
    await store.leave(timedelta(seconds=-1))

    assert await store.chore.step()
    with pytest.raises(LeaseLostError):
        await store.attempts.heartbeat(claim.fence, RUNNING)


async def test_a_lease_outlives_a_writing_transaction_that_the_loop_is_held_up_in(store: Leased) -> None:
    claim = await store.claimed()
    async with store.keeper.holding(claim.fence, time.monotonic() + 60) as held:
        # given an open transaction of this process, which on PostgreSQL is ended where it idles for too long
        if store.database.is_shared:
            pytest.skip("PostgreSQL ends what idles in a transaction: a renewal waits for no longer")
        async with store.database.write() as connection:
            await connection.execute(text("UPDATE tenants SET org = org"))
            before = held.trusted_until = time.monotonic()
            silent_for(LATE, held)

            hold_up_the_loop(lambda: held.trusted_until > before)

        assert store.keeper.keeps(claim.fence)


async def test_a_lease_that_ran_out_within_a_long_transaction_is_renewed_after_it(store: Leased) -> None:
    claim = await store.claimed()
    async with store.keeper.holding(claim.fence, time.monotonic() + 60) as held:
        await store.leave(timedelta(seconds=-1))
        before = held.trusted_until = time.monotonic()
        silent_for(LATE, held)

        hold_up_the_loop(lambda: held.trusted_until > before)

        assert await store.rest() > LEASE_TTL - timedelta(seconds=3)
