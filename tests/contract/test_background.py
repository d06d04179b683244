"""Work in the background goes on, whatever happens to a step of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from profile_export.runner import chores
from profile_export.runner.chores import repeat


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "_LEAST_SECONDS", 0.0)


class Steps:
    """Steps that go as told, one after the other; after the last, nothing is waiting."""

    def __init__(self, *outcomes: bool | Exception) -> None:
        self.outcomes = list(outcomes)
        self.over = asyncio.Event()

    async def step(self) -> bool:
        if not self.outcomes:
            self.over.set()
            return False
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def until_over(steps: Steps, repeating: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(repeating())
    async with asyncio.timeout(10):
        await steps.over.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_step_follows_at_once_where_more_is_waiting() -> None:
    steps = Steps(True, True)

    await until_over(steps, lambda: repeat(steps.step, poll_seconds=3600))


async def test_a_change_ends_the_wait() -> None:
    steps, changed = Steps(False), asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, changed.set)

    await until_over(steps, lambda: repeat(steps.step, poll_seconds=3600, changed=changed))


async def test_a_step_that_fails_is_logged_and_taken_again(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(OSError("the disk is full"), True)

    await until_over(steps, lambda: repeat(steps.step, poll_seconds=0.01))

    assert "the disk is full" in capsys.readouterr().out
