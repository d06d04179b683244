"""Work that goes on to its end whatever becomes of its caller but for what only he wants, one after the other."""

import asyncio
from functools import partial

import pytest

from profile_export.application.loading import AbandonedError, Interest, KeyedLock


class Work:
    """Work that waits for a word, and tells what happened."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.go_on = asyncio.Event()

    async def do(self, name: str) -> str:
        self.told.append(f"{name} begins")
        await self.go_on.wait()
        self.told.append(f"{name} ends")
        return name

    async def do_if_wanted(self, name: str, interest: Interest) -> str:
        try:
            return await interest.during(self.do(name))
        except AbandonedError:
            self.told.append(f"{name} is abandoned")
            raise

    async def fail(self, _interest: Interest) -> str:
        await self.go_on.wait()
        raise LookupError("nothing there")


async def until_it_waits() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_caller_that_is_cancelled_leaves_the_work_to_its_end() -> None:
    lock, work = KeyedLock(), Work()
    first = asyncio.create_task(lock.take("a", lambda _: work.do("first")))
    await until_it_waits()

    first.cancel()
    second = asyncio.create_task(lock.take("a", lambda _: work.do("second")))
    await until_it_waits()
    before = list(work.told)
    work.go_on.set()

    assert await second == "second"
    assert first.cancelled()
    assert before == ["first begins"]
    assert work.told == ["first begins", "first ends", "second begins", "second ends"]


async def test_what_a_caller_alone_wants_ends_with_him_and_the_next_begins_it_anew() -> None:
    lock, work = KeyedLock(), Work()
    first = asyncio.create_task(lock.take("a", partial(work.do_if_wanted, "first")))
    await until_it_waits()
    second = asyncio.create_task(lock.take("a", partial(work.do_if_wanted, "second")))
    await until_it_waits()

    first.cancel()
    await until_it_waits()
    work.go_on.set()

    assert await second == "second"
    assert work.told == ["first begins", "first is abandoned", "second begins", "second ends"]


async def test_nothing_is_begun_for_a_caller_who_has_gone() -> None:
    interest, work = Interest(), Work()
    interest.lose()

    with pytest.raises(AbandonedError):
        await interest.during(work.do("late"))

    assert work.told == []


async def test_work_for_other_things_does_not_wait() -> None:
    lock, work = KeyedLock(), Work()

    both = [asyncio.create_task(lock.take(key, partial(work.do_if_wanted, key))) for key in ("a", "b")]
    await until_it_waits()
    work.go_on.set()

    assert await asyncio.gather(*both) == ["a", "b"]
    assert work.told[:2] == ["a begins", "b begins"]


async def test_what_work_raises_is_its_callers_alone() -> None:
    lock, work = KeyedLock(), Work()
    first = asyncio.create_task(lock.take("a", work.fail))
    await until_it_waits()
    second = asyncio.create_task(lock.take("a", lambda _: work.do("second")))
    work.go_on.set()

    with pytest.raises(LookupError):
        await first
    assert await second == "second"
