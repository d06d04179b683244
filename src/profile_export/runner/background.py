"""Work in the background: again and again, beside everything else, and never the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

import structlog

from profile_export.domain.errors import UnavailableError


async def first_of(*waits: asyncio.Future[None] | Coroutine[None, None, object], seconds: float) -> None:
    """Wait until one of these happens or the time is over. A future goes on, a coroutine is dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait, task in zip(waits, tasks, strict=True):
            if wait is not task:
                task.cancel()


_LEAST_SECONDS = 1.0
"""How long changes gather before they are looked at: a hundred in a second are one look, and jobs go first."""
_log = structlog.get_logger(__name__)


class Chore(Protocol):
    """Work that comes due by the clock alone."""

    poll_seconds: float
    """How long it rests where nothing is waiting."""

    async def step(self) -> bool:
        """Do some of it; say whether more is waiting."""
        ...


async def keep_at(chore: Chore) -> None:
    """Do a chore until cancelled."""
    await repeat(chore.step, poll_seconds=chore.poll_seconds)


async def repeat(
    step: Callable[[], Awaitable[bool]],
    *,
    poll_seconds: float,
    changed: asyncio.Event | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Take steps until cancelled, or until told to begin no further one.

    Args:
        step: Does some of the work; says whether more is waiting. One that fails is logged and taken again later.
        poll_seconds: How long to wait where nothing is waiting or a step has failed.
        changed: Ends the wait early.
        until: Ends the wait and the work.
    """
    wake, stop = changed or asyncio.Event(), until or asyncio.Event()
    while not stop.is_set():
        wake.clear()
        try:
            more = await step()
        except UnavailableError as error:
            # Every step says so until it is back: without a stack trace each.
            _log.warning("background_failed", work=step.__qualname__, reason=error.reason)
            more = False
            wake.clear()
        except Exception:  # noqa: BLE001 - whatever it is, the server lives on and the next step may do
            _log.exception("background_failed", work=step.__qualname__)
            more = False
            wake.clear()
        if not more:
            await first_of(wake.wait(), stop.wait(), seconds=poll_seconds)
            await first_of(stop.wait(), seconds=_LEAST_SECONDS)
